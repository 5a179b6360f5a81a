"""The state of rollouts as a fold over their events, and the share of tips that each version gets. Pure.

A prompt version or a ranking policy moves through the stages `registered`, `shadow`, `canary` and `champion`, or back.
Each move is an event of an append-only log. The state after an event is the fold over all events up to it, so every
stored tip, which has the id of the event that decided it, can be checked against the shares of that moment.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

Kind = Literal["prompt", "policy", "model"]
"""The subject of an event: a prompt version, a ranking policy, or the language model of serving.

A model has no stages: its events say that it was changed, which begins a new evidence window.
"""

Stage = Literal["registered", "shadow", "canary", "champion"]

STAGES: tuple[Stage, ...] = ("registered", "shadow", "canary", "champion")

Action = Literal["start", "promote", "ramp", "pause", "resume", "rollback", "initial", "change"]
"""`start`: to shadow. `promote`: to the next stage. `ramp`: another share of the canary. `pause`: nothing promotes the
version until `resume`; its share stays. `rollback`: to registered; a champion is replaced by the previous one.
`initial`: the first champion, from the environment. `change`: of the model, in the environment.
"""


@dataclass(frozen=True, slots=True)
class RolloutEvent:
    """One event of the log.

    `id`: 1, 2, 3, … over all kinds. `at`: in Unix seconds. `rollout`: the id of the event with which this journey of
    the version began. `digest`: of a prompt version; of a policy, its version; of a model, empty. `share`: of the tips
    in `segment` (empty: of all tips), in [0, 1]. `gated`: all gates had passed. `evidence`: the figures it rests on.
    """

    id: int
    at: float
    rollout: int
    kind: Kind
    version: str
    digest: str
    action: Action
    from_stage: Stage
    to_stage: Stage
    share: float = 0.0
    segment: str = ""
    paused: bool = False
    gated: bool = False
    actor: str = ""
    reason: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The versions that serving has.

    `model`: the id of the first language model. `prompts`: from each prompt version to its digest. `policies`: from the
    version of each loaded ranking policy to its name. The defaults are those of requests that name none.
    """

    model: str
    default_prompt_version: str
    prompts: Mapping[str, str]
    default_policy: str
    policies: Mapping[str, str]

    def lists(self, kind: Kind, version: str, digest: str) -> bool:
        """Return whether serving has this version, a prompt version with this digest."""
        if kind == "prompt":
            return self.prompts.get(version) == digest
        return kind == "model" or version in self.policies


@dataclass(frozen=True, slots=True)
class Position:
    """Where a version is: its stage, and the events that brought it there.

    `rollout`: the id of the event with which this journey began. `event`: the id of its last event. `stage_event`,
    `stage_since`: the id and the time of the event with which this stage began. `started`: the time of the first one.
    """

    kind: Kind
    version: str
    digest: str
    stage: Stage
    share: float
    segment: str
    paused: bool
    rollout: int
    event: int
    stage_event: int
    stage_since: float
    started: float


@dataclass(frozen=True, slots=True)
class Track:
    """The positions of all versions of one kind.

    `champion`: its position; None before the first one. `champion_event`: the id of the event that last changed the
    champion. `previous`: earlier champions, the newest last. `positions`: by rollout, of the versions in the stages
    `shadow` and `canary`. `event`: the id of the last event of this kind; 0 without any.
    """

    champion: Position | None = None
    champion_event: int = 0
    previous: tuple[Position, ...] = ()
    positions: Mapping[int, Position] = field(default_factory=lambda: MappingProxyType({}))
    event: int = 0

    @property
    def canaries(self) -> list[Position]:
        """The canaries, in the order in which their rollouts began."""
        return [position for position in self.positions.values() if position.stage == "canary"]

    @property
    def shadows(self) -> list[Position]:
        """The versions in shadow, in the order in which their rollouts began."""
        return [position for position in self.positions.values() if position.stage == "shadow"]

    def shares(self, segments: Collection[str] = ()) -> dict[str, float]:
        """Return the probability of each version for a user in these segments; empty without a champion.

        A canary with a segment of its own gets nothing of other users. The champion, which comes first, gets the rest.
        """
        if self.champion is None:
            return {}
        shares = {self.champion.version: 0.0}
        for canary in self.canaries:
            if canary.share > 0 and (not canary.segment or canary.segment in segments):
                shares[canary.version] = shares.get(canary.version, 0.0) + canary.share
        total = sum(shares.values())
        if total >= 1:  # only several canaries together can exceed it
            return {version: share / total for version, share in shares.items() if share > 0}
        shares[self.champion.version] += 1 - total
        return shares


