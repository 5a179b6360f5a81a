"""The fold over the events of rollouts: shares, stages, champions and what can be served."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.experiments.rollout_state import (
    Action,
    Catalogue,
    Kind,
    Position,
    RolloutEvent,
    RolloutState,
    Stage,
    Track,
    effective,
    fold,
)

VERSIONS = ("v1", "v2", "v3", "v4")
SEGMENTS = ("", "locale:de", "mood:low")
KINDS: tuple[Kind, ...] = ("prompt", "policy")
HOUR = 3600.0


def catalogue(versions: Sequence[str] = VERSIONS, digest: str = "d") -> Catalogue:
    """Return a catalogue in which these prompt versions and ranking policies are listed."""
    return Catalogue("m", "v1", dict.fromkeys(versions, digest), "uniform", dict.fromkeys(versions, "name"))


class Log:
    """Events that are appended one hour after the other, each with the stage that its rollout is in."""

    def __init__(self) -> None:
        self.events: list[RolloutEvent] = []

    @property
    def state(self) -> RolloutState:
        return fold(self.events)

    def append(
        self,
        action: Action,
        version: str,
        to_stage: Stage,
        share: float = 0.0,
        *,
        rollout: int | None = None,
        kind: Kind = "prompt",
        **fields: object,
    ) -> RolloutEvent:
        number = len(self.events) + 1
        position = self.state.position(rollout) if rollout else None
        event = RolloutEvent(
            id=number,
            at=number * HOUR,
            rollout=rollout or number,
            kind=kind,
            version=version,
            digest=version if kind == "policy" else "d",
            action=action,
            from_stage=position.stage if position else "registered",
            to_stage=to_stage,
            share=share,
            **fields,  # type: ignore[arg-type]
        )
        self.events.append(event)
        return event

    def move(self, position: Position, action: Action, to_stage: Stage, share: float, *, paused: bool = False) -> None:
        """Append an event of an open rollout."""
        self.append(
            action,
            position.version,
            to_stage,
            share,
            rollout=position.rollout,
            kind=position.kind,
            segment=position.segment,
            paused=paused,
        )


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """Events as operators can cause them: any version starts, and each open rollout moves to any stage or back."""
    log = Log()
    for _ in range(draw(st.integers(1, 14))):
        kind = draw(st.sampled_from(KINDS))
        track = log.state.track(kind)
        opened = [*track.positions.values(), *([track.champion] if track.champion else [])]
        if not opened or draw(st.integers(0, 2)) == 0:
            version = draw(st.sampled_from(VERSIONS))
            if track.champion is None:
                log.append("initial", version, "champion", kind=kind)
            else:
                log.append("start", version, "shadow", kind=kind, segment=draw(st.sampled_from(SEGMENTS)))
            continue
        position = draw(st.sampled_from(opened))
        share = draw(st.sampled_from((0.01, 0.05, 0.25, 0.5, 0.9, 1.0)))
        match draw(st.sampled_from(("promote", "champion", "pause", "rollback"))):
            case "promote" if position.stage != "champion":
                log.move(position, "ramp" if position.stage == "canary" else "promote", "canary", share)
            case "champion" if position.stage == "canary":
                log.move(position, "promote", "champion", 0.0)
            case "pause":
                log.move(position, "pause", position.stage, position.share, paused=True)
            case _:
                log.move(position, "rollback", "registered", 0.0)
    return log


def check_shares(track: Track, segments: Sequence[str]) -> None:
    shares = track.shares(segments)
    if track.champion is None:
        assert shares == {}
        return
    assert sum(shares.values()) == pytest.approx(1)
    assert all(0 < share <= 1 or version == track.champion.version for version, share in shares.items())
    assert min(shares.values()) >= 0
    allowed = {canary.version for canary in track.canaries if canary.segment in ("", *segments)}
    assert {*shares} <= {track.champion.version} | allowed


@given(logs(), st.lists(st.sampled_from(SEGMENTS[1:]), unique=True))
def test_shares_are_a_distribution_over_the_champion_and_its_canaries(log: Log, segments: list[str]) -> None:
    for length in range(1, len(log.events) + 1):
        state = fold(log.events[:length])
        assert state.event == length
        for kind in KINDS:
            check_shares(state.track(kind), segments)


@given(logs())
def test_a_position_has_the_stage_and_the_time_of_the_events_of_its_rollout(log: Log) -> None:
    state = log.state
    for track in (state.prompt, state.policy):
        assert [*track.positions] == sorted(track.positions)
        for position in [*track.positions.values(), *([track.champion] if track.champion else []), *track.previous]:
            own = [event for event in log.events if event.rollout == position.rollout]
            last, first_of_stage = own[-1], own[-1]
            for event in reversed(own):
                if event.to_stage != position.stage:
                    break
                first_of_stage = event
            assert (position.event, position.stage, position.paused) == (last.id, last.to_stage, last.paused)
            assert (position.stage_event, position.stage_since) == (first_of_stage.id, first_of_stage.at)
            assert (position.rollout, position.started) == (own[0].id, own[0].at)
        for rollout in {event.rollout for event in log.events}:
            found = state.position(rollout)
            assert found is None or found.rollout == rollout


@given(logs())
def test_the_rollback_of_a_champion_restores_the_previous_one(log: Log) -> None:
    for track in (log.state.prompt, log.state.policy):
        champion = track.champion
        if champion is None:
            continue
        log.move(champion, "rollback", "registered", 0.0)
        after = log.state.track(champion.kind)
        assert after.champion == (track.previous[-1] if track.previous else None)
        assert after.previous == track.previous[:-1]
        assert after.champion_event == len(log.events)
        assert after.positions == track.positions


@given(logs(), st.sets(st.sampled_from(VERSIONS)), st.sampled_from(SEGMENTS))
def test_only_versions_that_serving_lists_are_served(log: Log, listed: set[str], segment: str) -> None:
    state = effective(log.events, catalogue(sorted(listed)))
    for track in (state.prompt, state.policy):
        assert {*track.shares([segment])} <= listed
        assert {position.version for position in track.shadows} <= listed
    assert effective(log.events, catalogue()) == log.state
    assert effective(log.events, catalogue(digest="another")).prompt.champion is None
    assert effective(log.events, catalogue(digest="another")).policy == log.state.policy


def test_what_takes_a_version_out_of_use_has_effect_though_serving_does_not_list_it() -> None:
    log = Log()
    log.append("initial", "v1", "champion")
    start = log.append("start", "v2", "shadow")
    log.append("promote", "v2", "canary", 0.5, rollout=start.id)
    assert effective(log.events, catalogue(["v1"])).prompt.shares() == {"v1": 1.0}
    log.append("rollback", "v2", "registered", rollout=start.id)
    log.append("start", "v3", "shadow")
    state = effective(log.events, catalogue(["v1", "v2"]))
    assert (state.prompt.shares(), [*state.prompt.positions]) == ({"v1": 1.0}, [])
    # Once serving lists the version, its events have effect.
    assert [position.version for position in effective(log.events, catalogue()).prompt.shadows] == ["v3"]


def test_a_canary_with_a_segment_is_drawn_for_users_in_the_segment_only() -> None:
    log = Log()
    log.append("initial", "v1", "champion")
    german = log.append("start", "v2", "shadow", segment="locale:de")
    log.append("promote", "v2", "canary", 0.25, rollout=german.id, segment="locale:de")
    everyone = log.append("start", "v3", "shadow")
    log.append("promote", "v3", "canary", 0.5, rollout=everyone.id)
    track = log.state.prompt
    assert track.shares(["mood:low", "locale:de"]) == {"v1": 0.25, "v2": 0.25, "v3": 0.5}
    assert track.shares(["mood:low"]) == track.shares() == {"v1": 0.5, "v3": 0.5}
    assert [canary.version for canary in track.canaries] == ["v2", "v3"]


def test_canaries_whose_shares_exceed_all_tips_share_them() -> None:
    log = Log()
    log.append("initial", "v1", "champion")
    for version, share in (("v2", 0.9), ("v3", 0.6)):
        start = log.append("start", version, "shadow")
        log.append("promote", version, "canary", share, rollout=start.id)
    assert log.state.prompt.shares() == pytest.approx({"v2": 0.6, "v3": 0.4})


def test_a_canary_of_the_champions_own_version_leaves_a_distribution() -> None:
    log = Log()
    log.append("initial", "v1", "champion")
    start = log.append("start", "v1", "shadow")
    log.append("promote", "v1", "canary", 0.25, rollout=start.id)
    assert log.state.prompt.shares() == {"v1": 1.0}


def test_a_change_of_the_model_is_dated_and_moves_no_version() -> None:
    log = Log()
    log.append("initial", "v1", "champion")
    before = log.state
    assert (before.model, before.model_since) == ("", 0.0)
    event = log.append("change", "openai/other", "registered", kind="model")
    state = log.state
    assert (state.model, state.model_since, state.event) == ("openai/other", event.at, 2)
    assert state == replace(before, model="openai/other", model_since=event.at, event=2)
