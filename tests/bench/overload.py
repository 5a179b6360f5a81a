"""Growing rates of requests, until a server answers less than half of them within what is promised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import aiohttp

from tests.bench.figures import median, p50_and_p99, turns
from tests.bench.open_loop import Answer, load
from tests.bench.server import Running

RATES = (50, 100, 200, 400, 600, 800, 1200)
"""Requests a second."""

SECONDS = 4.0
PROMISED = 50.0
"""Milliseconds in which an answer comes, up to a rate."""


@dataclass(frozen=True)
class Point:
    """What became of the requests at one rate: a second in time; of the answers, in ms; refused, and in how many ms."""

    in_time: float
    p50: float
    p99: float
    refused: float
    refused_p99: float


async def point(client: aiohttp.ClientSession, running: Running, rate: float) -> Point:
    """Return what becomes of requests at a rate, after a second of them that does not count."""
    await load(client, running, round(rate), rate)
    return summary(await load(client, running, round(SECONDS * rate), rate))


def summary(answers: Sequence[Answer]) -> Point:
    answered = [answer.latency for answer in answers if not answer.refused]
    refused = [answer.latency for answer in answers if answer.refused]
    p50, p99 = p50_and_p99(answered)
    return Point(
        sum(latency <= PROMISED for latency in answered) / SECONDS,
        p50,
        p99,
        len(refused) / len(answers),
        p50_and_p99(refused)[1] if refused else 0,
    )


async def curves(
    client: aiohttp.ClientSession, runnings: Sequence[Running], rounds: int
) -> dict[str, dict[float, Point]]:
    """Return what becomes of each server's requests at growing rates, the first that is far too much included."""
    left = {running.server.name: running for running in runnings}
    found: dict[str, dict[float, Point]] = {name: {} for name in left}
    for rate in RATES:
        points: dict[str, list[Point]] = {name: [] for name in left}
        for name, running in turns(left, rounds, f", {rate} a second"):
            points[name].append(await point(client, running, rate))
        for name, of_rounds in points.items():
            found[name][rate] = median(of_rounds)
            if found[name][rate].in_time < rate / 2:
                del left[name]
    return found


def table(curve: Mapping[str, Mapping[float, Point]]) -> str:
    """Return the curves as a table in Markdown."""
    lines = [
        f"| server | asked a second | answered within {PROMISED:g} ms | p50 ms | p99 ms | 503 | p99 ms of a 503 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, points in curve.items():
        for rate, at in points.items():
            refused = f"{at.refused:.0%} | {at.refused_p99:.1f}" if at.refused else " | "
            lines.append(f"| {name} | {rate:g} | {at.in_time:.0f} | {at.p50:.1f} | {at.p99:.1f} | {refused} |")
    return "\n".join(lines)
