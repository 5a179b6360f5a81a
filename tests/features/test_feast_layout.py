"""The bytes that Feast 0.67 writes for the same users, features, values and times."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.features.feast_layout import (
    FIELDS,
    VALUE_FIELDS,
    decode_aggregates,
    decode_time,
    decode_value,
    encode_aggregates,
    encode_time,
    is_user_key,
    user_key,
)

KEYS = {
    "u-1": b"\x01\x00\x00\x00\x02\x00\x00\x00\x07\x00\x00\x00user_id\x02\x00\x00\x00\x03\x00\x00\x00u-1tips",
    "größe": (
        b"\x01\x00\x00\x00\x02\x00\x00\x00\x07\x00\x00\x00user_id\x02\x00\x00\x00\x07\x00\x00\x00gr\xc3\xb6\xc3\x9fetips"
    ),
}
"""The result of `_redis_key` for the project `tips`."""
NOON = datetime(2026, 3, 1, 12, 0, 0, 123_456, tzinfo=UTC)
NOON_BYTES = b"\x08\xc0\xd4\x90\xcd\x06\x10\x80\x94\xef:"


@pytest.mark.parametrize("user_id", KEYS)
def test_the_key_of_a_user_is_feast_s(user_id: str) -> None:
    assert user_key(user_id) == KEYS[user_id]
    assert is_user_key(KEYS[user_id])


@pytest.mark.parametrize(
    "key",
    [
        user_key("u").removesuffix(b"tips") + b"mytips",  # of another project
        user_key("u").removesuffix(b"tips"),
        user_key("u").replace(b"\x01\x00\x00\x00utips", b"\x09\x00\x00\x00utips"),
        user_key("u")[:19] + b"tips",
    ],
)
def test_other_keys_that_match_the_pattern_are_recognised(key: bytes) -> None:
    assert not is_user_key(key)


def test_the_fields_are_feast_s() -> None:
    assert FIELDS == (b"\x8e\x80\x96f", b"C\x81/.", b"_ts:user_reward_rate_30d", b"_ts:user_tips_7d")


def test_the_contents_are_feast_s() -> None:
    assert encode_aggregates({"reward_rate_30d": 0.25, "tips_7d": 0.0}, NOON) == dict(
        zip(
            FIELDS,
            (b")\x00\x00\x00\x00\x00\x00\xd0?", b")\x00\x00\x00\x00\x00\x00\x00\x00", NOON_BYTES, NOON_BYTES),
            strict=True,
        )
    )
    assert encode_time(datetime(2026, 3, 1, tzinfo=UTC)) == b"\x08\x80\x83\x8e\xcd\x06"


@given(
    st.floats(allow_nan=False),
    st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
)
def test_what_is_encoded_is_decoded_exactly(value: float, at: datetime) -> None:
    contents = encode_aggregates({"tips_7d": value}, at)
    assert [*decode_aggregates([contents.get(field) for field in FIELDS])] == [("tips_7d", value, at)]


@pytest.mark.parametrize(
    ("value", "time"),
    [
        (b"", NOON_BYTES),  # the null of Feast
        (None, NOON_BYTES),
        (b"\x20\x03", NOON_BYTES),  # an int64
        (b")\x00\x00\x00\x00\x00\x00\xd0?x", NOON_BYTES),
        (b")\x00\x00\x00\x00\x00\x00\xd0?", None),
        (b")\x00\x00\x00\x00\x00\x00\xd0?", b"\x08"),
        (b")\x00\x00\x00\x00\x00\x00\xd0?", b"\x08\xff\xff"),
        (b")\x00\x00\x00\x00\x00\x00\xd0?", b"\x08" + b"\xff" * 9 + b"\x01"),
    ],
)
def test_an_aggregate_without_a_number_or_a_time_is_missing(value: bytes | None, time: bytes | None) -> None:
    assert [*decode_aggregates([None, value, None, time])] == []


@given(st.binary())
def test_any_bytes_are_a_value_or_none(content: bytes) -> None:
    assert isinstance(decode_value(content), float | None)
    assert isinstance(decode_time(content), datetime | None)


def test_nanoseconds_are_cut_to_microseconds() -> None:
    assert decode_time(b"\x10\xe7\x07") == datetime(1970, 1, 1, tzinfo=UTC)  # 999 ns
    assert decode_time(b"\x10\xe8\x07") == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=1)


def test_each_aggregate_has_a_field_of_its_own() -> None:
    assert len({*FIELDS}) == 2 * len(VALUE_FIELDS)
