"""Increasing rates of requests, until a server answers less than half of them within the target latency."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import aiohttp

from tests.bench.figures import alternate, median, p50_and_p99
from tests.bench.open_loop import Answer, load
from tests.bench.server import Running

RATES = (50, 100, 200, 400, 600, 800, 1200)
"""Requests per second."""

SECONDS = 4.0
TARGET_LATENCY = 50.0
"""Milliseconds."""


@dataclass(frozen=True)
class Point:
    """The results at one rate.

    `in_time`: answers per second within the target latency. `p50`, `p99`: latencies of answers, in ms. `refused`: the
    share of refused requests. `refused_p99`: the latency of refusals, in ms.
    """

    in_time: float
    p50: float
    p99: float
    refused: float
    refused_p99: float


async def measure_rate(client: aiohttp.ClientSession, running: Running, rate: float) -> Point:
    """Measure a rate, after a warm-up of one second."""
    await load(client, running, round(rate), rate)
    return summarise(await load(client, running, round(SECONDS * rate), rate))


def summarise(answers: Sequence[Answer]) -> Point:
    answered = [answer.latency for answer in answers if not answer.refused]
    refused = [answer.latency for answer in answers if answer.refused]
    p50, p99 = p50_and_p99(answered)
    return Point(
        sum(latency <= TARGET_LATENCY for latency in answered) / SECONDS,
        p50,
        p99,
        len(refused) / len(answers),
        p50_and_p99(refused)[1] if refused else 0,
    )


async def curves(
    client: aiohttp.ClientSession, runnings: Sequence[Running], rounds: int
) -> dict[str, dict[float, Point]]:
    """Return the results of each server by rate, up to the first rate at which less than half is answered in time."""
    remaining = {running.server.name: running for running in runnings}
    curve_points: dict[str, dict[float, Point]] = {name: {} for name in remaining}
    for rate in RATES:
        points: dict[str, list[Point]] = {name: [] for name in remaining}
        for name, running in alternate(remaining, rounds, f", {rate} per second"):
            points[name].append(await measure_rate(client, running, rate))
        for name, round_points in points.items():
            curve_points[name][rate] = median(round_points)
            if curve_points[name][rate].in_time < rate / 2:
                del remaining[name]
    return curve_points


def table(curves: Mapping[str, Mapping[float, Point]]) -> str:
    """Return the curves as a Markdown table."""
    lines = [
        f"| server | requests per second | answers per second within {TARGET_LATENCY:g} ms "
        "| p50 ms | p99 ms | 503 | p99 ms of a 503 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, points in curves.items():
        for rate, point in points.items():
            refused = f"{point.refused:.0%} | {point.refused_p99:.1f}" if point.refused else " | "
            lines.append(f"| {name} | {rate:g} | {point.in_time:.0f} | {point.p50:.1f} | {point.p99:.1f} | {refused} |")
    return "\n".join(lines)
