"""`tips nightly`, killed at any time and started again, leaves what a night leaves that was not killed."""

import multiprocessing
import os
import random
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from ml.cli.main import main
from ml.features.offline_store import day_of_date, start_of_day
from ml.platform.clock import utc_now
from tests.databases import Database
from tests.pipelines.nights import content_of, fill

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's own

NAME = "tips"
RANDOM_KILLS = int(os.environ.get("TEST_RANDOM_KILLS", "0"))
"""The number of kills at random times, besides those at steps."""

PRELOADED = [
    "ml.features.online_sqlite",
    "ml.pipelines.nightly",
    "ml.registry.models",
    "ml.store.tips",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "tests.pipelines.test_killed_nights",
]
"""Imported once, by the process that all jobs are forked from."""


def nightly(settings: Mapping[str, str], folder: Path, day: str) -> None:
    """Run `tips nightly` in this process, with its output in a file."""
    os.environ.update(settings)
    os.chdir(folder)
    with (folder / "output").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.argv = ["tips", "nightly", "--day", day]
    main()


@dataclass(frozen=True)
class Night:
    """The stores of a night in a folder; the registry has a policy with the alias `champion`."""

    folder: Path
    day: int

    @property
    def database(self) -> Database:
        return Database(f"sqlite+aiosqlite:///{self.folder}/tips.db")

    def start(self) -> BaseProcess:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        settings = {
            "DATABASE_URL": self.database.url,
            "OFFLINE_STORE": f"{self.folder}/offline",
            "ONLINE_STORE_URL": f"sqlite:///{self.folder}/features.db",
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder}/mlflow.db",
            "NIGHTLY_POLICY_NAME": NAME,
        }
        process = context.Process(target=nightly, args=(settings, self.folder, str(start_of_day(self.day).date())))
        process.start()
        return process

    def run(self) -> float:
        """Run the job to its end; return its seconds."""
        # As 30 seconds after a job was killed: its lease has ended.
        self.database.rows("DELETE FROM leases")
        started = time.monotonic()
        process = self.start()
        process.join()
        assert process.exitcode == 0, (self.folder / "output").read_text()
        return time.monotonic() - started

    def files(self) -> dict[str, bytes]:
        return content_of(self.folder / "offline")

    def registry(self, sql: str) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as connection:
            rows = connection.execute(sql).fetchall()
            connection.commit()
            return rows

    def has(self, pattern: str) -> bool:
        """Return whether the offline store has a file of this pattern."""
        return any((self.folder / "offline").glob(pattern))

    def left(self) -> Mapping[str, object]:
        """Return what the job has left, apart from times."""
        return {
            "files": self.files(),
            "policies": self.registry("SELECT version, value FROM model_version_tags WHERE key = 'policy_version'"),
            "aliases": self.registry("SELECT alias, version FROM registered_model_aliases ORDER BY alias"),
            "proposals": self.database.rows("SELECT kind, version, source, evidence FROM rollout_proposals"),
            "reports": self.database.rows("SELECT day, name, figures FROM batch_reports"),
            "events": self.database.count("rollout_events"),
        }


@pytest.fixture(scope="module")
def before(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Night:
    """The stores before the night, with an older policy as champion."""
    folder = tmp_path_factory.mktemp("before")
    shutil.copy(sqlite_template, folder / "tips.db")
    night = Night(folder, day_of_date(utc_now().date()) - 1)
    fill(night.database, night.day)
    replace(night, day=night.day - 2).run()
    night.registry(f"INSERT INTO registered_model_aliases (alias, version, name) VALUES ('champion', 1, '{NAME}')")
    night.registry("DELETE FROM registered_model_aliases WHERE alias = 'proposed'")
    shutil.rmtree(folder / "offline")
    night.database.rows("DELETE FROM rollout_proposals")
    night.database.rows("DELETE FROM batch_reports")
    return night


def copy(night: Night, folder: Path) -> Night:
    shutil.copytree(night.folder, folder, dirs_exist_ok=True)
    return replace(night, folder=folder)


@pytest.fixture(scope="module")
def undisturbed(before: Night, tmp_path_factory: pytest.TempPathFactory) -> tuple[Mapping[str, object], float]:
    """The state after a night in which nothing happens, and its seconds."""
    night = copy(before, tmp_path_factory.mktemp("undisturbed"))
    seconds = night.run()
    left = night.left()
    assert [number for number, _ in left["policies"]] == [1, 2]  # type: ignore[attr-defined]
    assert left["aliases"] == [("champion", 1), ("proposed", 2)]
    return left, seconds


AFTER: dict[str, Callable[[Night], bool]] = {
    "export": lambda night: night.has("tip_scores/*/*.parquet"),
    "aggregates": lambda night: night.has("aggregates/*/*.parquet"),
    "train": lambda night: night.has("stats/*/*.npz"),
    "monitor": lambda night: night.has("nightly/*/drift.json"),
    "register": lambda night: len(night.registry("SELECT version FROM model_versions")) == 2,
}
"""Signs of a step that has begun or has just ended."""


@pytest.mark.parametrize("moment", [*AFTER, *range(RANDOM_KILLS)])
def test_a_job_killed_at_any_time_goes_on_where_it_was(
    moment: str | int, before: Night, undisturbed: tuple[Mapping[str, object], float], tmp_path: Path
) -> None:
    left, seconds = undisturbed
    night = copy(before, tmp_path)
    process = night.start()
    if isinstance(moment, str):
        while process.is_alive() and not AFTER[moment](night):
            time.sleep(0.001)
        assert process.is_alive()
    else:
        process.join(random.Random(moment).uniform(0, seconds))
    process.kill()
    process.join()
    night.run()
    assert night.left() == left
