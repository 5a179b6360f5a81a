"""The values of options that several commands accept."""

from datetime import timedelta
from pathlib import Path

import pytest
import typer

from ml.cli.options import check_figure_file, parse_age


def test_an_age_is_a_number_of_days_or_hours() -> None:
    assert parse_age("90d") == timedelta(days=90)
    assert parse_age("36h") == timedelta(hours=36)


@pytest.mark.parametrize("age", ["90", "d", "-1d", "1w", "1d2h", ""])
def test_another_age_is_refused(age: str) -> None:
    with pytest.raises(typer.BadParameter, match=rf"^'{age}' should be a number of days or hours, such as 90d or 36h$"):
        parse_age(age)


@pytest.mark.parametrize("name", ["figure.svg", "figure.png"])
def test_a_figure_is_an_svg_or_png_file(tmp_path: Path, name: str) -> None:
    assert check_figure_file(tmp_path / name) == tmp_path / name


def test_a_figure_is_optional() -> None:
    assert check_figure_file(None) is None


@pytest.mark.parametrize("name", ["figure.pdf", "figure", "missing/figure.svg"])
def test_another_file_is_refused_as_a_figure(tmp_path: Path, name: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"^'.*' should be an \.svg or \.png file in an existing directory$"):
        check_figure_file(tmp_path / name)
