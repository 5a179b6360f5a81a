"""The header Idempotency-Key: which values are accepted, and the hashes of key and body."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel

from ml.platform.errors import InvalidHeader
from ml.platform.idempotency_key import _WIRE_PATTERN, ScopedKey, parse_key

VISIBLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=255)


class Body(BaseModel):
    user_id: str
    signals: dict[str, int] = {}
    mood: str | None = None


def quoted(key: str) -> str:
    return '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'


@given(VISIBLE)
def test_a_key_is_the_same_bare_and_quoted(key: str) -> None:
    assert parse_key(quoted(key)) == key
    if not key.startswith('"'):
        assert parse_key(key) == key


INVALID = [
    "",
    " ",
    '""',
    "a b",
    '"a b"',
    '"a',
    'a"b c',
    '"',
    '"a"b"',
    '"a\\b"',
    '"a";b=1',
    "é",
    "\x7f",
    "a\tb",
    "x" * 256,
]


@pytest.mark.parametrize("value", [*INVALID, quoted("x" * 256)])
def test_any_other_value_is_refused(value: str) -> None:
    with pytest.raises(InvalidHeader, match=r"^Idempotency-Key: should be 1 to 255 visible ASCII characters"):
        parse_key(value)
    assert not re.search(_WIRE_PATTERN, value)


@given(st.from_regex(_WIRE_PATTERN, fullmatch=True) | st.text(st.characters(max_codepoint=0x7F), max_size=6))
@example('"\\"\\\\"')
def test_the_documented_pattern_says_what_is_accepted(value: str) -> None:
    try:
        parse_key(value)
        is_accepted = True
    except InvalidHeader:
        is_accepted = False
    assert is_accepted == bool(re.search(_WIRE_PATTERN.replace("$", r"\Z"), value))


def test_the_hashes_depend_on_the_scope_and_on_the_validated_body_only() -> None:
    key = ScopedKey("/tips", "k-1", "a").with_body(Body(user_id="u-1", signals={"a": 1, "b": 2}))
    same = ScopedKey("/tips", "k-1", "a").with_body(
        Body.model_validate_json('{"signals": {"b": 2,"a": 1}, "mood": null, "user_id":"u-1"}')
    )
    assert key == same
    other_body = ScopedKey("/tips", "k-1", "a").with_body(Body(user_id="u-1"))
    assert (other_body.key_hash == key.key_hash, other_body.body_hash == key.body_hash) == (True, False)
    for scope in (("/reactions", "k-1", "a"), ("/tips", "k-2", "a"), ("/tips", "k-1", "b"), ("/tips", "k-1a", "")):
        other = ScopedKey(*scope).with_body(Body(user_id="u-1", signals={"a": 1, "b": 2}))
        assert other.key_hash != key.key_hash
        assert other.body_hash != key.body_hash
