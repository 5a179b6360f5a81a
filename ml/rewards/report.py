"""Which version helps: what was counted, as rates with intervals that may be looked at every day, and as a verdict."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Literal

from ml.experiments.statistics import (
    SAMPLE_RATIO_ALARM,
    Interval,
    Sample,
    difference,
    observations_needed,
    probability_best,
    rate,
    sample_ratio_p_value,
)
from ml.platform.errors import FieldError, UnprocessableRequest
from ml.store.reactions import REACTIONS
from ml.store.rollup import ALL_TIPS, EVERYONE, DayCounts, RewardCounts, hour_of
from ml.store.tips import TipStore

ALPHA = 0.05
"""The chance that any of the verdicts on a page is ever wrong, however often it is looked at (Bonferroni)."""

MIN_TIPS = 100
"""Counted tips of each version before there is a verdict."""

MAX_IMBALANCE = 20
"""Times as many tips as the other that a version may have in a verdict: beyond that, no interval is to be trusted."""

_EPOCH = date(1970, 1, 1)
_ALL_HOURS = range(2**31 - 1)

VerdictKind = Literal["helps more", "helps less", "not yet known"]


@dataclass(frozen=True, slots=True)
class ReportWindow:
    """Which tips: those stored from `first` to `last` (days in UTC, both included), for people of one segment."""

    first: date | None = None
    last: date | None = None
    segment: str = EVERYONE

    @property
    def hours(self) -> range:
        """The hours since 1970 that the window covers."""
        start = (self.first - _EPOCH).days * 24 if self.first else _ALL_HOURS.start
        end = (self.last - _EPOCH).days * 24 + 24 if self.last else _ALL_HOURS.stop
        return range(start, end)


@dataclass(frozen=True, slots=True)
class Comparison:
    """How much more reward a tip of this variant has than one of the baseline, and whether that is known yet."""

    difference: Interval
    verdict: VerdictKind
    more_tips: int | None
    words: str


@dataclass(frozen=True, slots=True)
class DayReward:
    """One day of one variant: how many of its tips count, and their mean reward."""

    day: date
    counted: int
    reward: float


@dataclass(frozen=True, slots=True)
class Variant:
    """A version with one digest. `counted` tips are reacted to, or old enough to have no reward without a reaction.

    `dependent` tips were ranked above others by a policy that learned, or are of a version that sticks to its people.
    """

    prompt_version: str
    prompt_digest: str
    label: str
    tips: int
    reacted: int
    counted: int
    dependent: int
    reactions: Mapping[str, int]
    reward: Interval
    probability_best: float
    comparison: Comparison | None
    input_tokens: float
    output_tokens: float
    ms: float
    days: tuple[DayReward, ...]


@dataclass(frozen=True, slots=True)
class SampleRatio:
    """Whether versions were drawn as often as logged: taken and expected numbers, and the chi-square test's p-value."""

    taken: Mapping[str, int]
    expected: Mapping[str, float]
    p_value: float

    @property
    def alarm(self) -> bool:
        """Whether something drops or adds tips of some versions: then no comparison can be trusted."""
        return self.p_value < SAMPLE_RATIO_ALARM


@dataclass(frozen=True, slots=True)
class RewardReport:
    """All variants, the baseline first; `fallback` and `not_shown` tips are in none of them, `dependent` ones are."""

    window: ReportWindow
    baseline: str | None
    variants: tuple[Variant, ...]
    sample_ratio: SampleRatio
    fallback: int
    not_shown: int
    simulated: int
    dependent: int


class RewardReporter:
    """Makes reports from the counts in the store."""

    def __init__(self, tip_scores: TipStore, *, reaction_window: timedelta, versions: Sequence[str]) -> None:
        """Take how long a tip waits for a reaction, and the versions in the operator's order, the baseline first."""
        self._counts = tip_scores.counts
        self.reaction_window = reaction_window
        self._versions = versions

    async def report(self, window: ReportWindow, now: datetime, *, baseline: str | None = None) -> RewardReport:
        """Report on the tips of a window. A tip is old enough when its whole hour is older than the reaction window.

        Raises UnprocessableRequest for a baseline that has no tips in the window, StorageUnavailable.
        """
        mature_before = hour_of(now - self.reaction_window)
        counts = await self._counts.days(window.segment, window.hours, mature_before)
        assigned = await self._counts.assignments(window.segment, window.hours)
        return build_report(window, counts, assigned, baseline=baseline, preferred=self._versions)


def build_report(
    window: ReportWindow,
    counts: Sequence[DayCounts],
    assigned: Mapping[str, tuple[int, float]],
    *,
    baseline: str | None = None,
    preferred: Sequence[str] = (),
) -> RewardReport:
    """Make the report on a window from what was counted in it.

    The baseline is the version asked for, else the first of `preferred`, else of the alphabet, that has tips.
    """
    tallies = _tallies(counts)
    base = _baseline(tallies, baseline, preferred)
    best = probability_best([tally.sample for tally in tallies])
    variants = [
        tally.variant(base, p, alpha=ALPHA / max(1, len(tallies) - 1)) for tally, p in zip(tallies, best, strict=True)
    ]
    return RewardReport(
        window=window,
        baseline=base.label if base else None,
        variants=tuple(sorted(variants, key=lambda variant: variant.comparison is not None)),
        sample_ratio=_sample_ratio(assigned),
        fallback=sum(one.tips for one in counts if one.reaction == ALL_TIPS and one.fallback and one.shown),
        not_shown=sum(one.tips for one in counts if one.reaction == ALL_TIPS and not one.shown),
        simulated=sum(one.simulated for one in counts),
        dependent=sum(variant.dependent for variant in variants),
    )


