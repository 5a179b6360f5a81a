"""The grammars, translated to regular expressions: they have no recursion."""

import re

import pytest

from ml.serving.grammar import ANY_GRAMMAR, ENGLISH_GRAMMAR, ENGLISH_REST_GRAMMAR, grammar


def as_pattern(text: str) -> re.Pattern[str]:
    rules = dict(re.findall(r"^(\w+) ::= (.*)$", text, re.MULTILINE))

    def expand(rule: str) -> str:
        parts = re.findall(r'"[^"]*"|\[(?:\\.|[^\]\\])*\]|\{[\d,]+\}|\w+|[()|+*?]|\s+', rule)
        return "".join(translate(part) for part in parts)

    def translate(part: str) -> str:
        if part[0] == '"':
            return f"(?:{re.escape(part[1:-1])})"
        if part in rules:
            return f"(?:{expand(rules[part])})"
        return "" if part.isspace() else part

    return re.compile(expand(rules["root"]))


ENGLISH, REST, ANY = as_pattern(ENGLISH_GRAMMAR), as_pattern(ENGLISH_REST_GRAMMAR), as_pattern(ANY_GRAMMAR)


@pytest.mark.parametrize(
    "tip",
    [
        "Drink a glass of water, then stand at the window.",
        "Do five push-ups at 9:30. Don't rush.",
        "Set a 10-minute timer at 21:05 and read 2 pages of Emma.",
    ],
)
def test_plain_english_is_allowed(tip: str) -> None:
    assert ENGLISH.fullmatch(tip)
    assert ANY.fullmatch(tip)


@pytest.mark.parametrize(
    "tip",
    [
        "Do it for 10 minutes:10 breaths:30.",
        "Stop at 24:00 sharp.",
        "Say HACKED now.",
        "Go to evil.com now.",
        "Say \u201cyes\u201d out loud.",
        "One two. Three four. Five six.",
        "Drink  water now.",
        "Drink water now",
        "Grüße dich selbst im Spiegel.",
    ],
)
def test_what_is_not_plain_english_is_not(tip: str) -> None:
    assert not ENGLISH.fullmatch(tip)


def test_an_opening_is_completed_to_one_sentence() -> None:
    assert REST.fullmatch(" the floor for ten seconds, then let go.")
    assert REST.fullmatch(", then let go.")
    for rest in (" the floor. Then let go.", "the floor.", "."):
        assert not REST.fullmatch(rest)


@pytest.mark.parametrize("pattern", [ENGLISH, REST, ANY], ids=["English", "completion", "any"])
def test_no_limit_of_length_ends_a_sentence_within_a_word(pattern: re.Pattern[str]) -> None:
    long = " and another word" * 40
    assert pattern.fullmatch(f"Take this{long}.") or pattern.fullmatch(f" this{long}.")


@pytest.mark.parametrize(
    "tip", ["Trink ein Glas Wasser. Öffne dann das Fenster!", "今すぐ窓を開けて、三回伸びをしましょう。"]
)
def test_other_languages_use_all_letters(tip: str) -> None:
    assert ANY.fullmatch(tip)


@pytest.mark.parametrize(
    ("locale", "opened", "expected"),
    [
        (None, False, ENGLISH_GRAMMAR),
        ("en-GB", False, ENGLISH_GRAMMAR),
        ("en", True, ENGLISH_REST_GRAMMAR),
        ("de-DE", False, ANY_GRAMMAR),
    ],
)
def test_the_locale_and_the_opening_decide_on_the_grammar(locale: str | None, opened: bool, expected: str) -> None:
    assert grammar(locale, crisis=False, opened=opened) == expected


def test_a_crisis_leaves_a_choice_of_fixed_sentences() -> None:
    for locale in (None, "de-DE", "es-MX", "fr-FR"):
        assert len(as_pattern(grammar(locale, crisis=True)).pattern) > 200
        assert "crisis line" in grammar(locale, crisis=True) or locale
