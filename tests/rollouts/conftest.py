"""A database with rollouts in several stages, filled once for the tests of this folder."""

from pathlib import Path

import pytest

from tests.example_tips import SetClock
from tests.rollouts.example_rollouts import fill, several_stages


@pytest.fixture(scope="session")
def filled(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, SetClock]:
    """The file of a database with rollouts in several stages, and its clock."""
    file = tmp_path_factory.mktemp("rollouts") / "tips.db"
    file.write_bytes(sqlite_template.read_bytes())
    clock = SetClock()
    fill(f"sqlite+aiosqlite:///{file}", clock, several_stages)
    return file.read_bytes(), clock
