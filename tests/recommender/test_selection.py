"""The selection of prompt versions: its frequencies, its repetition from stored rows, and learning from rewards."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from scipy.stats import chisquare
from sqlalchemy import event

from ml.experiments.assignment import draw_sticky, draw_systematic, draw_weighted, hash_to_unit_interval
from ml.experiments.policies import SALT
from ml.experiments.statistics import Sample
from ml.experiments.thompson import RewardHistory
from ml.platform.background import BackgroundTasks
from ml.platform.errors import StorageUnavailable
from ml.platform.telemetry import Telemetry
from ml.recommender.app import open_state
from ml.recommender.selection import PromptSelector, keep_learning
from ml.recommender.serving_client import ServingClient
from ml.recommender.settings import RecommenderSettings
from ml.serving.prompts import PROMPTS
from ml.standalone.app import create_app as create_standalone
from ml.store.exposures import Exposure
from ml.store.hours import hour_of
from ml.store.reactions import Reaction
from ml.store.tips import open_tip_store
from tests.conftest import eventually, of_model
from tests.databases import Database, Row
from tests.example_tips import DIGEST, NOW, WINDOW, SetClock, a_tip
from tests.fake_serving import FakeServing
from tests.fixtures import ON_SQLITE, StartRecommender
from tests.server import running
from tests.upstream import Upstream

WEIGHTS = {"v1": 5.0, "v2": 3.0, "v3": 2.0}
EQUAL_WEIGHTS = dict.fromkeys(WEIGHTS, 1.0)

VERSIONS = "v1,v2-mentor"
BETTER = "v2-mentor"
NEW_DIGEST = "b" * 64
DAY = timedelta(days=1)


TIP_IDS = [f"tip-{n}" for n in range(20)]

# Draws


def selectors() -> dict[str, PromptSelector]:
    learned = PromptSelector(EQUAL_WEIGHTS, "thompson")
    learned.learn(RewardHistory({0: {"v1": Sample(100, 30, 30), "v2": Sample(100, 35, 35)}}))
    return {
        "uniform": PromptSelector(EQUAL_WEIGHTS),
        "weighted": PromptSelector(WEIGHTS),
        "sticky": PromptSelector(WEIGHTS, "sticky"),
        "thompson": learned,
        "thompson without rewards": PromptSelector(EQUAL_WEIGHTS, "thompson"),
    }


@pytest.mark.parametrize("name", selectors())
def test_versions_are_drawn_as_often_as_their_propensities_say(name: str) -> None:
    selector = selectors()[name]
    selections = [selector.select(f"u-{n}", [f"tip-{n}"])[0] for n in range(20_000)]
    drawn = Counter(selection.prompt_version for selection in selections)
    expected = [sum(selection.options[version] for selection in selections) for version in WEIGHTS]
    assert chisquare([drawn[version] for version in WEIGHTS], expected).pvalue > 0.001
    for selection in selections:
        assert selection.prompt_version
        assert selection.policy == name.partition(" ")[0]
        assert selection.probability == selection.options[selection.prompt_version]
        assert sum(selection.options.values()) == pytest.approx(1)


@pytest.mark.parametrize("name", selectors())
def test_a_draw_can_be_repeated_from_the_options_and_the_ids(name: str) -> None:
    for _ in range(200):
        user_id, tip_ids = str(uuid4()), [str(uuid4()) for _ in range(3)]
        selections = selectors()[name].select(user_id, tip_ids)
        assert selections == selectors()[name].select(user_id, tip_ids)
        options = selections[0].options
        repeated = (
            [draw_sticky(options, user_id, salt=SALT)] * 3
            if selections[0].policy == "sticky"
            else draw_systematic(options, tip_ids, salt=SALT)
        )
        assert [one.option for one in repeated] == [selection.prompt_version for selection in selections]


@pytest.mark.parametrize(
    ("weights", "policy"), [({}, "serving-default"), ({"v1": 3.0}, "single"), ({"v1": 1.0}, "single")]
)
def test_without_a_choice_the_logged_policy_says_so(weights: Mapping[str, float], policy: str) -> None:
    (selection,) = PromptSelector(weights, "uniform").select("u-1", ["tip-1"])
    assert (selection.policy, selection.probability) == (policy, 1)
    assert selection.options == dict.fromkeys(weights, 1.0)


def test_sticky_keeps_the_version_of_a_user_and_uniform_does_not() -> None:
    sticky, uniform = PromptSelector(WEIGHTS, "sticky"), PromptSelector(WEIGHTS)
    for user_id in [f"u-{n}" for n in range(100)]:
        assert len({one.prompt_version for one in sticky.select(user_id, TIP_IDS)}) == 1
    assert len({one.prompt_version for one in uniform.select("u-1", TIP_IDS)}) == 3


def test_thompson_draws_a_better_version_more_often_and_the_other_versions_at_least_at_the_floor() -> None:
    selector = PromptSelector(EQUAL_WEIGHTS, "thompson")
    assert options(selector) == pytest.approx(dict.fromkeys(EQUAL_WEIGHTS, 1 / 3))
    few = {"v1": Sample(10, 3, 3), "v2": Sample(10, 5, 5), "not configured": Sample(10_000, 9_000, 9_000)}
    selector.learn(RewardHistory({0: few}))
    first = options(selector)
    assert first.keys() == EQUAL_WEIGHTS.keys()
    many = {version: Sample(n.n * 1000, n.total * 1000, n.squares * 1000) for version, n in few.items()}
    selector.learn(RewardHistory({0: many}))
    later = options(selector)
    assert first["v1"] < first["v2"] < later["v2"]
    assert later["v1"] == pytest.approx(0.02, abs=0.01)
    # The third version has no rewards: its effect may be any.
    assert later["v3"] > 0.1


# Through HTTP


def ask(http: httpx.Client, user_id: str = "u-1") -> dict[str, Any]:
    answer = http.post("/tips", json={"user_id": user_id})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def row_of(tip: dict[str, Any], database: Database) -> Row:
    tip_id = tip["tip_id"].replace("-", "") if database.is_sqlite else tip["tip_id"]
    return database.rows(f"SELECT * FROM tip_scores WHERE tip_id = '{tip_id}'")[0]


def test_thompson_moves_to_the_better_version_when_the_tips_are_mature(
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
    # A recommender that starts now would have learned from these rewards if they were used already.
    tip = ask(start_recommender(tip_prompt_version=VERSIONS, tip_prompt_policy="thompson"))
    assert json.loads(row_of(tip, database)["options"]) == equal
    clock.go(hours=3)

    def has_moved() -> bool:
        tip = ask(http)
        row = row_of(tip, database)
        options = json.loads(row["options"])
        assert (row["policy"], row["prompt_version"]) == ("thompson", tip["prompt_version"])
        assert row["probability"] == options[tip["prompt_version"]]
        assert min(options.values()) >= 0.02
        return bool(options[BETTER] > 0.9)

    assert eventually(has_moved, 30)
    drawn = Counter(ask(http)["prompt_version"] for _ in range(40))
    assert drawn[BETTER] > 30


def test_a_recommender_has_learned_from_stored_rewards_before_its_first_tip(
    start_recommender: StartRecommender, database: Database, clock: SetClock
) -> None:
    asyncio.run(store_rewards(database, clock))
    tip = ask(start_recommender(tip_prompt_version=VERSIONS, tip_prompt_policy="thompson"))
    assert json.loads(row_of(tip, database)["options"]) == pytest.approx({"v1": 0.02, BETTER: 0.98})


def test_rewards_under_an_old_digest_do_not_change_the_draws(
    start_recommender: StartRecommender, database: Database, clock: SetClock, fake_serving: FakeServing
) -> None:
    asyncio.run(store_rewards(database, clock))
    fake_serving.digests = dict.fromkeys(fake_serving.digests, NEW_DIGEST)
    http = start_recommender(tip_prompt_version=VERSIONS, tip_prompt_policy="thompson")
    assert json.loads(row_of(ask(http), database)["options"]) == pytest.approx({"v1": 0.5, BETTER: 0.5})
    # The other version wins under the new digest, although it has fewer rewards than the old digests.
    asyncio.run(store_rewards(database, clock, better="v1", digest=NEW_DIGEST, n=40))
    clock.go(hours=1)

    def has_moved() -> bool:
        return bool(json.loads(row_of(ask(http), database)["options"])["v1"] > 0.9)

    assert eventually(has_moved, 30)


@pytest.mark.parametrize(("tip_exposure", "better"), [("assumed", BETTER), ("reported", "v1")])
def test_with_reported_exposures_only_seen_tips_are_learned_from(
    start_recommender: StartRecommender, database: Database, clock: SetClock, tip_exposure: str, better: str
) -> None:
    asyncio.run(store_rewards(database, clock, n=100))
    asyncio.run(store_rewards(database, SetClock(NOW - 2 * DAY), better="v1", n=40, seen=True))
    http = start_recommender(tip_prompt_version=VERSIONS, tip_prompt_policy="thompson", tip_exposure=tip_exposure)
    assert json.loads(row_of(ask(http), database)["options"])[better] > 0.9


def test_every_draw_can_be_repeated_from_its_row(start_recommender: StartRecommender, database: Database) -> None:
    for settings in (
        {"tip_prompt_version": VERSIONS},
        {"tip_prompt_version": "v1=3,v2-mentor=1"},
        {"tip_prompt_version": VERSIONS, "tip_prompt_policy": "thompson"},
    ):
        http = start_recommender(**settings)
        for number in range(20):
            ask(http, f"u-{number}")
    for row in database.rows("SELECT tip_id, options, prompt_version_asked, probability FROM tip_scores"):
        repeated = draw_weighted(json.loads(row["options"]), hash_to_unit_interval(SALT, str(UUID(str(row["tip_id"])))))
        assert repeated.option == row["prompt_version_asked"]
        assert repeated.probability == pytest.approx(row["probability"])
    assert database.count("tip_scores") == 60


def test_sticky_keeps_the_versions_of_users_after_a_restart(
    start_recommender: StartRecommender, database: Database
) -> None:
    settings = {"tip_prompt_version": "v1=60,v2-mentor=40", "tip_prompt_policy": "sticky"}
    users = [f"u-{number}" for number in range(30)]
    first = {user: ask(start_recommender(**settings), user)["prompt_version"] for user in users[:2]}
    http = start_recommender(**settings)
    first |= {user: ask(http, user)["prompt_version"] for user in users[2:]}
    restarted = start_recommender(**settings)
    assert {user: ask(restarted, user)["prompt_version"] for user in users} == first
    assert {*first.values()} == {"v1", "v2-mentor"}
    row = row_of(ask(restarted), database)
    assert (row["policy"], json.loads(row["options"])) == ("sticky", {"v1": 0.6, "v2-mentor": 0.4})
    # All tips of a user are one draw, so they are not part of the sample-ratio test.
    assert {row["outcome"] for row in database.rows("SELECT outcome FROM draw_hours")} == {"per_user"}


def test_a_tip_causes_no_query_but_for_earlier_tips_of_its_user(
    database: Database, fake_serving: FakeServing, clock: SetClock
) -> None:
    statements: list[str] = []

    async def run() -> None:
        settings = RecommenderSettings(
            tip_prompt_version=VERSIONS, tip_prompt_policy="thompson", database_url=database.url
        )
        async with (
            httpx.AsyncClient(base_url=fake_serving.url) as http,
            open_state(settings, Telemetry(), http, clock=clock, poll_seconds=3600) as state,
        ):
            engine = state["tip_store"].database.engine.sync_engine
            event.listen(engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
            for _ in range(5):
                await state["recommender"].tip("u-1", {})

    asyncio.run(run())
    commands = {statement.split()[0] for statement in statements} - {"BEGIN", "PRAGMA"}
    assert commands == {"INSERT", "SELECT"}
    # Once, the monitor looks whether there are rollouts, and the metrics whether there is a report of a batch job.
    once = ("rollout_events", "batch_reports")
    selects = {each for each in statements if each.startswith("SELECT")}
    (look_up,) = {each for each in selects if not any(table in each for table in once)}
    assert "tip_scores.user_id" in look_up
    assert statements.count(look_up) == 5


@ON_SQLITE
@pytest.mark.parametrize("digests", [{name: prompt.digest for name, prompt in PROMPTS.items()}, None])
def test_standalone_learns_from_rewards_under_the_digests_of_its_own_serving(
    upstream: Upstream, database: Database, clock: SetClock, digests: Mapping[str, str] | None
) -> None:
    asyncio.run(store_rewards(database, clock, digests=digests))
    settings = RecommenderSettings(
        tip_prompt_version=VERSIONS, tip_prompt_policy="thompson", database_url=database.url, api_keys="k-1"
    )
    app = create_standalone(of_model(upstream, "good", api_keys="k-1"), settings, clock=clock)
    with running(app) as url, httpx.Client(base_url=url, headers={"Authorization": "Bearer k-1"}, timeout=60) as http:
        learned = json.loads(row_of(ask(http), database)["options"])
    assert learned == pytest.approx({"v1": 0.02, BETTER: 0.98} if digests else {"v1": 0.5, BETTER: 0.5})


# Learning


def test_rewards_are_those_of_shown_mature_tips_per_day_version_and_digest(database: Database) -> None:
    async def run() -> dict[int, dict[tuple[str, str], Sample]]:
        async with open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as store:
            for fields in (
                {"prompt_digest": NEW_DIGEST},
                {},
                {"prompt_version": BETTER, "segments": ()},
                {"fallback": True},
                {"shown": False},
                {"created_at": NOW},
            ):
                tip = a_tip(**{"created_at": NOW - 2 * DAY, **fields})
                await store.add(tip)
                if fields:
                    await store.react([Reaction(tip.tip_id, "saved")])
            return await store.counts.daily_rewards(hour_of(NOW - DAY), seen_only=False)

    assert asyncio.run(run()) == {
        hour_of(NOW - 2 * DAY) // 24: {
            ("v1", DIGEST): Sample(1, 0, 0),
            ("v1", NEW_DIGEST): Sample(1, 0.5, 0.25),
            (BETTER, DIGEST): Sample(1, 0.5, 0.25),
        }
    }


@ON_SQLITE
def test_when_rewards_cannot_be_read_the_distribution_stays(
    database: Database, clock: SetClock, fake_serving: FakeServing
) -> None:
    async def run() -> None:
        await store_rewards(database, clock)
        async with learning(database, clock, fake_serving) as (selector, next_read):
            learned = options(selector)
            assert learned[BETTER] > 0.9
            database.rows("ALTER TABLE reward_hours RENAME TO gone")
            for _ in range(3):
                assert isinstance(await next_read(), StorageUnavailable)
            assert options(selector) == learned
            database.rows("DELETE FROM gone")
            database.rows("ALTER TABLE gone RENAME TO reward_hours")
            assert await asyncio.to_thread(eventually, lambda: options(selector) != learned, 30)
            assert options(selector) == pytest.approx({"v1": 0.5, BETTER: 0.5})

    asyncio.run(run())


@ON_SQLITE
def test_the_distribution_changes_at_most_once_an_hour(
    database: Database, clock: SetClock, fake_serving: FakeServing
) -> None:
    async def run() -> None:
        await store_rewards(database, clock)
        async with learning(database, clock, fake_serving) as (selector, _):
            learned = options(selector)
            await store_rewards(database, clock, better="v1", n=100)
            # After each of these requests but the last, it would have read the new rewards.
            requests = fake_serving.prompts_requests + 4
            assert await asyncio.to_thread(eventually, lambda: fake_serving.prompts_requests >= requests, 30)
            assert options(selector) == learned
            clock.go(hours=1)
            assert await asyncio.to_thread(eventually, lambda: options(selector)["v1"] > 0.9, 30)

    asyncio.run(run())


@ON_SQLITE
def test_when_serving_does_not_answer_the_last_digests_are_used(
    database: Database, clock: SetClock, fake_serving: FakeServing
) -> None:
    async def run() -> None:
        await store_rewards(database, clock, n=2)
        async with learning(database, clock, fake_serving) as (selector, next_read):
            learned = options(selector)
            assert 0.5 < learned[BETTER] < 0.97
            fake_serving.prompts_fail = True
            fake_serving.digests = dict.fromkeys(fake_serving.digests, NEW_DIGEST)
            await store_rewards(database, clock, better="v1", digest=NEW_DIGEST, n=100)
            assert await next_read() is None
            assert options(selector) == pytest.approx(learned, abs=0.02)
            # Rewards under the last digests are still learned from.
            await store_rewards(database, clock)
            clock.go(hours=1)
            assert await asyncio.to_thread(eventually, lambda: options(selector)[BETTER] == pytest.approx(0.98), 30)
            fake_serving.prompts_fail = False
            assert await asyncio.to_thread(eventually, lambda: options(selector)["v1"] == pytest.approx(0.98), 30)

    asyncio.run(run())


@ON_SQLITE
def test_before_the_first_answer_of_serving_nothing_is_learned(
    database: Database, clock: SetClock, fake_serving: FakeServing
) -> None:
    async def run() -> None:
        await store_rewards(database, clock)
        fake_serving.prompts_fail = True
        async with learning(database, clock, fake_serving) as (selector, next_read):
            for _ in range(3):
                assert options(selector) == {"v1": 0.5, BETTER: 0.5}
                assert await next_read() is None
            fake_serving.prompts_fail = False
            assert await asyncio.to_thread(eventually, lambda: options(selector)[BETTER] > 0.9, 30)

    asyncio.run(run())


@ON_SQLITE
def test_a_policy_that_does_not_learn_asks_serving_for_nothing(
    database: Database, clock: SetClock, fake_serving: FakeServing
) -> None:
    async def run() -> None:
        await store_rewards(database, clock)
        async with learning(database, clock, fake_serving, policy="sticky") as (selector, _):
            assert options(selector) == {"v1": 0.5, BETTER: 0.5}

    asyncio.run(run())
    assert fake_serving.prompts_requests == 0


async def store_rewards(
    database: Database,
    clock: SetClock,
    *,
    better: str = BETTER,
    digest: str = DIGEST,
    digests: Mapping[str, str] | None = None,
    n: int = 50,
    seen: bool = False,
) -> None:
    """Store `n` mature tips of both versions, where only users with the better version reacted.

    `digests`: the digest of each version; by default both have `digest`. `seen`: their exposures are reported, at the
    time of the clock.
    """
    digests = digests or {"v1": digest, BETTER: digest}
    async with open_tip_store(database.url, clock, reaction_window=WINDOW) as store:
        tips = [
            a_tip(created_at=NOW - 2 * DAY, prompt_version=version, prompt_digest=digests[version])
            for version in ("v1", BETTER)
            for _ in range(n)
        ]
        await asyncio.gather(*(store.add(tip) for tip in tips))
        await store.react([Reaction(tip.tip_id, "done") for tip in tips if tip.prompt_version == better])
        if seen:
            await store.expose([Exposure(tip.tip_id) for tip in tips])


NextRead = Callable[[], Awaitable[StorageUnavailable | None]]


@asynccontextmanager
async def learning(
    database: Database, clock: SetClock, fake_serving: FakeServing, *, policy: str = "thompson"
) -> AsyncIterator[tuple[PromptSelector, NextRead]]:
    """Yield a selector that learns, and a function that waits until it has learned from rewards read after the call.

    That function returns the error if the rewards could not be read.
    """
    reads: asyncio.Queue[StorageUnavailable | None] = asyncio.Queue()
    async with (
        asyncio.timeout(120),
        open_tip_store(database.url, clock, reaction_window=WINDOW) as store,
        httpx.AsyncClient(base_url=fake_serving.url) as http,
    ):
        read_rewards = store.counts.daily_rewards

        async def rewards(before: int, *, seen_only: bool) -> dict[int, dict[tuple[str, str], Sample]]:
            try:
                found = await read_rewards(before, seen_only=seen_only)
            except StorageUnavailable as error:
                reads.put_nowait(error)
                raise
            reads.put_nowait(None)
            return found

        store.counts.daily_rewards = rewards  # type: ignore[method-assign]

        async def next_read() -> StorageUnavailable | None:
            while not reads.empty():
                reads.get_nowait()
            # The selector has learned from the first of these when the second one begins; both read a new hour.
            clock.go(hours=1)
            await reads.get()
            clock.go(hours=1)
            return await reads.get()

        selector = PromptSelector({"v1": 1.0, BETTER: 1.0}, policy)
        serving = ServingClient(http, timeout=60)
        async with keep_learning(
            selector,
            store,
            serving,
            reaction_window=DAY,
            half_life_days=28,
            seen_only=False,
            clock=clock,
            every=0.01,
            background=BackgroundTasks(),
        ):
            yield selector, next_read


def options(selector: PromptSelector) -> Mapping[str, float]:
    return selector.select("u-1", ["tip-1"])[0].options
