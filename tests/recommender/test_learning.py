"""Policies through HTTP: they learn from what is stored, beside the requests."""

import asyncio
import json
from collections import Counter
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import event

from ml.experiments.assignment import draw_weighted, hash_to_unit_interval
from ml.experiments.statistics import Sample
from ml.platform.telemetry import Telemetry
from ml.recommender.app import running
from ml.recommender.selection import SALT, PromptSelector, keep_learning
from ml.recommender.settings import RecommenderSettings
from ml.store.reactions import Reaction
from ml.store.rollup import hour_of
from ml.store.tips import open_tip_store
from tests.conftest import eventually
from tests.databases import Database, Row
from tests.example_tips import NOW, SetClock, a_tip
from tests.fake_serving import FakeServing
from tests.fixtures import ON_SQLITE, StartRecommender

VERSIONS = "v1,v2-mentor"
BETTER = "v2-mentor"
DAY = timedelta(days=1)


def ask(http: httpx.Client, user_id: str = "u-1") -> dict[str, Any]:
    answer = http.post("/tips", json={"user_id": user_id})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def row_of(tip: dict[str, Any], database: Database) -> Row:
    tip_id = tip["tip_id"].replace("-", "") if database.is_sqlite else tip["tip_id"]
    return database.rows(f"SELECT * FROM tip_scores WHERE tip_id = '{tip_id}'")[0]


def test_thompson_moves_to_the_better_version_when_the_rewards_are_old_enough(
    start_recommender: StartRecommender, database: Database, clock: SetClock
) -> None:
    http = start_recommender(tip_prompt_version=VERSIONS, tip_prompt_policy="thompson")
    equal = pytest.approx({"v1": 0.5, BETTER: 0.5})
    tips = [ask(http) for _ in range(120)]
    reactions = [
        {"tip_id": tip["tip_id"], "reaction": "helpful" if tip["prompt_version"] == BETTER else "not_helpful"}
        for tip in tips
    ]
    assert http.post("/reactions/batch", json={"reactions": reactions}).status_code == 200
    clock.go(hours=23)
    # A recommender that starts now would know of these rewards, if they counted already.
    tip = ask(start_recommender(tip_prompt_version=VERSIONS, tip_prompt_policy="thompson"))
    assert json.loads(row_of(tip, database)["options"]) == equal
    clock.go(hours=3)

    def moved() -> bool:
        tip = ask(http)
        row = row_of(tip, database)
        options = json.loads(row["options"])
        assert (row["policy"], row["prompt_version"]) == ("thompson", tip["prompt_version"])
        assert row["probability"] == options[tip["prompt_version"]]
        assert min(options.values()) >= 0.02
        return bool(options[BETTER] > 0.9)

    assert eventually(moved)
    seen = Counter(ask(http)["prompt_version"] for _ in range(40))
    assert seen[BETTER] > 30


def test_a_recommender_that_starts_knows_the_rewards_before_its_first_tip(
    start_recommender: StartRecommender, database: Database, clock: SetClock
) -> None:
    async def earlier() -> None:
        async with open_tip_store(database.url, clock) as store:
            old = [
                a_tip(created_at=NOW - 2 * DAY, prompt_version=version) for version in ("v1", BETTER) for _ in "x" * 50
            ]
            await asyncio.gather(*(store.add(tip) for tip in old))
            await store.react([Reaction(tip.tip_id, "done") for tip in old if tip.prompt_version == BETTER])

    asyncio.run(earlier())
    tip = ask(start_recommender(tip_prompt_version=VERSIONS, tip_prompt_policy="thompson"))
    assert json.loads(row_of(tip, database)["options"]) == pytest.approx({"v1": 0.02, BETTER: 0.98})


def test_what_versions_have_earned_is_what_people_who_were_shown_them_said(database: Database) -> None:
    async def run() -> dict[str, Sample]:
        async with open_tip_store(database.url, SetClock()) as store:
            for fields in (
                {"prompt_digest": "b" * 64},
                {},
                {"prompt_version": BETTER, "segments": ()},
                {"fallback": True},
                {"shadow": True},
                {"created_at": NOW},
            ):
                tip = a_tip(**{"created_at": NOW - 2 * DAY, **fields})
                await store.add(tip)
                if fields:
                    await store.react([Reaction(tip.tip_id, "saved")])
            return await store.counts.earned(hour_of(NOW - DAY))

    assert asyncio.run(run()) == {"v1": Sample(2, 0.5, 0.25), BETTER: Sample(1, 0.5, 0.25)}


