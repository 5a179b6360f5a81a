"""`tips migrate`."""

import sqlite3
from contextlib import closing
from pathlib import Path

from tests.cli.commands import database_url
from tests.process import TIPS, run


def test_an_empty_database_gets_the_newest_schema_and_a_second_run_changes_nothing(tmp_path: Path) -> None:
    schemas = []
    for _ in range(2):
        ended = run(TIPS, "migrate", DATABASE_URL=database_url(tmp_path))
        assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
        schemas.append(schema(tmp_path / "tips.db"))
    assert {"tip_scores", "reactions"} <= schemas[0].keys()
    assert schemas[1] == schemas[0]


def schema(file: Path) -> dict[str, str]:
    with closing(sqlite3.connect(file)) as connection:
        return dict(connection.execute("select name, sql from sqlite_master"))


def test_a_database_that_cannot_be_opened_is_reported(tmp_path: Path) -> None:
    ended = run(TIPS, "migrate", DATABASE_URL=database_url(tmp_path / "missing"))
    assert (ended.returncode, ended.stderr) == (1, "DATABASE_URL: the database cannot be opened or reached.\n")
