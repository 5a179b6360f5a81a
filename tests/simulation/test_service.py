"""`tips simulate`: the reward page recovers the known preferences of the simulated users."""

import asyncio
import itertools
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
import stamina
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ml.experiments.rollout_state import Action
from ml.recommender.settings import RecommenderSettings
from ml.simulation.people import LISTED_VERSIONS, mean_preference, visits
from ml.simulation.service import SimulationFailed, _Simulation, listening, simulate
from ml.store.database import Database as OpenDatabase
from ml.store.database import migrate_database
from ml.store.rollouts import RolloutLog
from tests.process import TIPS, run, service
from tests.store.rollout_rows import a_move
from tests.upstream import Upstream


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("simulation") / "tips.db"
    ended = run(
        *(TIPS, "simulate", "--users", "120", "--days", "12"),
        DATABASE_URL=f"sqlite+aiosqlite:///{path}",
        TIP_PROMPT_VERSION=",".join(LISTED_VERSIONS),
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("simulated: ")
    assert ended.stderr == ""  # progress is shown on terminals only
    return path


def test_the_interval_of_every_version_contains_its_mean_preference(database: Path, upstream: Upstream) -> None:
    url = f"sqlite+aiosqlite:///{database}"
    with service(DATABASE_URL=url, TIP_MODEL="openai/good", TIP_MODEL_API_BASE=f"{upstream.url}/v1") as both:
        report = both.http.get("/rewards").json()
        page = both.http.get("/admin/rewards").text
    assert {variant["prompt_version"] for variant in report["variants"]} == {*LISTED_VERSIONS}
    for variant in report["variants"]:
        reward = variant["reward"]
        assert variant["counted"] > 100
        assert reward["low"] < mean_preference(variant["prompt_version"]) < reward["high"]
        assert len(variant["days"]) > 10
    assert not any(test["alarm"] for test in report["funnel"]["tests"])
    assert report["simulated"] == sum(variant["tips"] for variant in report["variants"])
    assert "Simulated data:" in page


def test_a_segment_shows_the_version_that_its_users_prefer(database: Path, upstream: Upstream) -> None:
    url = f"sqlite+aiosqlite:///{database}"
    with service(DATABASE_URL=url, TIP_MODEL="openai/good", TIP_MODEL_API_BASE=f"{upstream.url}/v1") as both:

        def best(segment: str) -> str:
            report = both.http.get("/rewards", params={"segment": segment}).json()
            variant = max(report["variants"], key=lambda variant: variant["reward"]["estimate"])
            return str(variant["prompt_version"])

        assert (best("mood:low"), best("mood:great")) == ("v2-mentor", "v3-few-shot")


def test_a_prompt_policy_learns_during_the_simulated_days(tmp_path: Path) -> None:
    settings = {"TIP_PROMPT_VERSION": "v1,v2-mentor,v3-few-shot", "TIP_PROMPT_POLICY": "thompson"}
    database = f"{tmp_path}/tips.db"
    ended = run(
        *(TIPS, "simulate", "--users", "50", "--days", "3"), **settings, DATABASE_URL=f"sqlite+aiosqlite:///{database}"
    )
    assert ended.returncode == 0, ended.stderr
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("select policy, probability from tip_scores order by created_at").fetchall()
    assert {policy for policy, _ in rows} == {"thompson"}
    # Before the first tips are mature, all versions are equally likely.
    probabilities = [round(probability, 6) for _, probability in rows]
    assert set(probabilities[:10]) == {0.333333}
    assert set(probabilities) != {0.333333}


def test_some_reactions_are_days_late_and_a_reaction_sent_twice_is_stored_once(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        ((tips, users),) = connection.execute("select count(*), count(distinct user_id) from tip_scores")
        ((reactions, reacted),) = connection.execute("select count(*), count(distinct tip_id) from reactions")
        ((late,),) = connection.execute(
            "select count(*) from reactions join tip_scores using (tip_id)"
            " where julianday(at) - julianday(created_at) > 1"
        )
    assert tips > 5 * users > 500
    assert reactions == reacted > tips / 3
    assert late > 10


def test_a_database_with_tips_of_real_users_is_refused(upstream: Upstream, tmp_path: Path) -> None:
    settings = {
        "DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/tips.db",
        "TIP_MODEL": "openai/good",
        "TIP_MODEL_API_BASE": f"{upstream.url}/v1",
    }
    with service(**settings) as both:
        assert both.http.post("/tips", json={"user_id": "u"}).status_code == httpx.codes.OK
    ended = run(TIPS, "simulate", "--users", "1", "--days", "1", **settings)
    assert ended.returncode == 1
    assert ended.stderr == ("DATABASE_URL: contains tips of real users; name another database for the simulation.\n")


def settings_for(directory: Path) -> RecommenderSettings:
    url = f"sqlite+aiosqlite:///{directory}/tips.db"
    migrate_database(url)
    return RecommenderSettings(database_url=SecretStr(url))


def rows(directory: Path) -> dict[str, int]:
    with closing(sqlite3.connect(directory / "tips.db")) as connection:
        return {
            table: connection.execute(f"select count(*) from {table}").fetchone()[0]
            for table in ("tip_scores", "reactions", "reward_hours", "draw_hours")
        }


NOTHING = {"tip_scores": 0, "reactions": 0, "reward_hours": 0, "draw_hours": 0}


def test_a_simulation_that_is_interrupted_stores_nothing(litellm_imported: None, tmp_path: Path) -> None:  # noqa: ARG001
    def interrupted(hours: Iterable[int]) -> Iterator[int]:
        for hour in hours:
            if hour == 30:
                raise KeyboardInterrupt
            yield hour

    settings = settings_for(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        simulate(settings, users=20, days=2, end=datetime.now(UTC), seed=1, progress=interrupted)
    assert rows(tmp_path) == NOTHING


def test_a_request_that_fails_for_good_ends_the_simulation_with_the_reason() -> None:
    async def busy(_: Request) -> Response:
        return JSONResponse({"detail": "The service is busy."}, 503)

    simulation = _Simulation(1, datetime.now(UTC), 1, ["v1"])
    app = Starlette(routes=[Route("/tips", busy, methods=["POST"])])
    with (
        stamina.set_testing(True, attempts=2),
        listening(app) as url,
        pytest.raises(SimulationFailed, match=r"^POST /tips was answered with 503: The service is busy\.$"),
    ):
        asyncio.run(simulation.run(url, 10, range(24)))


def test_requests_are_repeated_while_the_service_is_overloaded() -> None:
    answers = [503, 504, 503, 200]
    statuses: dict[str, Iterator[int]] = {}
    stored: list[str] = []

    async def answer(request: Request) -> Response:
        body = await request.json()
        identity = str(body.get("user_id") or (body["tip_id"], body["at"], body.get("reaction")))
        status = next(statuses.setdefault(identity, itertools.cycle(answers)))
        if status == 200:
            stored.append(request.url.path)
        tip = {"tip_id": str(uuid4()), "prompt_version": "v1", "outcome": "recorded", "detail": "Busy."}
        return JSONResponse(tip, status)

    app = Starlette(routes=[Route(path, answer, methods=["POST"]) for path in ("/tips", "/exposures", "/reactions")])
    simulation = _Simulation(1, datetime.now(UTC), 1, ["v1"])
    with stamina.set_testing(True, attempts=len(answers)), listening(app) as url:
        asyncio.run(simulation.run(url, 10, range(24)))
    assert simulation.tips == stored.count("/tips") == len(visits(10, 0, seed=1))
    assert simulation.exposures == simulation.tips == stored.count("/exposures")
    assert simulation.reactions == stored.count("/reactions") > 0


def append_event(settings: RecommenderSettings, action: Action, version: str) -> None:
    """Append an event of rollouts, as an operator does."""

    async def append() -> None:
        database = OpenDatabase(settings.database_url.get_secret_value())
        log = RolloutLog(database)
        await log.append(a_move(action, version), expected=len(await log.events()))
        await database.close()

    asyncio.run(append())


def test_simulated_tips_follow_the_rollouts_of_the_database(litellm_imported: None, tmp_path: Path) -> None:  # noqa: ARG001
    settings = settings_for(tmp_path).model_copy(update={"tip_prompt_policy": "rollout"})
    append_event(settings, "initial", "v1")
    simulate(settings, users=10, days=1, end=datetime.now(UTC), seed=1, progress=iter)
    with closing(sqlite3.connect(tmp_path / "tips.db")) as connection:
        versions = connection.execute("select distinct prompt_version from tip_scores").fetchall()
        unknown = connection.execute(
            "select count(*) from tip_scores where prompt_event not in (select id from rollout_events)"
        ).fetchone()
        events = connection.execute("select version, action from rollout_events").fetchall()
    assert (versions, unknown) == ([("v1",)], (0,))
    assert events[0] == ("v1", "initial")


def test_nothing_is_stored_when_a_rollout_is_changed_during_the_simulation(
    litellm_imported: None,  # noqa: ARG001
    tmp_path: Path,
) -> None:
    settings = settings_for(tmp_path)

    def changed(hours: Iterable[int]) -> Iterator[int]:
        yield from hours
        append_event(settings, "initial", "v1")

    with pytest.raises(SimulationFailed, match=r"^A rollout in the database was changed during the simulation"):
        simulate(settings, users=5, days=1, end=datetime.now(UTC), seed=1, progress=changed)
    assert rows(tmp_path) == NOTHING
