"""The feature types: how the values of each type are validated, worded in prompts, and encoded as columns of numbers.

`numbers` is one pure columnar function for each type. The same function encodes one row online and a million rows in a
batch, whichever engine reads them, so the results are equal to the last bit. It therefore uses only operations that
IEEE 754 defines exactly (no logarithm, no sine). A missing value is None or NaN in the input and NaN in the output. The
name of a column includes its scale, so that a policy that knows the name knows the meaning of the numbers. The types of
text are in `text_types.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt
from babel import Locale, UnknownLocaleError
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

Floats = npt.NDArray[np.float64]
Values = Sequence[Any] | npt.NDArray[Any]
"""A column of n values: with None for missing values, or an array of floats with NaN."""


class FeatureType(Protocol):
    """The validation, the wording and the encoding of a feature's values."""

    @property
    def annotation(self) -> Any:
        """The pydantic type of a value in a request."""

    def words(self, value: Any) -> str:
        """Return the wording of a validated value, for the signal's sentence."""

    def columns(self, name: str) -> tuple[str, ...]:
        """Return the names of the columns of the feature `name`; none if policies do not learn from it."""

    def numbers(self, values: Values) -> Floats:
        """Encode values of shape (n,) as numbers of shape (n, k), k the number of `columns`."""


class NotEncoded:
    """A feature type without columns."""

    __slots__ = ()

    def columns(self, _: str) -> tuple[str, ...]:
        return ()

    def numbers(self, values: Values) -> Floats:
        return np.empty((len(values), 0))


class ScaledNumber(ABC):
    """A feature type whose values are numbers, encoded as one column: their share of `scale`, or the root of it."""

    __slots__ = ()

    is_root: ClassVar[bool] = False

    @property
    @abstractmethod
    def scale(self) -> float:
        """The largest value."""

    def columns(self, name: str) -> tuple[str, ...]:
        scale = self.scale
        share = f"{name}/{scale:g}" if isinstance(scale, float) else f"{name}/{scale}"
        return (f"sqrt({share})" if self.is_root else share,)

    def numbers(self, values: Values) -> Floats:
        return scaled_numbers([values], [self])


def scaled_numbers(columns: Sequence[Values], feature_types: Sequence[ScaledNumber]) -> Floats:
    """Encode the columns of k features of n values, shape (n, k), in one pass: for one row, numpy's calls cost most."""
    shares: Floats = np.array(columns, np.float64).T / [type_.scale for type_ in feature_types]
    np.sqrt(shares, out=shares, where=[type_.is_root for type_ in feature_types])
    return shares


@dataclass(frozen=True, slots=True)
class Number(ScaledNumber):
    """A real number in [low, high], with its `unit` (singular)."""

    low: float
    high: float
    unit: str

    @property
    def annotation(self) -> Any:
        bounds = Field(ge=self.low, le=self.high, allow_inf_nan=False, json_schema_extra={"x-unit": self.unit})
        return Annotated[float, bounds]

    def words(self, value: float) -> str:
        return _quantity(f"{value + 0.0:.6g}", self.unit)

    @property
    def scale(self) -> float:
        return self.high


@dataclass(frozen=True, slots=True)
class Integer(ScaledNumber):
    """A whole number in [low, high], with its `unit` (singular)."""

    low: int
    high: int
    unit: str

    @property
    def annotation(self) -> Any:
        bounds = Field(ge=self.low, le=self.high, json_schema_extra={"x-unit": self.unit})
        return Annotated[int, bounds, BeforeValidator(_integral)]

    def words(self, value: int) -> str:
        return _quantity(str(value), self.unit)

    # Counts have long tails.
    is_root: ClassVar[bool] = True

    @property
    def scale(self) -> float:
        return self.high


@dataclass(frozen=True, slots=True)
class Rating(ScaledNumber):
    """A whole number from 1 to `highest`."""

    highest: int

    @property
    def annotation(self) -> Any:
        return Annotated[int, Field(ge=1, le=self.highest), BeforeValidator(_integral)]

    def words(self, value: int) -> str:
        return f"{value} out of {self.highest}"

    @property
    def scale(self) -> float:
        return self.highest


