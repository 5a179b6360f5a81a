"""`tips simulate`: a truth that is known, and that the reward page finds."""

import sqlite3
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from ml.recommender.rewards import FEWEST
from ml.serving.prompts import PROMPTS
from ml.simulation.service import TASTES
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
        assert one["counted"] > FEWEST
        assert one["reward"]["low"] < TASTES[one["prompt_version"]] < one["reward"]["high"]
        assert len(one["days"]) > 10
    assert not report["sample_ratio"]["alarm"]
    assert report["simulated"] == sum(one["tips"] for one in report["variants"])
    assert "people who do not exist" in page


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
