"""The feature types of text: of free text, which is data about the user, and of tips."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field

from ml.features.feature_types import Floats, NotEncoded, Values
from ml.features.free_text import quote_free_text, remove_hidden_characters
from ml.features.topics import TOPICS, topic_matrix


class FreeText(ABC):
    """A feature type whose values are free text: data about the user, never instructions to the model.

    Hidden characters are removed when a request is read, so nothing stores, shows or logs them.
    """

    __slots__ = ()

    @abstractmethod
    def texts(self, value: Any) -> Sequence[str]:
        """Return the texts of a value."""


@dataclass(frozen=True, slots=True)
class Text(FreeText):
    """Free text of at most `max_length` characters."""

    max_length: int

    @property
    def annotation(self) -> Any:
        return Annotated[str, Field(max_length=self.max_length), AfterValidator(remove_hidden_characters)]

    def texts(self, value: str) -> Sequence[str]:
        return (value,)

    def words(self, value: str) -> str:
        return quote_free_text(value, self.max_length)

    def columns(self, name: str) -> tuple[str, ...]:
        return tuple(f"{name}~{topic}" for topic in TOPICS)

    def numbers(self, values: Values) -> Floats:
        """Return the topics of each text; nothing else of a user's text is encoded."""
        return topic_matrix(values)


@dataclass(frozen=True, slots=True)
class Texts(NotEncoded, FreeText):
    """At most `max_items` free texts of at most `max_length` characters each."""

    max_items: int
    max_length: int

    @property
    def annotation(self) -> Any:
        item = Annotated[str, Field(max_length=self.max_length), AfterValidator(remove_hidden_characters)]
        return Annotated[tuple[item, ...], Field(max_length=self.max_items, strict=False)]

    def texts(self, value: Sequence[str]) -> Sequence[str]:
        return value

    def words(self, value: Sequence[str]) -> str:
        quoted = (quote_free_text(text, self.max_length) for text in value[: self.max_items])
        return ", ".join(text for text in quoted if text)


@dataclass(frozen=True, slots=True)
class TipText(Text):
    """The text of a tip, encoded as its length and its topics."""

    def columns(self, name: str) -> tuple[str, ...]:
        return (f"length({name})/{self.max_length}", *Text.columns(self, name))

    def numbers(self, values: Values) -> Floats:
        lengths = [len(text) / self.max_length if isinstance(text, str) else math.nan for text in values]
        return np.column_stack((lengths, topic_matrix(values)))
