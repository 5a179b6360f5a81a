"""Strata of stored draws, for the comparison of two versions. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ml.experiments.comparison import Stratum
from ml.experiments.statistics import Sample
from ml.store.day_counts import DrawCounts


@dataclass(frozen=True, slots=True)
class DigestedVersion:
    """A prompt version with one of its digests."""

    prompt_version: str
    prompt_digest: str


def strata_of(draws: Iterable[DrawCounts], baseline: DigestedVersion, other: DigestedVersion) -> list[Stratum]:
    """Return the strata of a pair: those of the days on which each version had exactly the given digest.

    The options of a draw name versions without their digest. So the tips of other days lose their options: they are in
    no sum, but still count for the centre of the next day. `draws` that are not mature or comparable are left out.
    """
    usable = [draw for draw in draws if draw.mature and draw.outcome == "comparable"]
    days = sorted({draw.day for draw in usable})
    digests = [_digests_by_day(usable, days, each.prompt_version) for each in (baseline, other)]
    wanted = [{baseline.prompt_digest}, {other.prompt_digest}]
    return [
        Stratum(
            draw.day,
            draw.options if [found[draw.day] for found in digests] == wanted else {},
            draw.prompt_version,
            Sample(draw.tips, draw.reward, draw.reward_squared),
        )
        for draw in usable
    ]


def _digests_by_day(draws: Iterable[DrawCounts], days: Sequence[int], version: str) -> dict[int, set[str]]:
    """Return the digests of a version on each day: those of its tips, else the last known ones, else the first ones.

    A day without its tips must not be left out: whether there is one depends on the draws, and such a selection would
    bias a comparison.
    """
    found: dict[int, set[str]] = defaultdict(set)
    for draw in draws:
        if draw.prompt_version == version:
            found[draw.day].add(draw.prompt_digest)
    current = found[min(found)] if found else set()
    by_day = {}
    for day in days:
        current = found.get(day, current)
        by_day[day] = current
    return by_day
