"""The dimensions of a tip: the columns that decide in which counters it counts, and the outcome of its draws. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol

from ml.experiments.policies import POLICIES

UNAVAILABLE = "unavailable"
"""The score policy of a decision whose candidates could not be ranked, so that the first one was shown."""

INDEPENDENT_SCORE_POLICIES = frozenset({None, "uniform", UNAVAILABLE})
"""Score policies under which the choice of a candidate does not depend on its features."""

DrawOutcome = Literal["comparable", "ranked", "not_shown", "per_user", "fallback", "failed"]
"""The outcome of a draw; if several apply, the last one of them.

`comparable`: an independent draw, whose tip was shown. `ranked`: a learned policy chose the tip among candidates.
`not_shown`: another candidate was chosen. `per_user`: the version was drawn for the user, not for this tip. `fallback`:
a fallback model wrote the tip. `failed`: no tip was written.
"""

MIN_OPTIONS = 2
"""A draw from fewer options says nothing about their shares."""


def is_drawn_per_user(policy: str) -> bool:
    """Return whether a prompt policy, by its logged name, draws a version for each user, not for each tip."""
    return policy in POLICIES and POLICIES[policy].per_user


def is_drawn_per_decision(policy: str) -> bool:
    """Return whether a prompt policy, by its logged name, gives all candidates of a decision the same version."""
    return policy in POLICIES and POLICIES[policy].per_decision


class Row(Protocol):
    """Values by column name."""

    def __getitem__(self, name: str, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class TipDimensions:
    """The columns of `tip_scores` that decide where and how a tip is counted."""

    created_at: datetime
    prompt_version: str
    prompt_digest: str
    fallback: bool
    shown: bool
    seen: bool
    simulated: bool
    segments: Sequence[str]
    policy: str
    score_policy: str | None
    prompt_version_asked: str | None
    options: Mapping[str, float]
    policy_asked: str | None
    policy_options: Mapping[str, float] | None
    input_tokens: int
    output_tokens: int
    ms: int

    @classmethod
    def of(cls, row: Row) -> "TipDimensions":
        """Take the columns from a row of `tip_scores`."""
        return cls(**{name: row[name] for name in cls.__slots__})

    @property
    def drawn_version(self) -> str:
        """The prompt version that was drawn; without a draw, the one that serving chose."""
        return self.prompt_version_asked or self.prompt_version

    @property
    def dependent(self) -> bool:
        """Whether the tip is not an independent sample of its prompt version's tips.

        A learned policy chose it among candidates of several versions, so that it is the best of several; or its
        version was drawn per user, so that it is correlated with the user's other tips.
        """
        return is_drawn_per_user(self.policy) or self._is_selected

    @property
    def outcome(self) -> DrawOutcome:
        """The outcome of the draw of the prompt version."""
        if self.fallback:
            return "fallback"
        if is_drawn_per_user(self.policy):
            return "per_user"
        if not self.shown:
            return "not_shown"
        return "ranked" if self._is_selected else "comparable"

    @property
    def is_draw(self) -> bool:
        """Whether the tip counts as a draw of its version: of candidates that were drawn together, the shown one."""
        return self.shown or not is_drawn_per_decision(self.policy)

    @property
    def ranking_outcome(self) -> DrawOutcome | None:
        """The outcome of the draw of the ranking policy; None if it was not drawn from several, and if not shown."""
        if not self.shown or not self.policy_options or len(self.policy_options) < MIN_OPTIONS:
            return None
        if self.fallback:
            return "fallback"
        return "failed" if self.score_policy == UNAVAILABLE else "comparable"

    @property
    def _is_selected(self) -> bool:
        independent = self.score_policy in INDEPENDENT_SCORE_POLICIES or is_drawn_per_decision(self.policy)
        return not independent