@dataclass(frozen=True, slots=True)
class RolloutState:
    """The state after an event: one track for prompt versions, one for ranking policies, and the language model.

    `event`: the id of the last event; 0 without any. `model_since`: the time of the last change of the model, in Unix
    seconds; 0 without any.
    """

    prompt: Track = Track()
    policy: Track = Track()
    model: str = ""
    model_since: float = 0.0
    event: int = 0

    def track(self, kind: Kind) -> Track:
        """Return the track of prompt versions or of ranking policies."""
        return self.prompt if kind == "prompt" else self.policy

    def position(self, rollout: int) -> Position | None:
        """Return the position of a rollout that has not ended: in shadow, canary or champion."""
        for track in (self.prompt, self.policy):
            found = track.positions.get(rollout)
            if found is None and track.champion and track.champion.rollout == rollout:
                found = track.champion
            if found:
                return found
        return None


def fold(events: Iterable[RolloutEvent]) -> RolloutState:
    """Return the state after events, which are in the order of their ids."""
    state = RolloutState()
    for event in events:
        if event.kind == "model":
            state = replace(state, model=event.version, model_since=event.at, event=event.id)
        elif event.kind == "prompt":
            state = replace(state, prompt=_advance(state.prompt, event), event=event.id)
        else:
            state = replace(state, policy=_advance(state.policy, event), event=event.id)
    return state


def effective(events: Sequence[RolloutEvent], catalogue: Catalogue) -> RolloutState:
    """Return the state that can be served: an event takes effect once serving lists its version.

    Events that take a version out of use always take effect.
    """
    return fold(
        event
        for event in events
        if event.to_stage == "registered" or catalogue.lists(event.kind, event.version, event.digest)
    )


def _advance(track: Track, event: RolloutEvent) -> Track:
    earlier = track.positions.get(event.rollout)
    if earlier is None and track.champion and track.champion.rollout == event.rollout:
        earlier = track.champion
    is_same_stage = earlier is not None and earlier.stage == event.to_stage
    position = Position(
        kind=event.kind,
        version=event.version,
        digest=event.digest,
        stage=event.to_stage,
        share=event.share,
        segment=event.segment,
        paused=event.paused,
        rollout=event.rollout,
        event=event.id,
        stage_event=earlier.stage_event if earlier and is_same_stage else event.id,
        stage_since=earlier.stage_since if earlier and is_same_stage else event.at,
        started=earlier.started if earlier else event.at,
    )
    positions = {rollout: each for rollout, each in track.positions.items() if rollout != event.rollout}
    champion, champion_event, previous = track.champion, track.champion_event, track.previous
    if event.to_stage == "champion":
        if champion and champion.rollout != event.rollout:
            previous = (*previous, champion)
        champion, champion_event = position, event.id
    elif champion and champion.rollout == event.rollout:
        champion, previous = (previous[-1], previous[:-1]) if previous else (None, ())
        champion_event = event.id
    else:
        previous = tuple(each for each in previous if each.rollout != event.rollout or event.to_stage != "registered")
    if event.to_stage in {"shadow", "canary"}:
        positions = dict(sorted({**positions, event.rollout: position}.items()))
    return Track(champion, champion_event, previous, MappingProxyType(positions), event.id)
