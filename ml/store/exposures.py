"""Exposures: reports that a user has seen a tip."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

ExposureOutcome = Literal["recorded", "repeated", "late"]
"""The tip counts as seen; the tip had a report already; or the report came after the reaction window."""

MAX_UNSEEN_REACTIONS = 0.01
"""The share of reactions without an exposure above which exposures must be getting lost."""


@dataclass(frozen=True, slots=True)
class Exposure:
    """A report that a tip was seen. `at`: the time, in UTC, at which the user saw it; None for now."""

    tip_id: UUID
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ExposureResult:
    """The outcome of storing an exposure. `at`: the time in the first report of the tip, which counts."""

    tip_id: UUID
    outcome: ExposureOutcome
    at: datetime
