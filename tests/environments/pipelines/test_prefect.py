"""The nightly job as a flow of Prefect, against a server of Prefect on PostgreSQL."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest

from ml.features.offline_store import date_of_day
from ml.pipelines.nightly import STEPS, run_steps
from tests.conftest import eventually
from tests.databases import Database, postgres
from tests.pipelines.nights import LAST_DAY, a_job, content_of, fill
from tests.process import environment

FLOW = Path(__file__).parents[3] / "deploy" / "prefect" / "nightly.py"
RUN_FLOW = """
import json, runpy, sys
from datetime import date

module = runpy.run_path(sys.argv[1])
module["run_step"].retry_delay_seconds = 0
print(json.dumps(module["nightly"](date.fromisoformat(sys.argv[2]))))
"""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's own


@pytest.fixture(scope="module")
def prefect_url(postgres_server: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:  # noqa: ARG001
    """The address of the API of a server on its own PostgreSQL database."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    folder = tmp_path_factory.mktemp("prefect")
    with postgres() as database, (folder / "log").open("w") as log:
        settings = environment(
            PREFECT_HOME=str(folder),
            PREFECT_API_DATABASE_CONNECTION_URL=database.url,
            PREFECT_SERVER_ANALYTICS_ENABLED="false",
            DO_NOT_TRACK="1",
        )
        command = [
            sys.executable,
            "-m",
            "prefect",
            "server",
            "start",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--no-ui",
        ]
        server = subprocess.Popen(command, env=settings, stdout=log, stderr=log)
        url = f"http://127.0.0.1:{port}/api"
        try:
            assert eventually(lambda: is_healthy(url) or server.poll() is not None, 240)
            assert server.poll() is None, (folder / "log").read_text()
            yield url
        finally:
            server.terminate()
            server.wait(60)


def is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).is_success
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def filled(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with ranked tips of some days."""
    file = tmp_path_factory.mktemp("filled") / "tips.db"
    shutil.copy(sqlite_template, file)
    fill(Database(f"sqlite+aiosqlite:///{file}"), LAST_DAY)
    return file


def run_flow(prefect_url: str, folder: Path, day: int, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the flow for a day, with all stores in a folder."""
    return subprocess.run(
        [sys.executable, "-c", RUN_FLOW, str(FLOW), str(date_of_day(day))],
        env=environment(
            PREFECT_API_URL=prefect_url,
            PREFECT_HOME=str(folder / "prefect"),
            DATABASE_URL=f"sqlite+aiosqlite:///{folder}/tips.db",
            OFFLINE_STORE=f"{folder}/offline",
            MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow.db",
            **settings,
        ),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def newest_run(prefect_url: str) -> tuple[str, dict[str, tuple[str, int]]]:
    """Return the state of the newest flow run, and of each of its tasks: the state and how often it was tried."""
    (run,) = httpx.post(f"{prefect_url}/flow_runs/filter", json={"sort": "START_TIME_DESC", "limit": 1}).json()
    tasks: list[dict[str, Any]] = httpx.post(
        f"{prefect_url}/task_runs/filter",
        json={"flow_runs": {"id": {"any_": [run["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"},
    ).json()
    states = {task["name"].rpartition("-")[0]: (task["state_type"], task["run_count"]) for task in tasks}
    return run["state_type"], states


def test_a_flow_run_does_the_same_as_the_command(prefect_url: str, filled: Path, tmp_path: Path) -> None:
    by_flow, by_command = tmp_path / "flow", tmp_path / "command"
    for folder in (by_flow, by_command):
        folder.mkdir()
        shutil.copy(filled, folder / "tips.db")
    ended = run_flow(prefect_url, by_flow, LAST_DAY)
    assert ended.returncode == 0, ended.stderr
    assert newest_run(prefect_url) == ("COMPLETED", dict.fromkeys(STEPS, ("COMPLETED", 1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(by_command)
        database = Database(f"sqlite+aiosqlite:///{by_command}/tips.db")
        uri, release = f"sqlite:///{by_command}/mlflow.db", version("tip-service")
        outputs = dict(
            run_steps(a_job(database, by_command, uri, "tips", release=release, online_store_url=None), LAST_DAY)
        )
    assert json.loads(ended.stdout.splitlines()[-1]) == outputs
    assert content_of(by_flow / "offline") == content_of(by_command / "offline")


def test_a_step_that_fails_is_tried_again_and_then_fails_the_flow(prefect_url: str, tmp_path: Path) -> None:
    ended = run_flow(prefect_url, tmp_path, LAST_DAY)
    assert ended.returncode == 1
    assert "DATABASE_URL" in ended.stderr  # there is none
    assert newest_run(prefect_url) == ("FAILED", {"export": ("FAILED", 4)})


def test_a_night_without_anything_to_learn_from_completes(prefect_url: str, filled: Path, tmp_path: Path) -> None:
    shutil.copy(filled, tmp_path / "tips.db")
    ended = run_flow(prefect_url, tmp_path, LAST_DAY - 8)
    assert ended.returncode == 0, ended.stderr
    assert "No tip is old enough to learn from at the end of 2026-01-22." in ended.stderr
    state, tasks = newest_run(prefect_url)
    assert (state, [*tasks]) == ("COMPLETED", ["export", "aggregates", "materialize", "train"])
