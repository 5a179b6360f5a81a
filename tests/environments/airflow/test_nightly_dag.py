"""The nightly job as a DAG of Airflow, run without a scheduler: its tasks call the `tips` command of the project."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime, time, timedelta
from pathlib import Path

import pytest

DAGS = Path(__file__).parents[3] / "deploy" / "airflow"
AIRFLOW = (sys.executable, "-m", "airflow")
DATABASE = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
STEPS = ("export", "aggregates", "materialize", "train", "evaluate", "monitor", "card", "register", "propose")
TIPS = os.environ.get("TIPS_COMMAND") or shutil.which("tips") or "tips"
"""The command of the project's own environment."""

MIDNIGHT = datetime.combine(datetime.now(UTC).date(), time(), UTC)


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The environment of an Airflow with empty metadata in an SQLite file."""
    home = tmp_path_factory.mktemp("airflow")
    settings = {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        DATABASE: f"sqlite:///{home}/airflow.db",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "TIPS_COMMAND": TIPS,
    }
    run([*AIRFLOW, "db", "migrate"], home, settings)
    return settings


def settings(folder: Path) -> dict[str, str]:
    return {
        "DATABASE_URL": f"sqlite+aiosqlite:///{folder}/tips.db",
        "OFFLINE_STORE": f"{folder}/offline",
        "ONLINE_STORE_URL": f"sqlite:///{folder}/features.db",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "TIP_CANDIDATES": "2",
    }


def simulate(folder: Path, days: int) -> None:
    """Store tips of simulated users of some days up to now."""
    environment = {**os.environ, **settings(folder)}
    del environment["ONLINE_STORE_URL"]  # `tips nightly` creates it
    run([TIPS, "simulate", "--users", "25", "--days", str(days)], folder, environment)


def run_dag(airflow: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Run the DAG as half an hour after this midnight; return the state of each task."""
    half_past = MIDNIGHT + timedelta(minutes=30)
    metadata = folder / "airflow.db"
    shutil.copy(Path(airflow["AIRFLOW_HOME"]) / metadata.name, metadata)
    environment = {**airflow, **settings(folder), DATABASE: f"sqlite:///{metadata}"}
    run([*AIRFLOW, "dags", "test", "tips_nightly", half_past.isoformat()], folder, environment)
    with closing(sqlite3.connect(metadata)) as connection:
        states = connection.execute("SELECT task_id, state FROM task_instance").fetchall()
        ((state,),) = connection.execute("SELECT state FROM dag_run")
    assert state == "success"
    return dict(states)


def run(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> str:
    """Run a command in a folder; return what it prints."""
    ended = subprocess.run(command, env=environment, cwd=folder, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_a_night_exports_trains_and_proposes_what_happened_on_the_day_before(
    airflow: Mapping[str, str], tmp_path: Path
) -> None:
    simulate(tmp_path, days=5)
    assert run_dag(airflow, tmp_path) == dict.fromkeys(STEPS, "success")
    day = (MIDNIGHT - timedelta(days=1)).date()
    assert (tmp_path / "offline" / "nightly" / f"day={day}" / "policy.npz").exists()
    with closing(sqlite3.connect(tmp_path / "tips.db")) as connection:
        ((kind, source),) = connection.execute("SELECT kind, source FROM rollout_proposals")
    assert (kind, source) == ("policy", "models:/tips/1")


def test_a_night_without_anything_to_learn_from_skips_its_last_steps(
    airflow: Mapping[str, str], tmp_path: Path
) -> None:
    simulate(tmp_path, days=1)
    done = STEPS.index("train")
    assert run_dag(airflow, tmp_path) == {
        **dict.fromkeys(STEPS[:done], "success"),
        **dict.fromkeys(STEPS[done:], "skipped"),
    }
