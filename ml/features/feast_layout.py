"""The layout in which Feast keeps features in Redis, so that it and this project read the same values.

One hash for each user. Its key is Feast's serialized entity key (version 3) with the name of the project; a field is
the murmur3 hash of `VIEW:FEATURE`, and its value a `ValueProto`; the field `_ts:VIEW` is the time as of which the
features of that view were computed, a `Timestamp`. There is one feature view for each aggregate. Of both protobuf
messages only a few bytes occur, which are written and read here, since serving does not import Feast.

Sources: Feast 0.67, `feast/infra/online_stores/redis.py`, `feast/infra/key_encoding_utils.py`,
`protos/feast/types/Value.proto`; https://protobuf.dev/programming-guides/encoding/.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import mmh3

from ml.features.definitions import AGGREGATES

PROJECT = "tips"
ENTITY = "user_id"

_STRING = 2
"""`ValueType.STRING`."""
_DOUBLE_TAG = b"\x29"
"""Field 5 of `Value`, `double_val`, eight bytes."""
_SECONDS_TAG, _NANOSECONDS_TAG = 0x08, 0x10
"""Fields 1 and 2 of `Timestamp`, varints."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def feature_view(aggregate: str) -> str:
    """Return the name of the feature view of an aggregate, whose only feature has the aggregate's name."""
    return f"user_{aggregate}"


def _value_field(aggregate: str) -> bytes:
    return struct.pack("<I", mmh3.hash(f"{feature_view(aggregate)}:{aggregate}", signed=False))


def _text(value: bytes) -> bytes:
    return struct.pack("<II", _STRING, len(value)) + value


VALUE_FIELDS: Mapping[str, bytes] = {name: _value_field(name) for name in AGGREGATES}
"""The field with the value of each aggregate."""

TIME_FIELDS: Mapping[str, bytes] = {name: f"_ts:{feature_view(name)}".encode() for name in AGGREGATES}
"""The field with the time of each aggregate."""

FIELDS: Sequence[bytes] = (*VALUE_FIELDS.values(), *TIME_FIELDS.values())

_KEY_PREFIX = struct.pack("<I", 1) + _text(ENTITY.encode())
_KEY_SUFFIX = PROJECT.encode()

KEY_PATTERN = _KEY_PREFIX + b"*" + _KEY_SUFFIX
"""A pattern of Redis' SCAN for the keys of users; other keys may match it, too: see `is_user_key`."""


def user_key(user_id: str) -> bytes:
    """Return the key of the hash of a user."""
    return _KEY_PREFIX + _text(user_id.encode()) + _KEY_SUFFIX


def is_user_key(key: bytes) -> bool:
    """Return whether a key that matches `KEY_PATTERN` is that of a user of this project."""
    rest = key[len(_KEY_PREFIX) :]
    if len(rest) < struct.calcsize("<II"):
        return False
    value_type, length = struct.unpack_from("<II", rest)
    return value_type == _STRING and rest[struct.calcsize("<II") + length :] == _KEY_SUFFIX


def encode_aggregates(values: Mapping[str, float], computed_at: datetime) -> dict[bytes, bytes]:
    """Return the fields of a hash and their contents."""
    time = encode_time(computed_at)
    fields = {VALUE_FIELDS[name]: _DOUBLE_TAG + struct.pack("<d", value) for name, value in values.items()}
    return fields | {TIME_FIELDS[name]: time for name in values}


def decode_aggregates(contents: Sequence[bytes | None]) -> Iterator[tuple[str, float, datetime]]:
    """Yield name, value and time of the aggregates in the contents of `FIELDS`; those that are null are left out."""
    n = len(AGGREGATES)
    for name, value, time in zip(AGGREGATES, contents[:n], contents[n:], strict=True):
        number, computed_at = decode_value(value), decode_time(time)
        if number is not None and computed_at is not None:
            yield name, number, computed_at


def decode_value(content: bytes | None) -> float | None:
    """Return the number of a `ValueProto`; None if it has none that is a double, as the null of Feast."""
    if content is None or len(content) != len(_DOUBLE_TAG) + 8 or not content.startswith(_DOUBLE_TAG):
        return None
    (value,) = struct.unpack_from("<d", content, len(_DOUBLE_TAG))
    return float(value)


def encode_time(at: datetime) -> bytes:
    """Return a `Timestamp` of microseconds. A field that is 0 is left out."""
    seconds, microseconds = divmod((at - _EPOCH) // timedelta(microseconds=1), 1_000_000)
    fields = {_SECONDS_TAG: seconds, _NANOSECONDS_TAG: microseconds * 1_000}
    return b"".join(bytes([tag]) + _encode_varint(number) for tag, number in fields.items() if number)


@lru_cache(maxsize=64)  # all users of a batch have the same
def decode_time(content: bytes | None) -> datetime | None:
    """Return the time of a `Timestamp` in whole microseconds; None for no or other content."""
    if content is None:
        return None
    fields, position = {_SECONDS_TAG: 0, _NANOSECONDS_TAG: 0}, 0
    try:
        while position < len(content):
            tag = content[position]
            fields[tag], position = _decode_varint(content, position + 1)
        return _EPOCH + timedelta(seconds=fields[_SECONDS_TAG], microseconds=fields[_NANOSECONDS_TAG] // 1_000)
    except (IndexError, OverflowError):
        return None


def _encode_varint(number: int) -> bytes:
    """Return a number of at least 0 as groups of seven bits, the lowest first; all but the last have the bit 0x80."""
    groups = bytearray()
    while number >= 0x80:  # noqa: PLR2004
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def _decode_varint(content: bytes, position: int) -> tuple[int, int]:
    """Return the number at `position`, and the position after it. Raises IndexError if it has no end."""
    number, shift = 0, 0
    while (group := content[position]) & 0x80:
        number |= (group & 0x7F) << shift
        position, shift = position + 1, shift + 7
    return number | group << shift, position + 1
