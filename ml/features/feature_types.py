"""The kinds of things that can be known: how each is validated, put into words, and made into numbers.

`numbers` is one pure columnar function a kind: the same for one row online, for a million in a batch, and for whatever
engine brings the rows, so its results are equal to the last bit. It therefore uses only operations that IEEE 754
defines exactly (no logarithm, no sine). Missing is None or NaN on the way in and NaN on the way out. A column is named
after what it holds, its scale included: a policy that knows a column's name knows what its numbers mean.
"""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from babel import Locale, UnknownLocaleError
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from ml.features.topics import TOPICS, topics_of

Floats = npt.NDArray[np.float64]
Values = npt.NDArray[Any]
"""A column of values, shape (n,): of dtype object with None for what is missing, or of floats with NaN."""


class FeatureType(Protocol):
    """How a value is validated on the wire, put into words, and made into numbers."""

    @property
    def annotation(self) -> Any:
        """The pydantic type of the value on the wire."""

    def words(self, value: Any) -> str:
        """Put a validated value into the words that fill the signal's sentence."""

    def columns(self, name: str) -> tuple[str, ...]:
        """Name the columns of numbers that values called `name` become; none if nothing is learned from them."""

    def numbers(self, values: Values) -> Floats:
        """Make values into numbers: from shape (n,) to (n, k), a column for each of the `columns`."""


class _NotEncoded:
    """What nothing is learned from."""

    __slots__ = ()

    def columns(self, _: str) -> tuple[str, ...]:
        return ()

    def numbers(self, values: Values) -> Floats:
        return np.empty((len(values), 0))


@dataclass(frozen=True, slots=True)
class Number:
    """A real number in [low, high], counted in `unit` (singular)."""

    low: float
    high: float
    unit: str

    @property
    def annotation(self) -> Any:
        bounds = Field(ge=self.low, le=self.high, allow_inf_nan=False, json_schema_extra={"x-unit": self.unit})
        return Annotated[float, bounds]

    def words(self, value: float) -> str:
        return _quantity(f"{value + 0.0:.6g}", self.unit)

    def columns(self, name: str) -> tuple[str, ...]:
        return (f"{name}/{self.high:g}",)

    def numbers(self, values: Values) -> Floats:
        return _floats(values)[:, None] / self.high


@dataclass(frozen=True, slots=True)
class Integer:
    """A whole number in [low, high], counted in `unit` (singular)."""

    low: int
    high: int
    unit: str

    @property
    def annotation(self) -> Any:
        bounds = Field(ge=self.low, le=self.high, json_schema_extra={"x-unit": self.unit})
        return Annotated[int, bounds, BeforeValidator(_integral)]

    def words(self, value: int) -> str:
        return _quantity(str(value), self.unit)

    def columns(self, name: str) -> tuple[str, ...]:
        return (f"sqrt({name}/{self.high})",)

    def numbers(self, values: Values) -> Floats:
        """Counts have long tails, so the root of the share."""
        roots: Floats = np.sqrt(_floats(values)[:, None] / self.high)
        return roots


@dataclass(frozen=True, slots=True)
class Rating:
    """A whole number from 1 to `top` that says how much of something there is."""

    top: int

    @property
    def annotation(self) -> Any:
        return Annotated[int, Field(ge=1, le=self.top), BeforeValidator(_integral)]

    def words(self, value: int) -> str:
        return f"{value} out of {self.top}"

    def columns(self, name: str) -> tuple[str, ...]:
        return (f"{name}/{self.top}",)

    def numbers(self, values: Values) -> Floats:
        return _floats(values)[:, None] / self.top


@dataclass(frozen=True, slots=True)
class Category:
    """One of a few categories, each with the words it reads as."""

    options: Mapping[str, str]

    @property
    def annotation(self) -> Any:
        return Literal[tuple(self.options)]

    def words(self, value: str) -> str:
        return self.options[value]

    def columns(self, name: str) -> tuple[str, ...]:
        return tuple(f"{name}={option}" for option in self.options)

    def numbers(self, values: Values) -> Floats:
        place = {option: index for index, option in enumerate(self.options)}
        return _one_hot([place.get(value, _MISSING) for value in values], len(place))


@dataclass(frozen=True, slots=True)
class Text:
    """Free text of at most `longest` characters: data about the person, never instructions to the model."""

    longest: int

    @property
    def annotation(self) -> Any:
        return Annotated[str, Field(max_length=self.longest)]

    def words(self, value: str) -> str:
        return quote_free_text(value, self.longest)

    def columns(self, name: str) -> tuple[str, ...]:
        return tuple(f"{name}~{topic}" for topic in TOPICS)

    def numbers(self, values: Values) -> Floats:
        """Say which topics each text names; nothing else of people's own words becomes a number."""
        return np.array([_topics(text) for text in values]).reshape(len(values), len(TOPICS))


