import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.platform.errors import UnusableTip
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
def test_a_good_tip_is_returned_as_it_is(text: str) -> None:
    assert validate_tip(f"  {text}\n") == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("Walk. " * 60, "longer than 280"),
        ("One. Two. Three.", "more than 2 sentences"),
        ("Walk now.\nThen rest.", "more than one line"),
        ('"Walk now."', "quotation marks"),
        ("\u201cWalk now.\u201d", "quotation marks"),
        ("**Walk** now.", "markup"),
        ("# Walk now.", "markup"),
        ("- Walk now.", "markup"),
        ("1. Walk now.", "markup"),
        ("Walk `now`.", "markup"),
        ("Walk <b>now</b>.", "markup"),
        ("Walk [now](x).", "markup"),
        ("Look at https://example.org now.", "markup"),
        ("Call 1-800-273-8255 now.", "telephone"),
        ("Call +49 (0)800 1110111 now.", "telephone"),
        ("Call 1-press-press-press now.", "repeats itself"),
        ("Rest now, rest now, rest now, and more.", "repeats itself"),
        ("深めましょう．深めましょう．深めましょう．", "repeats itself"),
        ("Take a bath for" + " " * 60 + "now.", "repeats itself"),
        ("Sure, walk now.", "begins with"),
        ("Here is your tip: walk now.", "begins with"),
        ("Here's one. Walk now.", "begins with"),
        ("Tip: walk now.", "begins with"),
        ("Your personal tip: walk now.", "begins with"),
        ("As an AI, I would walk.", "begins with"),
        ("I'm sorry, but no.", "begins with"),
        ("I cannot help with that.", "begins with"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(UnusableTip, match=why):
        validate_tip(text)


def test_a_text_that_was_cut_off_is_refused() -> None:
    with pytest.raises(UnusableTip, match="cut off"):
        validate_tip("Walk to the", finish_reason="length")


def test_sentences_are_counted_in_the_tip_s_own_language() -> None:
    assert validate_tip("Leg das Handy z. B. in die Küche. Geh um 22 Uhr ins Bett.", locale="de-DE")
    assert validate_tip("スマホを置きましょう。今夜は早く寝てください。", locale="ja-JP")
    with pytest.raises(UnusableTip, match="sentences"):
        validate_tip("一。二。三。", locale="zh-Hant-TW")


@given(st.text(max_size=400))
def test_whatever_passes_is_short_plain_and_one_line(text: str) -> None:
    try:
        tip = validate_tip(text)
    except UnusableTip:
        return
    assert 0 < len(tip) <= MAX_TIP_LENGTH
    assert tip == tip.strip()
    assert len(tip.splitlines()) == 1
