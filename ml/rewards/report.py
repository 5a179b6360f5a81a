"""The reward report: reward rates per prompt version with intervals that hold at every look, and verdicts."""

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
"""The probability that any verdict of a report is ever wrong, however often it is read (Bonferroni)."""

MIN_TIPS = 100
"""The number of counted tips that each of two versions needs for a verdict."""

MAX_IMBALANCE = 20
"""The maximum ratio of the counted tips of two versions in a verdict: beyond it the intervals are not valid."""

_EPOCH = date(1970, 1, 1)
_ALL_HOURS = range(2**31 - 1)

VerdictKind = Literal["helps more", "helps less", "not yet known"]


@dataclass(frozen=True, slots=True)
class ReportWindow:
    """The tips stored from `first` to `last` (days in UTC, both included; None: no limit), for users of one segment."""

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
    """A variant compared with the baseline: the difference of their mean rewards, and the verdict.

    `more_tips`: the approximate number of tips until there is a verdict; None if there is one, or no estimate. `words`:
    the verdict as a sentence.
    """

    difference: Interval
    verdict: VerdictKind
    more_tips: int | None
    words: str


@dataclass(frozen=True, slots=True)
class DayReward:
    """One day of one variant: the number of its counted tips, and their mean reward."""

    day: date
    counted: int
    reward: float


