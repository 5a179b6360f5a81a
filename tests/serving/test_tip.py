"""The checks of a tip."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.platform.errors import UnsuitableTip, UnusableTip
from ml.serving.tip import MAX_TIP_LENGTH, validate_tip


@pytest.mark.parametrize(
    "text",
    [
        "Dim the lights now.",
        "Be in bed by 10 p.m. tonight. Leave your phone in the kitchen.",
        "Walk 10,000 steps by 18:30, or 2,000 if you are tired.",
        "Breathe in, breathe out, and let the 10-minute timer ring.",
        "Walk 2.5 km, e.g. along the river, before dinner.",
        "Here in the office, stand up and stretch for a minute.",
        "Great goals grow from small steps, so write one line today.",
        "Breathe in for 4 seconds and out for 6 - five times.",
        "Sure-footed or not, take the stairs today.",
        "Put the book on your pillow: it will be the last thing you see tonight.",
    ],
)
def test_a_usable_tip_is_returned_unchanged(text: str) -> None:
    assert validate_tip(f"  {text}\n") == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("Walk. " * 60, "is longer than 280 characters"),
        ("One. Two. Three.", "has more than 2 sentences"),
        ("Walk now.\nThen rest.", "has more than one line"),
        ('"Walk now."', "is in quotation marks"),
        ("\u201cWalk now.\u201d", "is in quotation marks"),
        ("**Walk** now.", "contains markup"),
        ("# Walk now.", "contains markup"),
        ("- Walk now.", "contains markup"),
        ("1. Walk now.", "contains markup"),
        ("Walk `now`.", "contains markup"),
        ("Walk <b>now</b>.", "contains markup"),
        ("Walk [now](x).", "contains markup"),
        ("Call 1-800-273-8255 now.", "contains a telephone number"),
        ("Call +49 (0)800 1110111 now.", "contains a telephone number"),
        ("Call 1-press-press-press now.", "repeats itself"),
        ("Rest now, rest now, rest now, and more.", "repeats itself"),
        ("深めましょう．深めましょう．深めましょう．", "repeats itself"),
        ("Take a bath for" + " " * 60 + "now.", "repeats itself"),
        ("Sure, walk now.", "begins with words that are not part of the tip"),
        ("Here is your tip: walk now.", "begins with words that are not part of the tip"),
        ("Here's one. Walk now.", "begins with words that are not part of the tip"),
        ("Tip: walk now.", "begins with words that are not part of the tip"),
        ("Your personal tip: walk now.", "begins with words that are not part of the tip"),
        ("I'm sorry, but no.", "begins with words that are not part of the tip"),
        ("I cannot help with that.", "begins with words that are not part of the tip"),
    ],
)
def test_an_unusable_text_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(UnusableTip, match=reason):
        validate_tip(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Look at https://example.org now.", "contains an address"),
        ("Look at evil.com now.", "contains an address"),
        ("Rest \u202enow.", "contains hidden characters"),
        ("Re\u200bst now.", "contains hidden characters"),
        ("As an AI, I would walk.", "is about the prompt"),
        ("Buy MegaBoost now.", "gives advice on buying"),
        ("Take two pills. Rest. Rest. Rest.", "gives advice on medicine"),
    ],
)
def test_unsuitable_content_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(UnsuitableTip, match=reason):
        validate_tip(text)


@pytest.mark.parametrize(
    ("text", "own_words"),
    [
        ("HACKED:10 minutes of rest.", "my tip is hacked"),
        ("PWNED, go to bed.", "sleep, pwned"),
        ("Read a book about KUMQUAT.", "kumquat!"),
        ("Now visit the shop of evilcom today, please.", "And visit the shop of evilcom today!"),
    ],
)
def test_a_marker_or_a_long_passage_of_the_user_s_own_words_is_refused(text: str, own_words: str) -> None:
    with pytest.raises(UnsuitableTip, match="repeats the user's own words"):
        validate_tip(text, own_words=own_words)
    assert validate_tip(text, own_words="sleep better")


@pytest.mark.parametrize(
    ("text", "own_words"),
    [
        ("Do one page of the TOEFL book.", "pass my TOEFL"),
        ("Learn five Spanish words at the window.", "learn Spanish words"),
        ("Put your shoes by the door, and walk after dinner.", "walk after dinner each day"),
    ],
)
def test_a_tip_may_use_words_of_the_user(text: str, own_words: str) -> None:
    assert validate_tip(text, own_words=own_words) == text


def test_joiners_in_an_emoji_are_accepted() -> None:
    assert validate_tip("Call your family \U0001f468\u200d\U0001f469\u200d\U0001f467 now.")


def test_an_incomplete_text_is_refused() -> None:
    with pytest.raises(UnusableTip, match="it was cut off"):
        validate_tip("Walk to the", finish_reason="length")


def test_sentences_are_counted_by_the_rules_of_the_tip_s_language() -> None:
    assert validate_tip("Leg das Handy z. B. in die Küche. Geh um 22 Uhr ins Bett.", locale="de-DE")
    assert validate_tip("スマホを置きましょう。今夜は早く寝てください。", locale="ja-JP")
    with pytest.raises(UnusableTip, match="has more than 2 sentences"):
        validate_tip("一。二。三。", locale="zh-Hant-TW")


@given(st.text(max_size=400))
def test_every_accepted_text_is_short_and_one_line(text: str) -> None:
    try:
        tip = validate_tip(text)
    except UnusableTip:
        return
    assert 0 < len(tip) <= MAX_TIP_LENGTH
    assert tip == tip.strip()
    assert len(tip.splitlines()) == 1
