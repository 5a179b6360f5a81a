"""The whole loop on running services: simulate, train, shadow, canary, champion, and a change for the worse.

Users with a low mood like tips of v2-mentor, all others those of v1. A policy learns that from the decisions of uniform
ranking, and reaches all users through all gates with their default bounds. A policy that has learned the opposite is
refused, and is rolled back by the monitor when an operator forces it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from ml.experiments.assignment import hash_to_unit_interval
from ml.experiments.decisions import InMemoryDecisionLog
from ml.experiments.rollout_state import RolloutEvent
from ml.pipelines.training import train
from ml.platform.errors import RolloutRefused
from ml.recommender.serving_client import ServingClient
from ml.recommender.settings import RecommenderSettings
from ml.registry.artifacts import RankingPolicy
from ml.rollouts.gate_settings import GateSettings
from ml.rollouts.operations import Rollouts
from ml.standalone.app import create_app
from ml.store.tips import TipStore, open_tip_store
from tests.conftest import becomes_ready, eventually, of_model
from tests.databases import Database
from tests.example_tips import WINDOW, SetClock
from tests.fixtures import ON_SQLITE
from tests.offline import exported, logged_decisions
from tests.server import running
from tests.upstream import Upstream

T = TypeVar("T")

USERS = 80
LIKED, OTHER = 0.7, 0.1
"""The probability that a tip of the version that the user likes helps, and of the other one."""


class Loop:
    """The services on one database, its users and an operator."""

    def __init__(self, database: Database, upstream: Upstream, clock: SetClock) -> None:
        self.database = database
        self.upstream = upstream
        self.clock = clock
        self.tips = 0

    def services(self, *policies: Path) -> Any:
        """Run both services with these ranking policies, without an interval between checks."""
        serving = of_model(
            self.upstream, "good", score_policies=tuple(map(str, policies)), card_contact="ml@example.org"
        )
        settings = RecommenderSettings(
            database_url=self.database.url,
            tip_prompt_version=(("v1", 1.0), ("v2-mentor", 1.0)),
            tip_candidates=2,
            rollout_shadow_share=1.0,
        )
        return running(create_app(serving, settings, clock=self.clock, refresh_seconds=0.2, poll_seconds=0.2))

    def traffic(self, http: httpx.Client, days: int, per_day: int) -> None:
        """Let users ask for tips, and react to those that help them."""
        with ThreadPoolExecutor(4) as threads:
            for _ in range(days):
                numbers = range(self.tips, self.tips + per_day)
                self.tips += per_day
                assert [*threads.map(lambda number: self._visit(http, number), numbers)]
                self.clock.go(days=1)

    def _visit(self, http: httpx.Client, number: int) -> bool:
        user = number % USERS
        mood, liked = ("low", "v2-mentor") if user % 2 else ("great", "v1")
        body = {"user_id": f"u{user}", "signals": {"mood": mood, "locale": "en"}}
        tip = http.post("/tips", json=body).raise_for_status().json()
        probability = LIKED if tip["prompt_version"] == liked else OTHER
        if hash_to_unit_interval("helps", str(number)) < probability:
            reaction = {"tip_id": tip["tip_id"], "reaction": "helpful"}
            http.post("/reactions", json=reaction).raise_for_status()
        return True

    def in_store(self, work: Callable[[TipStore], Awaitable[T]]) -> T:
        async def open_and_work() -> T:
            async with open_tip_store(self.database.url, self.clock, reaction_window=WINDOW) as store:
                return await work(store)

        return asyncio.run(open_and_work())

    def operate(self, url: str, work: Callable[[Rollouts], Awaitable[T]]) -> T:
        """Let an operator work with the rollouts, with the default bounds of the gates."""

        async def with_rollouts(store: TipStore) -> T:
            async with httpx.AsyncClient(base_url=url) as http:
                serving = ServingClient(http, timeout=30)
                rollouts = Rollouts(
                    store,
                    catalogue=serving.catalogue,
                    cards=serving.cards,
                    clock=self.clock,
                    exposure_reported=False,
                    settings=GateSettings(),
                )
                return await work(rollouts)

        return self.in_store(with_rollouts)


def promoted(loop: Loop, url: str, rollout: int, share: float, **options: Any) -> RolloutEvent:
    return loop.operate(
        url, lambda rollouts: rollouts.promote(rollout, actor="ada", reason="Its gates pass.", share=share, **options)
    )


def started(loop: Loop, url: str, version: str) -> int:
    work = loop.operate(url, lambda rollouts: rollouts.start("policy", version, actor="ada", reason="Learned."))
    return work.rollout


def trained(loop: Loop, file: Path, *, inverted: bool = False) -> str:
    """Train a policy on all decisions, or on the opposite of their rewards; return its version."""
    decisions = logged_decisions(exported(loop.database.url, file.parent), before=loop.clock() - WINDOW)
    if inverted:
        decisions = [replace(each, reward=1 - each.reward) for each in decisions]
    file.write_bytes(train(InMemoryDecisionLog(decisions)))
    return RankingPolicy.from_bytes(file.read_bytes()).version


def events(http: httpx.Client, rollout: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = http.get(f"/rollouts/{rollout}").raise_for_status().json()["events"]
    return found


def is_followed(loop: Loop, http: httpx.Client, policy: str) -> bool:
    """Wait until tips are ranked by a policy."""

    def ranked() -> bool:
        tip = http.post("/tips", json={"user_id": "visitor"}).raise_for_status().json()
        (row,) = loop.database.rows(
            f"SELECT score_policy_version AS v FROM tip_scores WHERE tip_id = '{tip['tip_id'].replace('-', '')}'"
        )
        return bool(row["v"] == policy)

    return eventually(ranked)


@ON_SQLITE
def test_a_learned_policy_reaches_all_users_and_a_worse_one_is_rolled_back(
    database: Database, upstream: Upstream, clock: SetClock, tmp_path: Path
) -> None:
    loop = Loop(database, upstream, clock)
    with loop.services() as url, httpx.Client(base_url=url, timeout=60) as http:
        assert becomes_ready(http)
        loop.traffic(http, days=14, per_day=32)
    clock.go(days=1)
    files = tmp_path / "good.npz", tmp_path / "bad.npz"
    good, bad = trained(loop, files[0]), trained(loop, files[1], inverted=True)

    with loop.services(*files) as url, httpx.Client(base_url=url, timeout=60) as http:
        assert becomes_ready(http)
        rollout = started(loop, url, good)
        with pytest.raises(RolloutRefused, match="The gate shadow_decisions fails"):
            promoted(loop, url, rollout, 0.5)
        assert eventually(lambda: http.get("/rollouts").json()["open"] != [])
        loop.traffic(http, days=2, per_day=270)
        while database.count("shadow_rankings") < 500:  # on a busy machine some decisions are dropped
            loop.traffic(http, days=1, per_day=50)
        clock.go(hours=25)
        assert promoted(loop, url, rollout, 0.5).gated
        assert is_followed(loop, http, good)
        loop.traffic(http, days=2, per_day=170)
        clock.go(hours=25)
        assert promoted(loop, url, rollout, 1.0).gated

        worse = started(loop, url, bad)
        with pytest.raises(RolloutRefused):
            promoted(loop, url, worse, 0.5)
        assert not promoted(loop, url, worse, 0.5, force=True).gated
        assert is_followed(loop, http, bad)
        loop.traffic(http, days=1, per_day=200)
        clock.go(hours=25)
        assert eventually(lambda: events(http, worse)[-1]["action"] == "rollback")

        assert [(each["action"], each["actor"]) for each in events(http, worse)] == [
            ("start", "ada"),
            ("promote", "ada"),
            ("rollback", "monitor"),
        ]
        assert events(http, worse)[-1]["reason"].startswith("The gate no_loss fails.")
        champions = {each["kind"]: each["version"] for each in http.get("/rollouts").json()["champions"]}
        assert champions == {"policy": good}
        assert is_followed(loop, http, good)
