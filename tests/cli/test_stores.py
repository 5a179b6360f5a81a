"""The commands that need the `recommender` extra, without its libraries."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cli.commands import database_url, tips_without
from tests.process import TIPS, run


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve"],
        ["serve", "--only", "recommender"],
        ["migrate"],
        ["forget", "u"],
        ["simulate"],
        ["evaluate", "--policy", "v1"],
    ],
    ids=" ".join,
)
def test_without_the_libraries_one_sentence_names_the_extra(arguments: list[str]) -> None:
    ended = run(*tips_without("sqlalchemy"), *arguments)
    assert ended.returncode == 1
    assert ended.stderr == (
        "sqlalchemy is missing: this needs the `recommender` extra; `tips serve --only serving` does not.\n"
    )


COMMANDS_ON_STORED_TIPS = (
    ("forget", "u"),
    ("purge", "--older-than", "1d"),
    ("features", "materialize"),
    ("export",),
    ("nightly",),
    ("train",),
    ("evaluate", "--policy", "v1"),
)


@pytest.mark.parametrize("arguments", COMMANDS_ON_STORED_TIPS, ids=" ".join)
def test_a_command_on_stored_tips_names_the_missing_database_and_creates_none(
    arguments: Sequence[str], tmp_path: Path
) -> None:
    settings = {"DATABASE_URL": database_url(tmp_path), "ONLINE_STORE_URL": f"sqlite:///{tmp_path}/features.db"}
    ended = run(TIPS, *arguments, **settings)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"DATABASE_URL: there is no database {tmp_path}/tips.db.\n"
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("content", [b"", b"not a database", b"SQLite format 3\0"])
def test_another_file_is_no_database_and_stays_as_it_is(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tips.db").write_bytes(content)
    ended = run(TIPS, "forget", "u", DATABASE_URL=database_url(tmp_path))
    assert ended.stderr == f"DATABASE_URL: {tmp_path}/tips.db is not a database of tips.\n"
    assert (tmp_path / "tips.db").read_bytes() == content
    assert [*tmp_path.iterdir()] == [tmp_path / "tips.db"]


def test_a_server_is_named_without_its_password() -> None:
    url = "postgresql+asyncpg://tips:top-secret@127.0.0.1:9/tips"
    ended = run(TIPS, "purge", "--older-than", "1d", DATABASE_URL=url)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        "DATABASE_URL: postgresql+asyncpg://tips:***@127.0.0.1:9/tips is locked, full or cannot be reached.\n"
    )
