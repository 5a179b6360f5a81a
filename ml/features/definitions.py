"""The signals: everything a caller may tell us about a person, in one dict.

Each entry says what type and range a signal has and how it reads in a sentence. The wire model, the OpenAPI schema,
the command line and the prompt are all derived from it, so adding a signal is adding an entry.

How a released signal reads is part of what every released prompt version says to the model: change the wording only
together with a new prompt version.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal, Protocol

from babel import Locale, UnknownLocaleError
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError


class Kind(Protocol):
    """How a signal is validated on the wire and put into words."""

    @property
    def annotation(self) -> Any:
        """The pydantic type of the value on the wire."""

    def words(self, value: Any) -> str:
        """Put a validated value into the words that fill the signal's sentence."""


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


@dataclass(frozen=True, slots=True)
class Whole:
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


@dataclass(frozen=True, slots=True)
class Scale:
    """A whole number from 1 to `top` that says how much of something there is."""

    top: int

    @property
    def annotation(self) -> Any:
        return Annotated[int, Field(ge=1, le=self.top), BeforeValidator(_integral)]

    def words(self, value: int) -> str:
        return f"{value} out of {self.top}"


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few categories, each with the words it reads as."""

    options: Mapping[str, str]

    @property
    def annotation(self) -> Any:
        return Literal[tuple(self.options)]

    def words(self, value: str) -> str:
        return self.options[value]


@dataclass(frozen=True, slots=True)
class Text:
    """Free text of at most `longest` characters: data about the person, never instructions to the model."""

    longest: int

    @property
    def annotation(self) -> Any:
        return Annotated[str, Field(max_length=self.longest)]

    def words(self, value: str) -> str:
        return quoted(value, self.longest)


@dataclass(frozen=True, slots=True)
class Texts:
    """At most `most` free texts of at most `longest` characters each."""

    most: int
    longest: int

    @property
    def annotation(self) -> Any:
        item = Annotated[str, Field(max_length=self.longest)]
        return Annotated[tuple[item, ...], Field(max_length=self.most, strict=False)]

    def words(self, value: Sequence[str]) -> str:
        return ", ".join(text for text in (quoted(item, self.longest) for item in value[: self.most]) if text)


@dataclass(frozen=True, slots=True)
class Clock:
    """A local time of day, 24-hour `HH:MM`."""

    @property
    def annotation(self) -> Any:
        return Annotated[str, Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$", max_length=5)]

    def words(self, value: str) -> str:
        return value


@dataclass(frozen=True, slots=True)
class Language:
    """A BCP 47 locale such as `de-DE`, put into words as the language's English name (Unicode CLDR)."""

    @property
    def annotation(self) -> Any:
        form = Field(min_length=2, max_length=20, pattern=r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*$")
        return Annotated[str, form, AfterValidator(_known_locale)]

    def words(self, value: str) -> str:
        return Locale.parse(value, sep="-").get_display_name("en") or value


@dataclass(frozen=True, slots=True)
class Signal:
    """One thing we may know about a person: its kind, and the sentence its words go into."""

    kind: Kind
    sentence: str


SIGNALS: Mapping[str, Signal] = MappingProxyType(
    {
        "goal": Signal(Text(200), "My goal, in my own words: {}."),
        "mood": Signal(
            Choice({"great": "great", "good": "good", "okay": "okay", "low": "low", "awful": "awful"}),
            "My mood is {}.",
        ),
        "energy": Signal(Scale(10), "My energy is {}."),
        "stress": Signal(Scale(10), "My stress is {}."),
        "sleep_hours": Signal(Number(0, 24, "hour"), "I slept {} last night."),
        "steps_today": Signal(Whole(0, 200_000, "step"), "I have walked {} today."),
        "minutes_since_break": Signal(Whole(0, 1_440, "minute"), "My last break was {} ago."),
        "open_tasks": Signal(Whole(0, 1_000, "open task"), "I have {}."),
        "meetings_left_today": Signal(Whole(0, 50, "meeting"), "I have {} left today."),
        "streak_days": Signal(Whole(0, 36_500, "day"), "I have kept up my habit for {} in a row."),
        "days_since_last_visit": Signal(Whole(0, 36_500, "day"), "I was last here {} ago."),
        "activity": Signal(
            Choice(
                {
                    "working": "working",
                    "sitting": "sitting down",
                    "walking": "walking",
                    "exercising": "exercising",
                    "commuting": "commuting",
                    "eating": "having a meal",
                    "relaxing": "relaxing",
                    "in_bed": "in bed",
                }
            ),
            "Right now I am {}.",
        ),
        "local_time": Signal(Clock(), "It is {} now."),
        "weekday": Signal(
            Choice(
                {
                    day.lower(): day
                    for day in ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
                }
            ),
            "Today is {}.",
        ),
        "locale": Signal(Language(), "I read {}."),
        "recent_tips": Signal(Texts(5, 280), "You already told me {}, so tell me something else."),
    }
)


def segments(signals: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the groups of people that validated `signals` put somebody in: each category, and the language.

    Such as `mood:low` and `locale:de`, in the order of `SIGNALS`; there are few of each, so groups can be counted.
    """
    found = []
    for name, signal in SIGNALS.items():
        value = signals.get(name)
        if value is not None and isinstance(signal.kind, Choice):
            found.append(f"{name}:{value}")
        elif value is not None and isinstance(signal.kind, Language):
            found.append(f"{name}:{Locale.parse(value, sep='-').language}")
    return tuple(found)


_DOUBLE_QUOTES = re.compile('["\u00ab\u00bb\u201c-\u201f\u2033\u2036\u275d\u275e\u301d-\u301f\uff02]')


def quoted(text: str, longest: int) -> str:
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
