"""Segments: groups of users by one signal, such as `mood:low`; few enough to be counted."""

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from babel import Locale

from ml.features.definitions import SIGNALS
from ml.features.feature_types import PARTS_OF_DAY, Category, FeatureType, Language, TimeOfDay, part_of_day
from ml.platform.errors import FieldError, UnprocessableRequest

_LANGUAGE = re.compile("[a-z]{2,3}")


def _values(type_: FeatureType) -> tuple[str, ...] | None:
    match type_:
        case Category():
            return tuple(type_.options)
        case TimeOfDay():
            return PARTS_OF_DAY
        case Language():
            return ()
    return None


SEGMENT_VALUES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {name: values for name, signal in SIGNALS.items() if (values := _values(signal.type)) is not None}
)
"""The signals that users are grouped by, each with its values; without values, it is the language."""


def segments(signals: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the segments of the user with these validated `signals`, in the order of `SIGNALS`.

    One for each category, one for the language, and one for the part of the day, such as `mood:low`, `locale:de` and
    `local_time:morning`.
    """
    found = []
    for name in SEGMENT_VALUES:
        value = signals.get(name)
        if value is not None:
            match SIGNALS[name].type:
                case Language():
                    value = _language(value)
                case TimeOfDay():
                    value = part_of_day(value)
            found.append(f"{name}:{value}")
    return tuple(found)


def check_segment(segment: str, known: Mapping[str, tuple[str, ...]] = SEGMENT_VALUES) -> None:
    """Raise UnprocessableRequest, which names what is allowed, for a segment that no user can be in.

    `known`: as `SEGMENT_VALUES`.
    """
    name, _, value = segment.partition(":")
    values = known.get(name, ())
    is_language = name in known and not values and _LANGUAGE.fullmatch(value)
    if value not in values and not is_language:
        allowed = tuple(f"{name}:{each}" for each in values) or tuple(f"{each}:…" for each in known)
        detail = f"should be one of {', '.join(allowed)}" + ("" if values else ", such as locale:de")
        raise UnprocessableRequest(f"The segment {detail}.", errors=[FieldError("#/segment", detail, allowed)])


@lru_cache(maxsize=1_024)
def _language(locale: str) -> str:
    """Return the language of a locale. Parsing takes 15 µs, and a log has few locales."""
    return Locale.parse(locale, sep="-").language
