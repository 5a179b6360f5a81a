"""`tips simulate`; the tests of the simulation itself are elsewhere."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from ml.simulation.scenarios import SCENARIOS
from tests.cli.commands import database_url
from tests.process import TIPS, run


def test_the_output_says_how_many_tips_and_reactions_were_stored(tmp_path: Path) -> None:
    ended = run(TIPS, "simulate", "--users", "5", "--days", "2", DATABASE_URL=database_url(tmp_path))
    assert ended.returncode == 0, ended.stderr
    counts = re.fullmatch(
        r"simulated: ([0-9]+) tips, ([0-9]+) exposures, ([0-9]+) reactions "
        r"in .+/tips\.db; `tips serve` shows them on /admin/rewards\n",
        ended.stdout,
    )
    assert counts
    with closing(sqlite3.connect(tmp_path / "tips.db")) as connection:
        ((tips,),) = connection.execute("select count(*) from tip_scores where simulated")
        ((exposures,),) = connection.execute("select count(*) from tip_scores where seen")
        ((reactions,),) = connection.execute("select count(*) from reactions")
    assert (int(counts[1]), int(counts[2]), int(counts[3])) == (tips, exposures, reactions)
    assert tips == exposures > 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--users", "0"],
        ["--days", "366"],
        ["--regret", "regret.pdf"],
        ["--scenario", "rain"],
        ["--days", "30", "--scenario", "late-version-in-drift"],
        ["--scenario", "season", "--regret", "regret.svg"],
    ],
    ids=" ".join,
)
def test_a_wrong_option_is_refused_before_the_database_is_created(tmp_path: Path, arguments: list[str]) -> None:
    ended = run(TIPS, "simulate", *arguments, DATABASE_URL=database_url(tmp_path), COLUMNS="200")
    assert ended.returncode == 2
    assert arguments[0] in ended.stderr
    assert not [*tmp_path.iterdir()]


def test_the_help_lists_every_scenario() -> None:
    help_text = " ".join(run(TIPS, "simulate", "--help", COLUMNS="400").stdout.replace("│", " ").split())
    for name, scenario in SCENARIOS.items():
        assert f"{name}: {scenario.summary}" in help_text


def test_a_wrong_scenario_is_answered_with_the_names(tmp_path: Path) -> None:
    ended = run(TIPS, "simulate", "--scenario", "rain", DATABASE_URL=database_url(tmp_path), COLUMNS="400")
    assert "must be one of plain, season, changed-shares" in ended.stderr
