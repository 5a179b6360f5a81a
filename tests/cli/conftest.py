"""Fixtures of the commands that read stored tips."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cli.commands import database_url
from tests.process import TIPS, run


@pytest.fixture(scope="session")
def simulated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with tips of simulated users; each tip was one of three candidates."""
    directory = tmp_path_factory.mktemp("simulated")
    ended = run(
        *(TIPS, "simulate", "--users", "60", "--days", "8"),
        DATABASE_URL=database_url(directory),
        TIP_CANDIDATES="3",
    )
    assert ended.returncode == 0, ended.stderr
    return directory / "tips.db"


@pytest.fixture
def settings(simulated_database: Path, tmp_path: Path) -> Mapping[str, str]:
    """Settings with a copy of the simulated database, both feature stores and an MLflow registry, all in `tmp_path`."""
    shutil.copy(simulated_database, tmp_path)
    return {
        "DATABASE_URL": database_url(tmp_path),
        "OFFLINE_STORE": f"{tmp_path}/offline",
        "ONLINE_STORE_URL": f"sqlite:///{tmp_path}/features.db",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "COLUMNS": "200",
    }
