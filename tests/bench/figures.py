"""What becomes a figure of many measurements: rounds in turns, medians, percentiles, and what they depend on."""

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


def turns(contenders: Mapping[str, T], rounds: int, what: str = "") -> Iterator[tuple[str, T]]:
    """Yield each, with its name, in every round, so that whatever else the machine does falls on all."""
    for number in range(rounds):
        for name, contender in contenders.items():
            print(f"round {number + 1} of {rounds}{what}: {name}", file=sys.stderr)
            yield name, contender


def median(rounds: Sequence[R]) -> R:
    """Return the median of each field."""
    first = rounds[0]
    return replace(
        first, **{of.name: statistics.median(getattr(one, of.name) for one in rounds) for of in fields(first)}
    )


def p50_and_p99(latencies: Sequence[float]) -> tuple[float, float]:
    percentiles = statistics.quantiles(latencies, n=100, method="inclusive")
    return percentiles[49], percentiles[98]


def machine(*packages: str) -> str:
    """Return what the figures depend on: the machine, and the versions of what was measured."""
    return f"{os.cpu_count()} cores ({platform.machine()}), {platform.system()}, {versions(*packages)}."


def versions(*packages: str) -> str:
    found = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    return ", ".join(found)
