"""`tips simulate --regret`: the regret of each policy, and its table and figure."""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from matplotlib.image import imread

from ml.experiments.policies import comparable_policies
from ml.simulation.people import LISTED_VERSIONS
from ml.simulation.regret import PolicyOutcome, RegretComparison, compare_policies
from tests.process import TIPS, run


@pytest.fixture(scope="module")
def comparison() -> RegretComparison:
    return compare_policies(LISTED_VERSIONS, users=500, days=12, seed=1, progress=lambda days: days)


def outcome_of(comparison: RegretComparison, policy: str) -> PolicyOutcome:
    return next(one for one in comparison.policies if one.policy == policy)


def test_the_oracle_has_no_regret_and_that_of_each_policy_grows_every_day(comparison: RegretComparison) -> None:
    assert comparison.oracle.reward == pytest.approx(2 / 3, abs=0.02)
    assert not comparison.oracle.regret.any()
    assert [one.policy for one in comparison.policies] == [*comparable_policies(), "ranking"]
    for one in comparison.policies:
        assert one.regret.shape == (13,)
        assert one.regret[0] == 0
        assert (np.diff(one.regret) > 0).all()
        assert one.regret[-1] == pytest.approx(comparison.tips * (comparison.oracle.reward - one.reward))


def test_policies_that_do_not_learn_lose_as_much_on_the_last_days_as_on_the_first(comparison: RegretComparison) -> None:
    assert outcome_of(comparison, "uniform").reward == pytest.approx(0.357, abs=0.02)
    for policy in ("uniform", "sticky"):
        lost = np.diff(outcome_of(comparison, policy).regret)
        assert lost[-3:].mean() == pytest.approx(lost[:3].mean(), rel=0.15)


def test_thompson_sampling_has_less_regret_than_uniform_and_ranking_has_the_least(comparison: RegretComparison) -> None:
    uniform, thompson, ranking = (
        outcome_of(comparison, policy).regret for policy in ("uniform", "thompson", "ranking")
    )
    assert thompson[-1] < 0.9 * uniform[-1]
    assert ranking[-1] < 0.5 * uniform[-1]
    assert np.diff(ranking)[-3:].mean() < 0.35 * np.diff(uniform)[-3:].mean()
    # No policy has learned before the first night.
    assert thompson[1] == pytest.approx(uniform[1], rel=1e-9)
    assert ranking[1] == uniform[1]


def test_the_same_seed_gives_the_same_outcomes_and_a_different_seed_different_ones() -> None:
    def once(seed: int) -> list[list[float]]:
        return [
            one.regret.tolist()
            for one in compare_policies(
                LISTED_VERSIONS, users=60, days=3, seed=seed, progress=lambda days: days
            ).policies
        ]

    assert once(1) == once(1) != once(2)


def test_days_without_visits_are_possible() -> None:
    comparison = compare_policies(LISTED_VERSIONS, users=1, days=4, seed=1, progress=lambda days: days)
    assert comparison.tips < 4


def test_the_command_prints_a_table_and_draws_a_valid_figure(tmp_path: Path) -> None:
    def simulate(name: str) -> str:
        file = tmp_path / name
        ended = run(TIPS, "simulate", "--users", "60", "--days", "3", "--regret", str(file), COLUMNS="120")
        assert (ended.returncode, file.exists()) == (0, True), ended.stderr
        return ended.stdout

    table = simulate("regret.svg")
    for policy, share in (("oracle", "100.0%"), ("uniform", r"5\d\.\d%"), ("thompson", ""), ("ranking", "")):
        assert re.search(rf"{policy} .*{share}", table)
    svg = (tmp_path / "regret.svg").read_text()
    ET.fromstring(svg)
    assert all(re.search(rf">{policy} \d+<", svg) for policy in ("uniform", "sticky", "thompson", "ranking"))
    simulate("again.svg")
    assert (tmp_path / "again.svg").read_text() == svg
    simulate("regret.png")
    assert imread(tmp_path / "regret.png").shape[2] == 4


@pytest.mark.parametrize("file", ["regret.pdf", "regret", "nowhere/regret.svg"])
def test_an_invalid_figure_file_is_refused_before_the_simulation(tmp_path: Path, file: str) -> None:
    ended = run(TIPS, "simulate", "--regret", str(tmp_path / file), COLUMNS="200")
    assert ended.returncode == 2
    assert "should be an .svg or .png file in an existing directory" in ended.stderr
    assert not [*tmp_path.iterdir()]


def test_a_missing_library_is_one_sentence_that_names_the_extra(tmp_path: Path) -> None:
    hidden = "import sys; sys.modules['matplotlib'] = None; from ml.cli.main import main; main()"
    ended = run(
        sys.executable, "-c", hidden, "simulate", "--users", "2", "--days", "1", "--regret", f"{tmp_path}/r.svg"
    )
    assert ended.returncode == 1
    assert "matplotlib is missing: this needs the `recommender` extra" in ended.stderr
    assert "Traceback" not in ended.stderr
