"""From measurements to figures: rounds in alternation, medians, percentiles, and the machine and versions measured."""

import os
import platform
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
R = TypeVar("R", bound="DataclassInstance")


def alternate(contenders: Mapping[str, T], rounds: int, condition: str = "") -> Iterator[tuple[str, T]]:
    """Yield each contender with its name in every round, so that other load on the machine affects all of them."""
    for number in range(rounds):
        for name, contender in contenders.items():
            print(f"round {number + 1} of {rounds}{condition}: {name}", file=sys.stderr)
            yield name, contender


def median(rounds: Sequence[R]) -> R:
    """Return the median of each field."""
    first = rounds[0]
    medians = {field.name: statistics.median(getattr(each, field.name) for each in rounds) for field in fields(first)}
    return replace(first, **medians)


def p50_and_p99(latencies: Sequence[float]) -> tuple[float, float]:
    percentiles = statistics.quantiles(latencies, n=100, method="inclusive")
    return percentiles[49], percentiles[98]


def machine(*packages: str) -> str:
    """Return a description of the machine, and the versions of the packages."""
    return f"{os.cpu_count()} cores ({platform.machine()}), {platform.system()}, {versions(*packages)}."


def versions(*packages: str) -> str:
    descriptions = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            descriptions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            descriptions.append(f"no {package}")
    return ", ".join(descriptions)
