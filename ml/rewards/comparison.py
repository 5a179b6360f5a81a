"""The comparison of a variant with the baseline: the difference of their mean rewards, and the verdict."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ml.experiments import comparison
from ml.experiments.statistics import Interval
from ml.store.day_counts import DrawCounts
from ml.store.strata import DigestedVersion, strata_of

VerdictKind = Literal["helps more", "helps less", "not yet known", "exploratory"]

ALPHA = 0.05
"""The probability that any verdict of a report is ever wrong; each has an equal part of it (Bonferroni)."""


@dataclass(frozen=True, slots=True)
class Arm(DigestedVersion):
    """One side of a comparison: a prompt version with one digest.

    `label`: its name in sentences. `excluded`: the number of its tips that no comparison uses.
    """

    label: str
    excluded: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """A variant compared with the baseline in this traffic.

    `difference`: of the mean rewards; None without a tip for which both could have been drawn. `tips`: the number of
    tips that it is over. `more_tips`: the approximate number of further ones until there is a verdict; None if there is
    one, if it is exploratory, or without an estimate. `words`: the comparison as a sentence.
    """

    difference: Interval | None
    verdict: VerdictKind
    tips: int
    more_tips: int | None
    words: str


def compare(draws: Iterable[DrawCounts], baseline: Arm, other: Arm, *, alpha: float, exploratory: bool) -> Comparison:
    """Compare `other` with the baseline.

    `draws`: the draws of the report. `alpha`: the probability that the verdict is ever wrong, or with `exploratory`,
    that an interval of a comparison that was chosen beforehand ever misses the difference; then there is no verdict.
    """
    sums = comparison.sum_pair(strata_of(draws, baseline, other), baseline.prompt_version, other.prompt_version)
    interval = comparison.difference(sums, alpha=alpha)
    verdict: VerdictKind = "exploratory" if exploratory else "not yet known"
    more: int | None = None
    pair = f"{other.label} helps more than {baseline.label} in this traffic"
    if interval is None:
        words = f"It is not known whether {pair}: there is no mature tip for which both could have been drawn"
    elif exploratory:
        words = f"{other.label} compared with {baseline.label} in this traffic: {_in_points(interval)} (exploratory)"
    elif interval.low > 0 or interval.high < 0:
        verdict = "helps more" if interval.low > 0 else "helps less"
        words = f"{other.label} {verdict} than {baseline.label} in this traffic: {_in_points(interval)}"
    else:
        words = f"It is not yet known whether {pair}: {_in_points(interval)}; "
        if more := comparison.tips_needed(sums, alpha=alpha):
            words += f"if the difference stays as it is, a verdict needs about {_count(_round(more), 'more tip')}"
        else:
            words += "at this difference, a verdict would need more than a million tips"
    if excluded := baseline.excluded + other.excluded:
        words += f" ({_count(excluded, 'tip')} excluded)"
    return Comparison(interval, verdict, sums.tips, more, f"{words}.")


def _in_points(interval: Interval) -> str:
    estimate, low, high = (f"{100 * value:+.1f}" for value in (interval.estimate, interval.low, interval.high))
    return f"{estimate} points, between {low} and {high}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _round(number: int) -> int:
    """Round to two significant digits, which avoids false precision."""
    return round(number, -max(0, len(str(number)) - 2))
