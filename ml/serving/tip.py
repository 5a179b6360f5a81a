"""The checks of a tip: short plain text that can be shown to a person unchanged."""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import sentencex

from ml.features.free_text import normalise_words, remove_hidden_characters
from ml.platform.errors import UnsuitableTip, UnusableTip
from ml.serving.addresses import contains_address
from ml.serving.tip_content import forbidden_content

MAX_TIP_LENGTH = 280
"""In characters."""

MAX_SENTENCES = 2

REPEATED_WORDS = 6
"""The length of a sequence of words that a tip may not repeat from the user's own words."""

_QUOTES = "\"'`\u00ab\u00bb\u2018\u2019\u201c\u201d\u201e\u300c\u300d"
_PREAMBLE = re.compile(
    r"(sure|certainly|of course|absolutely|okay|great)\b[,!:.]"
    r"|here(\s+is|\s+are|['\u2019]s)\b"
    r"|(\w+\s+){0,3}tip\s*(\d+\s*)?:"
    r"|as an ai\b"
    r"|(i['\u2019]m|i am) (sorry|unable|an? (ai|assistant))\b"
    r"|i (cannot|can['\u2019]t)\b",
    re.IGNORECASE,
)
_TELEPHONE = re.compile(r"(\d[\s()./-]?){7,}")
_REPETITION = re.compile(r"(\w{2,})(\W+\1){2,}|(\w{4,}\W)\3{2,}|\s{3,}|(\w{2,}\W+\w{2,}\W+)\4{2,}", re.IGNORECASE)
_MARKUP = re.compile(
    r"[*_]{2}|`|~~|<[^\s<>][^<>]*>|\[[^\]]*\]\("
    r"|^\s*([#>]|[-+*\u2022]\s|\d+[.)]\s)"
    r"|(?<!\w)[*_]\w[^*_]*[*_](?!\w)"
)

_LETTERS = re.compile(r"[^\W\d_]+")

# Each rule: the reason that follows "it …" in the error message, and a test that is true for a text that breaks it.
_FORM: Mapping[str, Callable[[str], object]] = MappingProxyType(
    {
        "is empty": lambda tip: not tip,
        f"is longer than {MAX_TIP_LENGTH} characters": lambda tip: len(tip) > MAX_TIP_LENGTH,
        "has more than one line": lambda tip: not tip.isprintable() and any(map(_breaks_line, tip)),
        "is in quotation marks": lambda tip: tip[0] in _QUOTES and tip[-1] in _QUOTES,
        "contains markup": _MARKUP.search,
        "contains a telephone number": _TELEPHONE.search,  # models invent them
        "repeats itself": _REPETITION.search,
        "begins with words that are not part of the tip": _PREAMBLE.match,
    }
)


def validate_tip(text: str, *, locale: str | None = None, finish_reason: str = "stop", own_words: str = "") -> str:
    """Return the tip in a model's text.

    A tip is one complete line of at most 280 characters and two sentences (in the language of `locale`, a BCP 47 tag),
    without preamble, enclosing quotes, markup, repetition or telephone number. It has no address, no hidden characters,
    none of the content of `tip_content`, and no marker or long passage from the user's `own_words`.

    Raises UnsuitableTip for content and UnusableTip for form, naming the first rule that the text breaks.
    """
    tip = text.strip()
    if reason := _unsuitable(tip, own_words):
        raise UnsuitableTip(f"The model's text cannot be shown: it {reason}.")
    reason = next((reason for reason, is_broken in _FORM.items() if is_broken(tip)), None)
    if finish_reason == "length":
        reason = "was cut off"
    elif finish_reason != "stop":
        reason = "was not finished"
    elif reason is None and len(_sentences(tip, locale)) > MAX_SENTENCES:
        reason = f"has more than {MAX_SENTENCES} sentences"
    if reason:
        raise UnusableTip(f"The model's text cannot be shown: it {reason}.")
    return tip


def _breaks_line(character: str) -> bool:
    return unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}


def _unsuitable(tip: str, own_words: str) -> str | None:
    if contains_address(tip):
        return "contains an address"
    if remove_hidden_characters(tip) != tip:
        return "contains hidden characters"
    if own_words and _repeats(tip, own_words):
        return "repeats the user's own words"
    return forbidden_content(tip)


def _repeats(tip: str, own_words: str) -> bool:
    """Return whether a tip repeats a marker in capitals, or a long sequence of words, from the user's own words."""
    own = normalise_words(own_words).split()
    for place, word in enumerate(_LETTERS.findall(tip)):
        # A shorter word in capitals is an acronym, unless the tip begins with it.
        if word.isupper() and len(word) >= (6 if place else 3) and word.lower() in own:
            return True
    return len(own) >= REPEATED_WORDS and not _sequences(own).isdisjoint(_sequences(normalise_words(tip).split()))


def _sequences(words: Sequence[str]) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + REPEATED_WORDS]) for start in range(len(words) - REPEATED_WORDS + 1)}


def _sentences(tip: str, locale: str | None) -> list[str]:
    language = locale.partition("-")[0].lower() if locale else "en"
    return [sentence for sentence in sentencex.segment(language, tip) if sentence.strip()]