@dataclass(slots=True)
class _Tally:
    """What was counted of one version with one digest."""

    prompt_version: str
    prompt_digest: str
    label: str
    shown: RewardCounts = field(default_factory=RewardCounts)
    reactions: Counter[str] = field(default_factory=Counter)
    days: dict[int, Sample] = field(default_factory=lambda: defaultdict(Sample))

    def add(self, count: DayCounts) -> None:
        if count.reaction == ALL_TIPS:
            self.shown += RewardCounts(
                count.tips,
                input_tokens=count.input_tokens,
                output_tokens=count.output_tokens,
                ms=count.ms,
                dependent=count.dependent,
            )
            self.days[count.day] += Sample(count.tips if count.mature else 0)
        else:
            self.reactions[count.reaction] += count.tips
            # A tip that is old enough is counted above already.
            self.days[count.day] += Sample(0 if count.mature else count.tips, count.reward, count.reward_squared)

    @property
    def sample(self) -> Sample:
        return sum(self.days.values(), Sample())

    def variant(self, base: "_Tally | None", probability_best: float, *, alpha: float) -> Variant:
        sample = self.sample
        tips = self.shown.tips
        return Variant(
            prompt_version=self.prompt_version,
            prompt_digest=self.prompt_digest,
            label=self.label,
            tips=tips,
            reacted=self.reactions.total(),
            counted=sample.n,
            dependent=self.shown.dependent,
            reactions={
                kind: self.reactions[kind] for kind in [*REACTIONS, *sorted(self.reactions.keys() - REACTIONS.keys())]
            },
            reward=rate(sample, alpha=ALPHA),
            probability_best=probability_best,
            comparison=None if base is None or base is self else _compare(base, self, alpha),
            input_tokens=self.shown.input_tokens / tips,
            output_tokens=self.shown.output_tokens / tips,
            ms=self.shown.ms / tips,
            days=tuple(
                DayReward(_EPOCH + timedelta(days=day), sample.n, sample.mean)
                for day, sample in sorted(self.days.items())
                if sample.n
            ),
        )


def _tallies(counts: Sequence[DayCounts]) -> list[_Tally]:
    """One for each version and digest that has tips, by name; where a version has several, labels show the digest."""
    compared = [count for count in counts if count.tips and count.shown and not count.fallback]
    keys = sorted({(count.prompt_version, count.prompt_digest) for count in compared})
    digests = Counter(version for version, _ in keys)
    tallies = {
        (version, digest): _Tally(version, digest, f"{version} ({digest[:8]})" if digests[version] > 1 else version)
        for version, digest in keys
    }
    for count in compared:
        tallies[count.prompt_version, count.prompt_digest].add(count)
    return list(tallies.values())


def _baseline(tallies: Sequence[_Tally], asked: str | None, preferred: Sequence[str]) -> _Tally | None:
    """Of the baseline's digests, the one that was shown last."""
    versions = sorted({tally.prompt_version for tally in tallies})
    if asked is not None and asked not in versions:
        error = FieldError("#/baseline", "has no tips here", tuple(versions))
        raise UnprocessableRequest("The baseline has no tips in this window.", errors=[error])
    version = asked or next((one for one in preferred if one in versions), versions[0] if versions else None)
    candidates = [tally for tally in tallies if tally.prompt_version == version]
    return max(candidates, key=lambda tally: (max(tally.days), tally.shown.tips), default=None)


def _compare(base: _Tally, other: _Tally, alpha: float) -> Comparison:
    a, b = base.sample, other.sample
    interval = difference(a, b, alpha=alpha)
    # Ranked tips were shown because they seemed better than others: their means say how good the best of several is.
    # Those of one person are alike: where they have one version, intervals that count tips are too narrow.
    if dependent := base.shown.dependent + other.shown.dependent:
        words = (
            f"not yet known: {dependent:,} tips were chosen by a ranking policy, or are sticky; "
            "only tips evaluate compares versions then"
        )
        return Comparison(interval, "not yet known", None, words)
    fewest, most = sorted((a.n, b.n))
    known = fewest >= MIN_TIPS and most <= MAX_IMBALANCE * fewest and (interval.low > 0 or interval.high < 0)
    if known:
        verdict: VerdictKind = "helps more" if interval.estimate > 0 else "helps less"
        limits = f"{_points(interval.estimate)} points, between {_points(interval.low)} and {_points(interval.high)}"
        return Comparison(interval, verdict, None, f"{other.label} {verdict} than {base.label}: {limits}")
    if fewest < MIN_TIPS:  # so few say nothing of how many it will take
        more: int | None = max(0, MIN_TIPS - a.n) + max(0, MIN_TIPS - b.n)
        words = f"not yet known: at least {more} more tips"
    elif most > MAX_IMBALANCE * fewest:
        more = -(-most // MAX_IMBALANCE) - fewest
        words = f"not yet known: at least {_round(more):,} more tips of {(base if a.n == fewest else other).label}"
    elif more := observations_needed(a, b, alpha=alpha):
        words = f"not yet known: about {_round(more):,} more tips at this rate"
    else:
        words = "not yet known: so far they help about equally, and it would take more than a million tips to tell"
    return Comparison(interval, "not yet known", more, words)


def _sample_ratio(assigned: Mapping[str, tuple[int, float]]) -> SampleRatio:
    taken = {version: n for version, (n, _) in sorted(assigned.items())}
    expected = {version: p for version, (_, p) in sorted(assigned.items())}
    return SampleRatio(taken, expected, sample_ratio_p_value([*taken.values()], [*expected.values()]))


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _round(number: int) -> int:
    """To two digits: more would be a promise."""
    digits = max(0, len(str(number)) - 2)
    return round(number, -digits)
