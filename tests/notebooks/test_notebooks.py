"""The notebooks: each runs from top to bottom, draws its figure, and what it shows is true of its simulated users."""

import importlib.util
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

import ml

FOLDER = Path(next(iter(ml.__path__))) / "notebooks"


def run(name: str) -> dict[str, Any]:
    """Return what the cells of a notebook define, and check that it draws a figure."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec
    assert spec.loader
    notebook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notebook)
    _, defined = notebook.app.run()
    assert all(axes.has_data() for axes in defined["figure"].axes)
    return dict(defined)


@pytest.fixture(autouse=True)
def _no_display() -> None:
    mpl.use("agg")


def test_every_notebook_is_tested_and_none_can_be_imported() -> None:
    tested = {name.removeprefix("test_notebook_") for name in globals() if name.startswith("test_notebook_")}
    assert {file.stem for file in FOLDER.glob("*.py")} == tested


def test_notebook_which_version_works() -> None:
    defined = run("which_version_works")
    assert all(look.low <= defined["truth"] <= look.high for look in defined["looks"])
    assert defined["looks"][-1].low > 0
    assert max(defined["by_segment"], key=lambda name: defined["by_segment"][name].estimate) == "mood:low"


def test_notebook_would_it_have_earned_more() -> None:
    defined = run("would_it_have_earned_more")
    for name, report in defined["reports"].items():
        assert report.best.low <= defined["truths"][name] <= report.best.high
    assert defined["reports"]["learned"].gain.low > 0


def test_notebook_what_forgetting_does() -> None:
    defined = run("what_forgetting_does")
    after = [day > defined["change"] + 4 for day in defined["evaluated"]]
    of_all_days, of_last_days = (
        sum(share for share, counts in zip(defined["shares"][name], after, strict=True) if counts)
        for name in ("all days", "the last 7 days")
    )
    assert of_last_days > of_all_days