@dataclass(frozen=True, slots=True)
class Texts(_NotEncoded):
    """At most `most` free texts of at most `longest` characters each."""

    most: int
    longest: int

    @property
    def annotation(self) -> Any:
        item = Annotated[str, Field(max_length=self.longest)]
        return Annotated[tuple[item, ...], Field(max_length=self.most, strict=False)]

    def words(self, value: Sequence[str]) -> str:
        return ", ".join(text for text in (quote_free_text(item, self.longest) for item in value[: self.most]) if text)


@dataclass(frozen=True, slots=True)
class TimeOfDay:
    """A local time of day, 24-hour `HH:MM`."""

    @property
    def annotation(self) -> Any:
        return Annotated[str, Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$", max_length=5)]

    def words(self, value: str) -> str:
        return value

    def columns(self, name: str) -> tuple[str, ...]:
        return tuple(f"{name}={part}" for part in _PARTS_OF_DAY)

    def numbers(self, values: Values) -> Floats:
        """Say which quarter of the day it is."""
        quarters = [int(time[:2]) // 6 if isinstance(time, str) else _MISSING for time in values]
        return _one_hot(quarters, len(_PARTS_OF_DAY))


@dataclass(frozen=True, slots=True)
class Language(_NotEncoded):
    """A BCP 47 locale such as `de-DE`, put into words as the language's English name (Unicode CLDR)."""

    @property
    def annotation(self) -> Any:
        form = Field(min_length=2, max_length=20, pattern=r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*$")
        return Annotated[str, form, AfterValidator(_known_locale)]

    def words(self, value: str) -> str:
        return Locale.parse(value, sep="-").get_display_name("en") or value


@dataclass(frozen=True, slots=True)
class PromptVersion:
    """The name of a prompt version; of those in `known`, something can be learned."""

    known: tuple[str, ...] = ()

    @property
    def annotation(self) -> Any:
        return Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]

    def words(self, value: str) -> str:
        return value

    def columns(self, name: str) -> tuple[str, ...]:
        return tuple(f"{name}={version}" for version in self.known)

    def numbers(self, values: Values) -> Floats:
        place = {version: index for index, version in enumerate(self.known)}
        return _one_hot([place.get(value, _MISSING) for value in values], len(place))


@dataclass(frozen=True, slots=True)
class TipText(Text):
    """The text of a tip: how long it is, and its topics."""

    def columns(self, name: str) -> tuple[str, ...]:
        return (f"length({name})/{self.longest}", *Text.columns(self, name))

    def numbers(self, values: Values) -> Floats:
        lengths = [len(text) / self.longest if isinstance(text, str) else math.nan for text in values]
        rows = [[length, *_topics(text)] for length, text in zip(lengths, values, strict=True)]
        return np.array(rows).reshape(len(values), 1 + len(TOPICS))


_MISSING = -1
"""The place of what is missing, and of what has no place."""
_PARTS_OF_DAY = ("night", "morning", "afternoon", "evening")


def _floats(values: Values) -> Floats:
    return np.asarray(values, np.float64)


def _one_hot(places: Sequence[int], k: int) -> Floats:
    """A one at each place, shape (n, k); all NaN where the place is `_NOWHERE`."""
    numbers: Floats = _table(k)[[*places]]
    return numbers


@cache
def _table(k: int) -> Floats:
    """What each place looks like, and in the last row `_NOWHERE`."""
    return np.vstack((np.eye(k), np.full(k, np.nan)))


def _topics(text: Any) -> list[float]:
    """A one for each topic that a text names; all NaN for no text."""
    if not isinstance(text, str):
        return [math.nan] * len(TOPICS)
    row = [0.0] * len(TOPICS)
    for place in topics_of(text):
        row[place] = 1.0
    return row


_DOUBLE_QUOTES = re.compile('["\u00ab\u00bb\u201c-\u201f\u2033\u2036\u275d\u275e\u301d-\u301f\uff02]')


def quote_free_text(text: str, longest: int) -> str:
    """Delimit free text as data: one line, at most `longest` characters, between the only two double quotes in it.

    Control, format and line-separating characters become spaces and every kind of double quote becomes an apostrophe,
    so that no text can close its own quotation. Returns "" when nothing visible is left.
    """
    visible = "".join(" " if unicodedata.category(c) in _INVISIBLE else c for c in text)
    line = _DOUBLE_QUOTES.sub("'", " ".join(visible.split()))[:longest].strip()
    return f'"{line}"' if line else ""


# Control, format (bidirectional overrides, zero-width), surrogate, private-use and unassigned characters, and
# separators of lines and paragraphs.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def _quantity(number: str, unit: str) -> str:
    return f"{number} {unit}" if number == "1" else f"{number} {unit}s"


def _integral(value: Any) -> Any:
    """JSON has one kind of number: 7.0 is the whole number 7."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _known_locale(value: str) -> str:
    try:
        Locale.parse(value, sep="-")
    except (UnknownLocaleError, ValueError) as error:
        raise PydanticCustomError("unknown_locale", "should be a BCP 47 locale such as en-GB or de-DE") from error
    return value
