"""`tips train` and `tips features`, on a store that simulated people have filled."""

import asyncio
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ml.features.online_store import SQLiteOnlineStore
from ml.registry.artifacts import RankingPolicy
from tests.process import TIPS, run, service


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tips of people who were shown one of three candidates each time."""
    folder = tmp_path_factory.mktemp("learning")
    ended = run(
        *(TIPS, "simulate", "--users", "60", "--days", "8"),
        DATABASE_URL=f"sqlite+aiosqlite:///{folder}/tips.db",
        TIP_CANDIDATES="3",
    )
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture
def settings(filled: Path) -> Mapping[str, str]:
    return {
        "DATABASE_URL": f"sqlite+aiosqlite:///{filled}/tips.db",
        "ONLINE_STORE_URL": f"sqlite:///{filled}/features.db",
        "MLFLOW_TRACKING_URI": f"sqlite:///{filled}/mlflow.db",
        "COLUMNS": "200",
    }


def test_what_is_learned_ranks_for_score_and_is_judged_by_later_tips(settings: Mapping[str, str], filled: Path) -> None:
    file = filled / "policy.npz"
    ended = run(TIPS, "train", "--to", str(file), "--until", "4d", **settings)
    assert ended.returncode == 0, ended.stderr
    loaded = RankingPolicy.from_bytes(file.read_bytes())
    learned = f"learned from {loaded.card.learned_from:,} tips: policy version {loaded.version}"
    assert ended.stdout == f"{learned}, in {file}\n"
    assert loaded.card.learned_from > 50
    assert datetime.now(UTC).timestamp() - loaded.card.trained_until > 4 * 86_400
    judged = run(TIPS, "evaluate", "--policy", str(file), **settings)
    assert judged.returncode == 0, judged.stderr
    assert "because tips has learned from decisions up to" in judged.stdout
    model = {"TIP_MODEL": "openai/x", "TIP_MODEL_API_BASE": "http://127.0.0.1:9/v1"}
    with service(TIPS, "serve", "--only", "serving", SCORE_POLICY=str(file), **model) as serving:
        answer = serving.http.post("/score", json={"candidates": [{"id": "a", "prompt_version": "v1"}]}).json()
    assert answer["policy"] == {"name": "tips", "version": loaded.version}


def test_a_policy_in_mlflow_is_served_by_its_alias(
    settings: Mapping[str, str], filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(filled)  # where MLflow puts its artifacts
    ended = run(TIPS, "train", "--register", "helpful-tips", "--alias", "champion", **settings)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("in MLflow as models:/helpful-tips/1 and @champion\n")
    version = ended.stdout.partition("policy version ")[2][:12]
    with service(
        *(TIPS, "serve", "--only", "serving"),
        SCORE_POLICY="models:/helpful-tips@champion",
        MLFLOW_TRACKING_URI=settings["MLFLOW_TRACKING_URI"],
        TIP_MODEL="openai/x",
        TIP_MODEL_API_BASE="http://127.0.0.1:9/v1",
    ) as serving:
        answer = serving.http.post("/score", json={"candidates": [{"id": "a"}]}).json()
        code, log = serving.stop()
    assert answer["policy"] == {"name": "helpful-tips", "version": version}
    assert code == 0
    assert all("event" in line for line in log)  # MLflow writes no lines of its own


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--register", "a b"], "should be a name of letters"),
        (["--register", "uniform"], "should be a name of letters"),
        (["--to", "p.npz", "--register", "a"], "one of them at a time"),
        (["--alias", "champion"], "needs --register"),
        (["--until", "soon"], "such as 90d or 36h"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(
    settings: Mapping[str, str], arguments: list[str], sentence: str
) -> None:
    ended = run(TIPS, "train", *arguments, **settings)
    assert ended.returncode == 2
    assert sentence in " ".join(ended.stderr.replace("│", " ").split())


def test_without_tips_old_enough_there_is_nothing_to_learn(settings: Mapping[str, str], tmp_path: Path) -> None:
    ended = run(TIPS, "train", "--until", "90d", "--to", str(tmp_path / "p.npz"), **settings)
    assert (ended.returncode, ended.stderr) == (1, "There are no tips old enough to learn from.\n")
    assert not [*tmp_path.iterdir()]
    ended = run(TIPS, "train", "--to", str(tmp_path / "no" / "p.npz"), **settings)
    assert (ended.returncode, ended.stderr) == (1, f"{tmp_path}/no/p.npz cannot be written.\n")


def test_what_is_known_of_people_beforehand_is_counted_and_forgotten(settings: Mapping[str, str], filled: Path) -> None:
    ended = run(TIPS, "features", **settings)
    assert ended.returncode == 0, ended.stderr
    with closing(sqlite3.connect(filled / "tips.db")) as connection:
        (user, tips), *_ = connection.execute(
            "select user_id, count(*) from tip_scores where not shadow and created_at > datetime('now', '-7 days')"
            " group by user_id order by 2 desc"
        ).fetchall()
        ((people,),) = connection.execute("select count(distinct user_id) from tip_scores")
    assert ended.stdout == f"written: {people} people\n"
    store = SQLiteOnlineStore.open(settings["ONLINE_STORE_URL"])
    known = asyncio.run(store.read(user, datetime.now(UTC)))
    assert known["tips_7d"] == tips
    assert 0 <= known["reward_rate_30d"] <= 1
    assert run(TIPS, "forget", user, **settings).returncode == 0
    assert asyncio.run(store.read(user, datetime.now(UTC))) == {}
    store.close()


def test_without_a_store_to_write_into_one_sentence_says_so(settings: Mapping[str, str]) -> None:
    ended = run(TIPS, "features", **{**settings, "ONLINE_STORE_URL": ""})
    assert ended.returncode == 1
    assert ended.stderr.startswith("ONLINE_STORE_URL: must say where to write")
    ended = run(TIPS, "features", **{**settings, "ONLINE_STORE_URL": "sqlite:////no/such/folder/f.db"})
    assert (ended.returncode, ended.stderr) == (1, "ONLINE_STORE_URL: the file cannot be written.\n")
