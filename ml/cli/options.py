"""Values of command-line options that several commands accept."""

import re
from datetime import timedelta
from pathlib import Path

import typer


def parse_age(text: str) -> timedelta:
    """Parse an age, such as 90d or 36h."""
    match = re.fullmatch(r"([0-9]{1,5})([dh])", text)
    if not match:
        raise typer.BadParameter("should be a number of days or hours, such as 90d or 36h")
    return timedelta(**{{"d": "days", "h": "hours"}[match[2]]: int(match[1])})


def check_figure_file(file: Path | None) -> Path | None:
    """Return a path to write a figure to; it must end in .svg or .png, in an existing directory."""
    if file and (file.suffix not in {".svg", ".png"} or not file.parent.is_dir()):
        raise typer.BadParameter("should be an .svg or .png file in an existing directory")
    return file