@dataclass(frozen=True, slots=True)
class Category:
    """One of a few options, each with its wording."""

    options: Mapping[str, str]

    @property
    def annotation(self) -> Any:
        return Literal[tuple(self.options)]

    def words(self, value: str) -> str:
        return self.options[value]

    def columns(self, name: str) -> tuple[str, ...]:
        return tuple(f"{name}={option}" for option in self.options)

    def numbers(self, values: Values) -> Floats:
        return _one_hot_options(values, tuple(self.options))


@dataclass(frozen=True, slots=True)
class TimeOfDay:
    """A local time of day, 24-hour `HH:MM`."""

    @property
    def annotation(self) -> Any:
        return Annotated[str, Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$", max_length=5)]

    def words(self, value: str) -> str:
        return value

    def columns(self, name: str) -> tuple[str, ...]:
        return tuple(f"{name}={part}" for part in PARTS_OF_DAY)

    def numbers(self, values: Values) -> Floats:
        """Return the quarter of the day."""
        quarters = [_quarter_of_day(time) if isinstance(time, str) else _MISSING for time in values]
        return _one_hot(quarters, len(PARTS_OF_DAY))


@dataclass(frozen=True, slots=True)
class Language(NotEncoded):
    """A BCP 47 locale such as `de-DE`; its wording is the English name of the language (Unicode CLDR)."""

    @property
    def annotation(self) -> Any:
        syntax = Field(
            min_length=2,
            max_length=20,
            pattern=r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*$",
            examples=["en-GB", "de-DE"],
            description="A BCP 47 locale that Unicode CLDR knows; another one is a 422.",
        )
        return Annotated[str, syntax, AfterValidator(_known_locale)]

    def words(self, value: str) -> str:
        return Locale.parse(value, sep="-").get_display_name("en") or value


@dataclass(frozen=True, slots=True)
class PromptVersion:
    """A prompt version; the versions in `known` have columns."""

    known: tuple[str, ...] = ()

    @property
    def annotation(self) -> Any:
        return Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]

    def words(self, value: str) -> str:
        return value

    def columns(self, name: str) -> tuple[str, ...]:
        return tuple(f"{name}={version}" for version in self.known)

    def numbers(self, values: Values) -> Floats:
        return _one_hot_options(values, self.known)


PARTS_OF_DAY = ("night", "morning", "afternoon", "evening")
"""The quarters of a day, from midnight on."""


def part_of_day(time: str) -> str:
    """Return the part of the day of a time `HH:MM`."""
    return PARTS_OF_DAY[_quarter_of_day(time)]


def _quarter_of_day(time: str) -> int:
    return int(time[:2]) // 6


_MISSING = -1
"""The index of a missing value, and of a value that has no index."""


def _one_hot_options(values: Values, options: tuple[str, ...]) -> Floats:
    """Return a column for each option, shape (n, k)."""
    indices = _option_indices(options)
    return _one_hot([indices.get(value, _MISSING) for value in values], len(options))


@cache
def _option_indices(options: tuple[str, ...]) -> Mapping[str, int]:
    return {option: index for index, option in enumerate(options)}


def _one_hot(indices: Sequence[int], k: int) -> Floats:
    """Return the one-hot encoding of indices below `k`, shape (n, k); all NaN where the index is `_MISSING`."""
    numbers: Floats = _one_hot_table(k)[[*indices]]
    return numbers


@cache
def _one_hot_table(k: int) -> Floats:
    """Return the encoding of each index, and, as the last row, that of `_MISSING`."""
    return np.vstack((np.eye(k), np.full(k, np.nan)))


def _quantity(number: str, unit: str) -> str:
    return f"{number} {unit}" if number == "1" else f"{number} {unit}s"


def _integral(value: Any) -> Any:
    """Return 7 for 7.0: JSON does not distinguish integers from other numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _known_locale(value: str) -> str:
    try:
        Locale.parse(value, sep="-")
    except (UnknownLocaleError, ValueError) as error:
        raise PydanticCustomError("unknown_locale", "should be a BCP 47 locale such as en-GB or de-DE") from error
    return value
