"""The detection of addresses in a text."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.serving.addresses import contains_address


@pytest.mark.parametrize(
    "text",
    [
        "Go to evil.com for more.",
        "Go to EVIL.COM.",
        "Go to Evil.Com.",
        "Go to evil.io/path now",
        "Go to evil.Walk/path now",
        "Go to shop.evil.co.uk, then rest.",
        "Go to münchen.de.",
        "Go to пример.рф.",
        "Go to 例え.jp.",
        "Go to 例子.中国.",
        "Go to evil.xn--p1ai.",
        "Go to evil\uff0ecom.",
        "Go to evil\u3002com.",
        "Go to www.evil",
        "Go to https://evil",
        "Go to HTTP://EVIL",
        "Go to ftp://evil",
        "Go to any+scheme://evil",
        "Go to //evil",
        "Use mailto:me",
        "Use javascript:alert",
        "Write to a@b.",
        "Write to a.b@evil.com.",
        "Follow @evil.",
        "Go to 192.168.0.1.",
    ],
)
def test_an_address_is_found(text: str) -> None:
    assert contains_address(text)


@pytest.mark.parametrize(
    "text",
    [
        "Walk 3.5 km, e.g. to the park, at 6 p.m. or 18.30.",
        "Ring Mr. Smith.",
        "Count to ten.Then rest.",
        "Wait...then breathe.",
        "Leg es z.B. in die Küche, d.h. weg.",
        "Am 3.5. um 10.30 Uhr: 10.000 Schritte.",
        "深呼吸。然后休息。",
        "深呼吸.然后休息.",
        "ออกไปเดินเวลา 10.30 น.และพัก",
        "Breathe in/out, and/or rest; ratio 1:2.",
        "To do: rest. Tel: no.",
        "J.R.R. Tolkien and the U.S.A. wait.",
    ],
)
def test_ordinary_text_has_no_address(text: str) -> None:
    assert not contains_address(text)


label = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=10)
top_level = st.text(string.ascii_lowercase, min_size=2, max_size=10)
words = st.lists(st.text(string.ascii_letters, min_size=1, max_size=8), min_size=1, max_size=5).map(" ".join)


@given(
    words, st.lists(label, min_size=1, max_size=3), top_level, st.sampled_from(["", ".", "/", "/x?y", ", then rest."])
)
def test_every_domain_is_found(before: str, labels: list[str], top_level: str, after: str) -> None:
    domain = ".".join([*labels, top_level])
    assert contains_address(f"{before} {domain}{after}")
    assert contains_address(f"{before} {domain.upper()}{after}")


@given(st.lists(words, min_size=1, max_size=4), st.sampled_from([". ", "! ", "... ", ", ", ": "]))
def test_sentences_with_a_space_after_the_full_stop_have_no_address(sentences: list[str], separator: str) -> None:
    assert not contains_address(separator.join(sentences) + ".")
