"""Values of command-line options that several commands accept."""

import re
from collections.abc import Callable, Collection
from datetime import timedelta
from pathlib import Path

import typer


def parse_age(text: str) -> timedelta:
    """Parse an age, such as 90d or 36h."""
    match = re.fullmatch(r"([0-9]{1,5})([dh])", text)
    if not match:
        raise typer.BadParameter(f"{text!r} should be a number of days or hours, such as 90d or 36h")
    return timedelta(**{{"d": "days", "h": "hours"}[match[2]]: int(match[1])})


def whole_number(low: int, high: int) -> Callable[[str | int], int]:
    """Return a parser of whole numbers from `low` to `high`; the messages of typer's own do not name the value."""

    def parse(value: str | int) -> int:  # a default is a number already
        text = str(value)
        if re.fullmatch(r"-?[0-9]{1,18}", text) and low <= int(text) <= high:
            return int(text)
        raise typer.BadParameter(f"{text!r} should be a whole number from {low:,} to {high:,}")

    return parse


def choice(names: Collection[str]) -> Callable[[str], str]:
    """Return a parser that accepts only these names."""

    def parse(text: str) -> str:
        if text in names:
            return text
        raise typer.BadParameter(f"{text!r} should be {' or '.join(names)}")

    return parse


def check_figure_file(file: Path | None) -> Path | None:
    """Return a path to write a figure to; it must end in .svg or .png, in an existing directory."""
    if file and (file.suffix not in {".svg", ".png"} or not file.parent.is_dir()):
        raise typer.BadParameter(f"{str(file)!r} should be an .svg or .png file in an existing directory")
    return file
