"""`tips simulate`: a truth that is known, and that the reward page finds."""

import sqlite3
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from ml.rewards.report import MIN_TIPS
from ml.serving.prompts import PROMPTS
from ml.simulation.people import TASTES
from tests.process import TIPS, run, service
from tests.upstream import Upstream


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("simulation") / "tips.db"
    ended = run(TIPS, "simulate", "--users", "120", "--days", "12", DATABASE_URL=f"sqlite+aiosqlite:///{path}")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("simulated: ")
    assert "Simulating" in ended.stderr
    return path


def test_every_version_s_interval_holds_the_taste_for_it(database: Path, upstream: Upstream) -> None:
    url = f"sqlite+aiosqlite:///{database}"
    with service(DATABASE_URL=url, TIP_MODEL="openai/good", TIP_MODEL_API_BASE=f"{upstream.url}/v1") as both:
        report = both.http.get("/rewards").json()
        page = both.http.get("/admin/rewards").text
    assert {one["prompt_version"] for one in report["variants"]} == set(PROMPTS)
    for one in report["variants"]:
        assert one["counted"] > MIN_TIPS
        assert one["reward"]["low"] < TASTES[one["prompt_version"]] < one["reward"]["high"]
        assert len(one["days"]) > 10
    assert not report["sample_ratio"]["alarm"]
    assert report["simulated"] == sum(one["tips"] for one in report["variants"])
    assert "people who do not exist" in page


def test_a_segment_shows_who_likes_what(database: Path, upstream: Upstream) -> None:
    url = f"sqlite+aiosqlite:///{database}"
    with service(DATABASE_URL=url, TIP_MODEL="openai/good", TIP_MODEL_API_BASE=f"{upstream.url}/v1") as both:

        def best(segment: str) -> str:
            report = both.http.get("/rewards", params={"segment": segment}).json()
            best = max(report["variants"], key=lambda one: one["reward"]["estimate"])
            return str(best["prompt_version"])

        assert (best("mood:low"), best("mood:great")) == ("v2-mentor", "v3-few-shot")


def test_a_version_policy_learns_while_days_go_by(tmp_path: Path) -> None:
    settings = {"TIP_PROMPT_VERSION": "v1,v2-mentor,v3-few-shot", "TIP_PROMPT_POLICY": "thompson"}
    database = f"{tmp_path}/tips.db"
    ended = run(
        *(TIPS, "simulate", "--users", "50", "--days", "3"), **settings, DATABASE_URL=f"sqlite+aiosqlite:///{database}"
    )
    assert ended.returncode == 0, ended.stderr
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("select policy, probability from tip_scores order by created_at").fetchall()
    assert {policy for policy, _ in rows} == {"thompson"}
    # Until the first day's reactions count, every version is as likely.
    probabilities = [round(probability, 6) for _, probability in rows]
    assert set(probabilities[:10]) == {0.333333}
    assert len(set(probabilities[10:])) > 3


def test_reactions_come_days_late_and_twice_and_count_once(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        ((tips, people),) = connection.execute("select count(*), count(distinct user_id) from tip_scores")
        ((reactions, reacted),) = connection.execute("select count(*), count(distinct tip_id) from reactions")
        ((late,),) = connection.execute(
            "select count(*) from reactions join tip_scores using (tip_id)"
            " where julianday(at) - julianday(created_at) > 1"
        )
    assert tips > 5 * people > 500
    assert reactions == reacted > tips / 3
    assert late > 10


def test_it_does_not_mix_with_what_real_people_did(upstream: Upstream, tmp_path: Path) -> None:
    settings = {
        "DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/tips.db",
        "TIP_MODEL": "openai/good",
        "TIP_MODEL_API_BASE": f"{upstream.url}/v1",
    }
    with service(**settings) as both:
        assert both.http.post("/tips", json={"user_id": "u"}).status_code == httpx.codes.OK
    ended = run(TIPS, "simulate", "--users", "1", "--days", "1", **settings)
    assert ended.returncode == 1
    assert ended.stderr.startswith("DATABASE_URL: holds the tips of real people")
