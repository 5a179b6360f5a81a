"""The moves of rollouts: the next stage and share of a version, and the values that a move accepts. Pure."""

from dataclasses import dataclass

from ml.experiments.rollout_state import Position, Stage
from ml.platform.errors import FieldError, UnprocessableRequest
from ml.rollouts.gates import Step

RAMP = (0.01, 0.05, 0.25, 0.5, 1.0)
"""The shares of a canary, one after the other; the last one is the champion."""

MAX_LENGTHS = {"actor": 128, "reason": 1_000}
"""Of the words of an event, in characters."""


@dataclass(frozen=True, slots=True)
class Move:
    """The next promotion of a rollout: the step, and the stage, share and segment that it leads to."""

    step: Step
    stage: Stage
    share: float
    segment: str


def next_move(position: Position, share: float | None = None) -> Move:
    """Return the next promotion of a version in shadow or of a canary. `share`: by default the next one of `RAMP`.

    The canary of a segment never becomes the champion of everyone at once: after the last share of its segment, it
    begins with the first share of everyone. Raises UnprocessableRequest for a share that is not larger.
    """
    if position.stage == "shadow":
        _check_share(share, above=0.0, with_champion=False)
        return Move("canary", "canary", share or RAMP[0], position.segment)
    if position.segment:
        _check_share(share, above=position.share, with_champion=False)
        larger = share or next((each for each in RAMP[:-1] if each > position.share), None)
        return Move("ramp", "canary", larger or RAMP[0], position.segment if larger else "")
    _check_share(share, above=position.share, with_champion=True)
    larger = share or next(each for each in RAMP if each > position.share)
    return Move("champion", "champion", 1.0, "") if larger == 1 else Move("ramp", "canary", larger, "")


def check_words(**values: str) -> None:
    """Raise UnprocessableRequest unless the actor and the reason say something."""
    for name, value in values.items():
        longest = MAX_LENGTHS[name]
        if not value.strip() or len(value) > longest or not value.isprintable():
            error = FieldError(f"#/{name}", f"should be one line of 1 to {longest:,} characters")
            raise UnprocessableRequest(f"The {name} should be one line of 1 to {longest:,} characters.", errors=[error])


def _check_share(share: float | None, *, above: float, with_champion: bool) -> None:
    if share is None:
        return
    if not above < share <= 1 or (share == 1 and not with_champion):
        allowed = f"above {above:g} and {'at most' if with_champion else 'below'} 1"
        raise UnprocessableRequest(
            f"The share should be {allowed}, not {share:g}.", errors=[FieldError("#/share", f"should be {allowed}")]
        )
