"""The comparison of a variant with the baseline: the difference of their mean rewards, and the verdict."""

from dataclasses import dataclass
from typing import Literal

from ml.experiments.statistics import Interval, Sample, difference, observations_needed

MIN_TIPS = 100
"""The number of counted tips that each of two versions needs for a verdict."""

MAX_IMBALANCE = 20
"""The maximum ratio of the counted tips of two versions in a verdict: beyond it the intervals are not valid."""

VerdictKind = Literal["helps more", "helps less", "not yet known"]


@dataclass(frozen=True, slots=True)
class Arm:
    """One side of a comparison.

    `label`: of the variant. `sample`: the rewards of its counted tips. `excluded`: the number of its dependent tips.
    """

    label: str
    sample: Sample
    excluded: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """A variant compared with the baseline: the difference of their mean rewards, and the verdict.

    `difference`: None while one of both has no counted tips. `more_tips`: the approximate number of tips until there is
    a verdict; None if there is one, or no estimate. `words`: the verdict as a sentence.
    """

    difference: Interval | None
    verdict: VerdictKind
    more_tips: int | None
    words: str


def compare(baseline: Arm, other: Arm, *, alpha: float) -> Comparison:
    """Compare `other` with the baseline; `alpha`: the probability that the verdict is ever wrong."""
    a, b = baseline.sample, other.sample
    interval = difference(a, b, alpha=alpha)
    smaller, larger = sorted((a.n, b.n))
    more: int | None = None
    verdict: VerdictKind = "not yet known"
    if smaller < MIN_TIPS:  # too few to estimate how many it will take
        more = max(0, MIN_TIPS - a.n) + max(0, MIN_TIPS - b.n)
        reason = f"each version needs {MIN_TIPS} counted tips, so at least {_more_tips(more)}"
    elif larger > MAX_IMBALANCE * smaller:
        more = -(-larger // MAX_IMBALANCE) - smaller
        few, many = (baseline, other) if a.n == smaller else (other, baseline)
        reason = (
            f"{many.label} has more than {MAX_IMBALANCE} times as many counted tips as {few.label}, "
            f"which needs at least {_more_tips(_round_to_two_digits(more))}"
        )
    elif interval.low > 0 or interval.high < 0:
        verdict = "helps more" if interval.estimate > 0 else "helps less"
        reason = f"{_points(interval.estimate)} points, between {_points(interval.low)} and {_points(interval.high)}"
    elif more := observations_needed(a, b, alpha=alpha):
        reason = f"at the present rates, a verdict needs about {_more_tips(_round_to_two_digits(more))}"
    else:
        reason = "their rates are about equal so far, and a verdict would need more than a million tips"
    if verdict == "not yet known":
        words = f"It is not yet known whether {other.label} helps more than {baseline.label}: {reason}"
    else:
        words = f"{other.label} {verdict} than {baseline.label}: {reason}"
    if excluded := baseline.excluded + other.excluded:
        words += f" ({excluded:,} tip{'' if excluded == 1 else 's'} excluded)"
    return Comparison(interval if smaller else None, verdict, more, f"{words}.")


def _more_tips(number: int) -> str:
    return f"{number:,} more tip{'' if number == 1 else 's'}"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _round_to_two_digits(number: int) -> int:
    """Round to two significant digits, which avoids false precision."""
    digits = max(0, len(str(number)) - 2)
    return round(number, -digits)
