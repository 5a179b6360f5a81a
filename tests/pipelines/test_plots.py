"""The figure of an off-policy evaluation."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from matplotlib.image import imread

from ml.pipelines.evaluation_report import EvaluationReport
from ml.pipelines.plots import draw
from ml.pipelines.targets import PromptPolicyTarget, VersionTarget
from tests.pipelines.logs import DAY, decision, evaluate, log_of


@pytest.fixture(scope="module")
def report() -> EvaluationReport:
    return evaluate(log_of(1_000), VersionTarget("v3", {"v3": 1.0}))


def texts(file: Path) -> list[str]:
    return [one.text or "" for one in ET.parse(file).iter("{http://www.w3.org/2000/svg}text")]


def test_the_figure_is_deterministic_and_contains_text(report: EvaluationReport, tmp_path: Path) -> None:
    one, other = tmp_path / "one.svg", tmp_path / "other.svg"
    for file in (one, other):
        draw(report, file)
    assert one.read_bytes() == other.read_bytes()
    lines = texts(one)
    assert {"What v3 would have earned", "the log", *report.estimates} <= {*lines}
    assert report.verdict in " ".join(lines)
    assert any(line.endswith("use sndr as the estimate") for line in lines)


def test_refused_estimates_are_grey_and_the_verdict_gives_the_reason(tmp_path: Path) -> None:
    report = evaluate([decision(reward=1.0)], PromptPolicyTarget("uniform", DAY))
    draw(report, tmp_path / "plot.svg")
    assert report.verdict in " ".join(texts(tmp_path / "plot.svg"))
    svg = (tmp_path / "plot.svg").read_text()
    assert "#b9b6af" in svg
    assert "#0069b0" not in svg
    assert any(line.endswith("grey: not valid") for line in texts(tmp_path / "plot.svg"))


@pytest.mark.parametrize("name", ["$v$ <b>", "v1=1," * 40, "a very long name " * 10])
def test_any_policy_name_is_drawn_as_text_of_limited_length(
    report: EvaluationReport, tmp_path: Path, name: str
) -> None:
    file = tmp_path / "plot.svg"
    draw(replace(report, policy=name), file)
    (title,) = (line for line in texts(file) if line.startswith("What "))
    assert len(title) < 60
    assert title.startswith(f"What {name[:20]}"[:25].rstrip())
    draw(replace(report, policy=name), file.with_suffix(".png"))
    assert imread(file.with_suffix(".png")).shape[2] == 4