@dataclass(frozen=True, slots=True)
class Variant:
    """A prompt version with one digest, and what was counted for it.

    `counted`: the tips with a reaction, and the mature tips without one. `dependent`: the tips that a learned policy
    chose among candidates, or whose version was drawn per user. `input_tokens`, `output_tokens`, `ms`: means per tip.
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
    """The sample-ratio test: whether prompt versions were drawn as often as their logged propensities say.

    `taken`: the number of draws of each version. `expected`: the sum of its propensities. `p_value`: of the chi-square
    test.
    """

    taken: Mapping[str, int]
    expected: Mapping[str, float]
    p_value: float

    @property
    def alarm(self) -> bool:
        """Whether tips of some versions were lost or added: then no comparison is valid."""
        return self.p_value < SAMPLE_RATIO_ALARM


@dataclass(frozen=True, slots=True)
class RewardReport:
    """All variants, the baseline first. They include `dependent` tips, but no `fallback` and no `not_shown` tips."""

    window: ReportWindow
    baseline: str | None
    variants: tuple[Variant, ...]
    sample_ratio: SampleRatio
    fallback: int
    not_shown: int
    simulated: int
    dependent: int


class RewardReporter:
    """Builds reports from the counts in the store."""

    def __init__(self, tip_store: TipStore, *, reaction_window: timedelta, versions: Sequence[str]) -> None:
        """`reaction_window`: the age at which a tip without a reaction is mature, so that its reward is 0.

        `versions`: the prompt versions in the order of TIP_PROMPT_VERSION; the first one with tips is the baseline.
        """
        self._counts = tip_store.counts
        self.reaction_window = reaction_window
        self._versions = versions

    async def report(self, window: ReportWindow, now: datetime, *, baseline: str | None = None) -> RewardReport:
        """Return the report on the tips of a window. A tip is mature when its whole hour is.

        Raises UnprocessableRequest for a baseline without tips in the window, and StorageUnavailable.
        """
        mature_before = hour_of(now - self.reaction_window)
        counts = await self._counts.days(window.segment, window.hours, mature_before)
        assignments = await self._counts.assignments(window.segment, window.hours)
        return build_report(window, counts, assignments, baseline=baseline, preferred=self._versions)


def build_report(
    window: ReportWindow,
    counts: Sequence[DayCounts],
    assignments: Mapping[str, tuple[int, float]],
    *,
    baseline: str | None = None,
    preferred: Sequence[str] = (),
) -> RewardReport:
    """Return the report on a window from its counts and assignments.

    `assignments`: for each prompt version the number of draws and the expected number. The baseline is `baseline`;
    else the first version with tips in `preferred`; else the first one in the alphabet. Raises UnprocessableRequest
    when `baseline` has no tips.
    """
    tallies = _tallies(counts)
    baseline_tally = _baseline(tallies, baseline, preferred)
    probabilities = probability_best([tally.sample for tally in tallies])
    alpha = ALPHA / max(1, len(tallies) - 1)
    variants = [
        tally.variant(baseline_tally, probability, alpha=alpha)
        for tally, probability in zip(tallies, probabilities, strict=True)
    ]
    tip_counts = [count for count in counts if count.reaction == ALL_TIPS]
    return RewardReport(
        window=window,
        baseline=baseline_tally.label if baseline_tally else None,
        variants=tuple(sorted(variants, key=lambda variant: variant.comparison is not None)),
        sample_ratio=_sample_ratio(assignments),
        fallback=sum(count.tips for count in tip_counts if count.fallback and count.shown),
        not_shown=sum(count.tips for count in tip_counts if not count.shown),
        simulated=sum(count.simulated for count in tip_counts),
        dependent=sum(variant.dependent for variant in variants),
    )


@dataclass(slots=True)
class _Tally:
    """The sums over the shown tips of one prompt version with one digest."""

    prompt_version: str
    prompt_digest: str
    label: str
    tip_counts: RewardCounts = field(default_factory=RewardCounts)
    reactions: Counter[str] = field(default_factory=Counter)
    days: dict[int, Sample] = field(default_factory=lambda: defaultdict(Sample))

    def add(self, count: DayCounts) -> None:
        if count.reaction == ALL_TIPS:
            self.tip_counts += RewardCounts(
                count.tips,
                input_tokens=count.input_tokens,
                output_tokens=count.output_tokens,
                ms=count.ms,
                dependent=count.dependent,
            )
            self.days[count.day] += Sample(count.tips if count.mature else 0)
        else:
            self.reactions[count.reaction] += count.tips
            # Mature tips are counted above, with or without a reaction.
            self.days[count.day] += Sample(0 if count.mature else count.tips, count.reward, count.reward_squared)

    @property
    def sample(self) -> Sample:
        return sum(self.days.values(), Sample())

    def variant(self, baseline: "_Tally | None", probability_best: float, *, alpha: float) -> Variant:
        sample = self.sample
        tips = self.tip_counts.tips
        return Variant(
            prompt_version=self.prompt_version,
            prompt_digest=self.prompt_digest,
            label=self.label,
            tips=tips,
            reacted=self.reactions.total(),
            counted=sample.n,
            dependent=self.tip_counts.dependent,
            reactions={
                kind: self.reactions[kind] for kind in [*REACTIONS, *sorted(self.reactions.keys() - REACTIONS.keys())]
            },
            reward=rate(sample, alpha=ALPHA),
            probability_best=probability_best,
            comparison=None if baseline is None or baseline is self else _compare(baseline, self, alpha),
            input_tokens=self.tip_counts.input_tokens / tips,
            output_tokens=self.tip_counts.output_tokens / tips,
            ms=self.tip_counts.ms / tips,
            days=tuple(
                DayReward(_EPOCH + timedelta(days=day), sample.n, sample.mean)
                for day, sample in sorted(self.days.items())
                if sample.n
            ),
        )


def _tallies(counts: Sequence[DayCounts]) -> list[_Tally]:
    """Return a tally for each prompt version and digest that has tips, sorted by both.

    The label of a version with several digests includes the start of the digest.
    """
    included = [count for count in counts if count.tips and count.shown and not count.fallback]
    keys = sorted({(count.prompt_version, count.prompt_digest) for count in included})
    digests = Counter(version for version, _ in keys)
    tallies = {
        (version, digest): _Tally(version, digest, f"{version} ({digest[:8]})" if digests[version] > 1 else version)
        for version, digest in keys
    }
    for count in included:
        tallies[count.prompt_version, count.prompt_digest].add(count)
    return list(tallies.values())


def _baseline(tallies: Sequence[_Tally], requested: str | None, preferred: Sequence[str]) -> _Tally | None:
    """Return the tally of the baseline, with the digest of its newest tips; None without tips."""
    versions = sorted({tally.prompt_version for tally in tallies})
    if requested is not None and requested not in versions:
        error = FieldError("#/baseline", "has no tips here", tuple(versions))
        raise UnprocessableRequest("The baseline has no tips in this window.", errors=[error])
    alphabetical = versions[0] if versions else None
    baseline = requested or next((version for version in preferred if version in versions), alphabetical)
    of_baseline = [tally for tally in tallies if tally.prompt_version == baseline]
    return max(of_baseline, key=lambda tally: (max(tally.days), tally.tip_counts.tips), default=None)


def _compare(baseline: _Tally, other: _Tally, alpha: float) -> Comparison:
    a, b = baseline.sample, other.sample
    interval = difference(a, b, alpha=alpha)
    # The mean of ranked tips is the one of the best among several candidates. Tips of one user are correlated: where a
    # user has one version, intervals that count tips are too narrow.
    if dependent := baseline.tip_counts.dependent + other.tip_counts.dependent:
        words = (
            f"not yet known: {dependent:,} tips were chosen by a ranking policy, or their version was drawn per user; "
            "only tips evaluate compares versions then"
        )
        return Comparison(interval, "not yet known", None, words)
    smaller, larger = sorted((a.n, b.n))
    is_valid = smaller >= MIN_TIPS and larger <= MAX_IMBALANCE * smaller
    if is_valid and (interval.low > 0 or interval.high < 0):
        verdict: VerdictKind = "helps more" if interval.estimate > 0 else "helps less"
        limits = f"{_points(interval.estimate)} points, between {_points(interval.low)} and {_points(interval.high)}"
        return Comparison(interval, verdict, None, f"{other.label} {verdict} than {baseline.label}: {limits}")
    if smaller < MIN_TIPS:  # too few to estimate how many it will take
        more: int | None = max(0, MIN_TIPS - a.n) + max(0, MIN_TIPS - b.n)
        words = f"not yet known: at least {more} more tips"
    elif larger > MAX_IMBALANCE * smaller:
        more = -(-larger // MAX_IMBALANCE) - smaller
        label = (baseline if a.n == smaller else other).label
        words = f"not yet known: at least {_round_to_two_digits(more):,} more tips of {label}"
    elif more := observations_needed(a, b, alpha=alpha):
        words = f"not yet known: about {_round_to_two_digits(more):,} more tips at this rate"
    else:
        words = "not yet known: their rates are about equal so far; a verdict would need more than a million tips"
    return Comparison(interval, "not yet known", more, words)


def _sample_ratio(assignments: Mapping[str, tuple[int, float]]) -> SampleRatio:
    taken = {version: drawn for version, (drawn, _) in sorted(assignments.items())}
    expected = {version: propensities for version, (_, propensities) in sorted(assignments.items())}
    return SampleRatio(taken, expected, sample_ratio_p_value([*taken.values()], [*expected.values()]))


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _round_to_two_digits(number: int) -> int:
    """Round to two significant digits, which avoids false precision."""
    digits = max(0, len(str(number)) - 2)
    return round(number, -digits)
