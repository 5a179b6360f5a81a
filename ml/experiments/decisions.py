"""A decision as it was logged: what was on offer, with what probability each was taken, and what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LoggedCandidate:
    """One option of a decision.

    `probability`: in (0, 1], with which the live policy took it. `tip`: its text; None where it was never written,
    because the choice was between versions before anything was.
    """

    prompt_version: str
    probability: float
    tip: str | None = None


@dataclass(frozen=True, slots=True)
class LoggedDecision:
    """One choice for one person.

    `id`: what the choice was drawn with. `at`: when, in Unix seconds. `signals`, `aggregates`: what was known of the
    person then. `taken`: the index of the candidate that was shown. `reward`: in [0, 1], 0 for no reaction. `ranked`:
    the candidates are tips that a policy ranked; otherwise they are the versions to choose among.
    """

    id: str
    user_id: str
    at: float
    signals: Mapping[str, Any]
    aggregates: Mapping[str, float]
    candidates: tuple[LoggedCandidate, ...]
    taken: int
    reward: float
    ranked: bool
