"""The selection of the prompt version of each tip by the effective state of rollouts: TIP_PROMPT_POLICY=rollout."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ml.experiments.assignment import hash_to_unit_interval
from ml.experiments.policies import HOLDOUT, POLICIES, ROLLOUT
from ml.experiments.rollout_state import Track
from ml.recommender.live_rollouts import LiveRollouts
from ml.recommender.selection import PromptSelection, VersionSelector

HOLDOUT_SALT = "rollout-holdout"
"""Part of the hash that decides who is held out: another salt would hold out other users."""


@dataclass(frozen=True, slots=True)
class Holdout:
    """The users who always get the control version. `share`: of all users, in [0, 1]."""

    share: float
    control: str

    def includes(self, user_id: str) -> bool:
        """Return whether a user is held out; a larger share includes the users of a smaller one."""
        return hash_to_unit_interval(HOLDOUT_SALT, user_id) < self.share


class RolloutSelector:
    """Draws one prompt version for all candidates of a decision: the champion's or a canary's, by its share."""

    def __init__(self, live: LiveRollouts, before_first: VersionSelector, holdout: Holdout | None) -> None:
        """`before_first`: draws until the first champion is known."""
        self._live = live
        self._before_first = before_first
        self._holdout = holdout

    def select(self, user_id: str, tip_ids: Sequence[str], segments: Collection[str] = ()) -> list[PromptSelection]:
        """Draw from the shares that are effective now; held-out users get the control version."""
        if self._holdout and self._holdout.includes(user_id):
            control = self._holdout.control
            return [PromptSelection(control, HOLDOUT, POLICIES[HOLDOUT].version, {control: 1.0})] * len(tip_ids)
        track = self._live.state.prompt
        if track.champion is None:
            return self._before_first.select(user_id, tip_ids, segments)
        return [
            PromptSelection(
                drawn.option,
                ROLLOUT,
                POLICIES[ROLLOUT].version,
                drawn.distribution,
                drawn.probability,
                event=track.event,
                digest=_digest_of(track, drawn.option),
            )
            for drawn in POLICIES[ROLLOUT].draw(track.shares(segments), user_id, tip_ids)
        ]

    def champion(self) -> PromptSelection | None:
        """Return the selection of the champion, decided by the event that made it one."""
        track = self._live.state.prompt
        if track.champion is None:
            return None
        version, digest = track.champion.version, track.champion.digest
        policy_version = POLICIES[ROLLOUT].version
        return PromptSelection(
            version, ROLLOUT, policy_version, {version: 1.0}, event=track.champion_event, digest=digest
        )


def _digest_of(track: Track, version: str) -> str:
    positions = [*track.canaries, *([track.champion] if track.champion else [])]
    return next(position.digest for position in positions if position.version == version)
