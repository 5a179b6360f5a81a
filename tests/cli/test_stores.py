"""The commands that need the `recommender` extra, without its libraries."""

import pytest

from tests.cli.commands import tips_without
from tests.process import run


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