def test_every_choice_is_made_again_from_its_row(start_recommender: StartRecommender, database: Database) -> None:
    for settings in (
        {"tip_prompt_version": VERSIONS},
        {"tip_prompt_version": "v1=3,v2-mentor=1"},
        {"tip_prompt_version": VERSIONS, "tip_prompt_policy": "thompson"},
    ):
        http = start_recommender(**settings)
        for number in range(20):
            ask(http, f"u-{number}")
    for row in database.rows("SELECT tip_id, options, prompt_version_asked, probability FROM tip_scores"):
        again = draw_weighted(json.loads(row["options"]), hash_to_unit_interval(SALT, str(UUID(str(row["tip_id"])))))
        assert again.option == row["prompt_version_asked"]
        assert again.probability == pytest.approx(row["probability"])
    assert database.count("tip_scores") == 60


def test_sticky_gives_people_their_version_again_after_a_restart(
    start_recommender: StartRecommender, database: Database
) -> None:
    settings = {"tip_prompt_version": "v1=60,v2-mentor=40", "tip_prompt_policy": "sticky"}
    people = [f"u-{number}" for number in range(30)]
    first = {user: ask(start_recommender(**settings), user)["prompt_version"] for user in people[:2]}
    http = start_recommender(**settings)
    first |= {user: ask(http, user)["prompt_version"] for user in people[2:]}
    again = start_recommender(**settings)
    assert {user: ask(again, user)["prompt_version"] for user in people} == first
    assert {*first.values()} == {"v1", "v2-mentor"}
    row = row_of(ask(again), database)
    assert (row["policy"], json.loads(row["options"])) == ("sticky", {"v1": 0.6, "v2-mentor": 0.4})
    # One person's tips are one draw: they say nothing of how evenly it is drawn.
    assert database.count("assignment_hours") == 0


def test_a_tip_waits_for_no_query(database: Database, fake_serving: FakeServing, clock: SetClock) -> None:
    statements: list[str] = []

    async def run() -> None:
        settings = RecommenderSettings(
            tip_prompt_version=VERSIONS, tip_prompt_policy="thompson", database_url=database.url
        )
        async with (
            httpx.AsyncClient(base_url=fake_serving.url) as http,
            running(settings, Telemetry(), http, clock=clock) as state,
        ):
            engine = state["tip_scores"].database.engine.sync_engine
            event.listen(engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
            for _ in range(5):
                await state["recommender"].tip("u-1", {})

    asyncio.run(run())
    kinds = {statement.split()[0] for statement in statements} - {"BEGIN", "PRAGMA"}
    assert kinds == {"INSERT"}


@ON_SQLITE
def test_rewards_that_cannot_be_read_leave_those_that_are_known(database: Database, clock: SetClock) -> None:
    async def run() -> None:
        async with open_tip_store(database.url, clock) as store:
            for version in ("v1", BETTER):
                for _ in range(50):
                    await store.add(tip := a_tip(created_at=NOW - 2 * DAY, prompt_version=version))
                    await store.react([Reaction(tip.tip_id, "done")] if version == BETTER else [])
            rotation = PromptSelector([("v1", 1.0), (BETTER, 1.0)], "thompson")
            async with keep_learning(rotation, store, reaction_window=DAY, clock=clock, every=0.01):
                known = rotation.choose("u-1", "tip-1").options
                assert known[BETTER] > 0.9
                database.rows("ALTER TABLE reward_hours RENAME TO gone")
                await asyncio.sleep(0.1)
                assert rotation.choose("u-1", "tip-1").options == known
                database.rows("DELETE FROM gone")
                database.rows("ALTER TABLE gone RENAME TO reward_hours")
                await asyncio.to_thread(eventually, lambda: rotation.choose("u-1", "tip-1").options != known)
                assert rotation.choose("u-1", "tip-1").options == pytest.approx({"v1": 0.5, BETTER: 0.5})

    asyncio.run(run())
