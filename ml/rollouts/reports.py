"""Reports on rollouts: where each one is, what it needs for its next step, and how soon a harm would be found."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from ml.experiments.guardrails import tips_to_detect
from ml.experiments.rollout_state import Kind, Position, RolloutEvent, Stage
from ml.rollouts.evidence import Evidence
from ml.rollouts.gates import GateResult, Step
from ml.rollouts.moves import Move
from ml.store.proposals import Proposal

HARMS = (0.02, 0.05, 0.08)
"""The drops of the mean reward for which reports say how many tips it takes to find them."""


@dataclass(frozen=True, slots=True)
class RolloutReport:
    """Where a rollout is, and what it needs for its next step.

    `position`: None once it has ended, because the version was rolled back or replaced. `move`: the next step; None for
    a champion and a rollout that has ended. `gates`: of that step. `detectable`: sentences on how many tips it takes to
    find a harm at the next share. `events`: of this rollout, the oldest first. `event`: the id of the last one of
    all rollouts, to be passed as `expected`.
    """

    rollout: int
    kind: Kind
    version: str
    digest: str
    stage: Stage
    position: Position | None
    move: Move | None
    gates: tuple[GateResult, ...]
    detectable: tuple[str, ...]
    evidence: Evidence
    events: tuple[RolloutEvent, ...]
    event: int

    @property
    def next_step(self) -> Step | None:
        """The step that a promotion leads to."""
        return self.move.step if self.move else None


@dataclass(frozen=True, slots=True)
class ProposalReport:
    """A proposal whose rollout has not begun, and the gates of its start."""

    proposal: Proposal
    gates: tuple[GateResult, ...]

    @property
    def version(self) -> str:
        return self.proposal.version

    @property
    def can_start(self) -> bool:
        return all(gate.passed for gate in self.gates)


@dataclass(frozen=True, slots=True)
class RolloutOverview:
    """All rollouts.

    `champions`: by kind. `open`: those in shadow and the canaries. `proposals`: of batch jobs. `ended`: the last event
    of each other rollout, the newest first. `not_gated`: sentences about what rollouts do not decide. `model`: of
    serving, as last recorded; "" before. `event`: the id of the last event, to be passed as `expected`.
    """

    champions: Mapping[Kind, Position]
    open: tuple[RolloutReport, ...]
    proposals: tuple[ProposalReport, ...]
    ended: tuple[RolloutEvent, ...]
    not_gated: tuple[str, ...]
    model: str
    model_since: float
    event: int


def detectable_harms(baseline: float | None, share: float) -> tuple[str, ...]:
    """Return sentences on how many tips it takes to find a harm of each size of `HARMS` at a share.

    `baseline`: the mean reward of the champion; None if it is not known.
    """
    if share >= 1:
        return ("A champion is compared with nothing: a later harm is not found by itself.",)
    if baseline is None:
        return ("The champion has no mature tips here yet, so it is not known how many tips it takes to find a harm.",)
    sentences = []
    for harm in HARMS:
        harmed = baseline - harm
        if harmed < 0:
            continue
        needed = _tips_to_detect(round(baseline, 3), round(harmed, 3), share)
        tips = "more than a million tips" if needed is None else f"about {_rounded(needed):,} tips"
        sentences.append(
            f"At a share of {share:.0%}, a drop of the mean reward from {baseline:.1%} to {harmed:.1%} is found after "
            f"{tips} with a probability of 90 %."
        )
    return tuple(sentences)


# It takes 40 ms, and the mean reward changes slowly.
@lru_cache(maxsize=1024)
def _tips_to_detect(baseline: float, harmed: float, share: float) -> int | None:
    return tips_to_detect(baseline, harmed, share)


def _rounded(number: int) -> int:
    """Round to two significant digits, which avoids false precision."""
    return round(number, -max(0, len(str(number)) - 2))
