"""Events of rollouts for tests: made in one line, and appended to the log of a database."""

import asyncio
import random
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from ml.experiments.rollout_state import RolloutEvent, RolloutState, fold
from ml.store.database import Database as Store
from ml.store.rollouts import NewRolloutEvent, RolloutLog
from ml.store.tip_dimensions import Row
from tests.databases import Database
from tests.example_tips import DIGEST, NOW


def move(version: str, to_stage: str, **fields: Any) -> NewRolloutEvent:
    """Return an event that moves a prompt version, or the version of another `kind`, to a stage."""
    digest = DIGEST if fields.get("kind", "prompt") == "prompt" else version
    values: dict[str, Any] = {
        "at": NOW,
        "kind": "prompt",
        "digest": digest,
        "action": "promote",
        "from_stage": "registered",
        "actor": "a test",
        "reason": "a reason",
    }
    return NewRolloutEvent(version=version, to_stage=to_stage, **values | fields)  # type: ignore[arg-type]


async def append(store: Store, *events: NewRolloutEvent) -> list[RolloutEvent]:
    """Append events after the last one."""
    log = RolloutLog(store)
    known = await log.events()
    last = known[-1].id if known else 0
    return [await log.append(event, expected=last + number) for number, event in enumerate(events)]


def append_to(database: Database, *events: NewRolloutEvent) -> list[RolloutEvent]:
    """Append events to the log of a database that is open elsewhere."""

    async def run() -> list[RolloutEvent]:
        store = Store(database.url)
        try:
            return await append(store, *events)
        finally:
            await store.close()

    return asyncio.run(run())


def random_move(state: RolloutState, versions: Sequence[str], rng: random.Random, **fields: Any) -> NewRolloutEvent:
    """Return a random move of a prompt version that the state allows: of a canary, of the champion, or a new canary."""
    track = state.prompt
    if track.champion is None:
        return move(versions[0], "champion", **fields)
    if canaries := track.canaries:
        canary = rng.choice(canaries)
        of_canary = {"rollout": canary.rollout, "from_stage": "canary", "segment": canary.segment, **fields}
        match rng.choice(("ramp", "champion", "rollback")):
            case "ramp":
                return move(canary.version, "canary", action="ramp", share=rng.choice((0.25, 0.5, 1.0)), **of_canary)
            case "champion":
                return move(canary.version, "champion", share=1.0, **of_canary)
        return move(canary.version, "registered", action="rollback", **of_canary)
    if track.previous and rng.random() < 0.25:
        champion = {"rollout": track.champion.rollout, "from_stage": "champion", **fields}
        return move(track.champion.version, "registered", action="rollback", **champion)
    version = rng.choice([version for version in versions if version != track.champion.version])
    segment = rng.choice(("", "", "locale:de"))
    return move(version, "canary", share=rng.choice((0.05, 0.25, 0.5)), segment=segment, **fields)


def wrong_versions(tips: Iterable[Row], events: Sequence[RolloutEvent]) -> list[Row]:
    """Return the tips that the event which decided them does not allow.

    `tips`: rows of `tip_scores`, with `options` and `segments` parsed. A tip is allowed if its version has a share
    after the event, with this digest, and if its options are the shares of that moment for the segments of its user.
    """

    @lru_cache
    def after(event_id: int) -> RolloutState:
        return fold(event for event in events if event.id <= event_id)

    def is_allowed(tip: Row) -> bool:
        track = after(tip["prompt_event"]).prompt
        version, options = tip["prompt_version"], tip["options"]
        positions = [*track.canaries, *([track.champion] if track.champion else [])]
        known = {(position.version, position.digest) for position in positions}
        return bool(
            options == track.shares(tip["segments"])
            and options.get(version, 0) > 0
            and tip["probability"] == options[version]
            and version == tip["prompt_version_asked"]
            and (version, tip["prompt_digest"]) in known
        )

    return [tip for tip in tips if tip["prompt_event"] is None or not is_allowed(tip)]
