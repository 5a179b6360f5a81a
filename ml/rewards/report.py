"""The reward report: reward rates per prompt version with intervals that hold at every look, and verdicts."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from ml.experiments.statistics import (
    SAMPLE_RATIO_ALARM,
    Interval,
    Sample,
    probability_best,
    rate,
    sample_ratio_p_value,
)
from ml.platform.errors import FieldError, UnprocessableRequest
from ml.rewards.comparison import Arm, Comparison, compare
from ml.store.reactions import REACTIONS
from ml.store.rollup import ALL_TIPS, EVERYONE, DayCounts, RewardCounts, hour_of
from ml.store.tips import TipStore

ALPHA = 0.05
"""The probability that any verdict of a report is ever wrong, however often it is read (Bonferroni)."""

_EPOCH = date(1970, 1, 1)
_ALL_HOURS = range(2**31 - 1)


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
class DayReward:
    """One day of one variant: the number of its counted tips, at least 1, and their mean reward."""

    day: date
    counted: int
    reward: float


@dataclass(frozen=True, slots=True)
class Variant:
    """A prompt version with one digest, and what was counted for it.

    `tips`: all of them, of which `reacted` have a reaction. `dependent`: the tips that a learned policy chose among
    candidates, or whose version was drawn per user. `counted`: the other tips with a reaction, and the other mature
    tips without one: `reward`, `probability_best`, `comparison` and `days` are over these only, and None or empty
    without them. `reactions`, and the means per tip `input_tokens`, `output_tokens` and `ms`, are over all tips.
    """

    prompt_version: str
    prompt_digest: str
    label: str
    tips: int
    reacted: int
    counted: int
    dependent: int
    reactions: Mapping[str, int]
    reward: Interval | None
    probability_best: float | None
    comparison: Comparison | None
    input_tokens: float
    output_tokens: float
    ms: float
    days: tuple[DayReward, ...]

    @property
    def waiting(self) -> int:
        """The number of young tips without a reaction that are not dependent: they may still get one."""
        return self.tips - self.counted - self.dependent


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
    """All variants, the baseline first, and the tips of the window in total.

    `tips`: those of the variants: `counted`, `waiting` and `dependent` ones. Tips of a `fallback` model and candidates
    that were `not_shown` are not among them. `simulated`: of all stored tips.
    """

    window: ReportWindow
    baseline: str | None
    variants: tuple[Variant, ...]
    sample_ratio: SampleRatio
    fallback: int
    not_shown: int
    simulated: int

    @property
    def tips(self) -> int:
        return sum(variant.tips for variant in self.variants)

    @property
    def counted(self) -> int:
        return sum(variant.counted for variant in self.variants)

    @property
    def waiting(self) -> int:
        return sum(variant.waiting for variant in self.variants)

    @property
    def dependent(self) -> int:
        return sum(variant.dependent for variant in self.variants)

    @property
    def stored(self) -> int:
        """The number of all tips in the window."""
        return self.tips + self.fallback + self.not_shown


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
    counted = [tally for tally in tallies if tally.sample.n]
    probabilities = probability_best([tally.sample for tally in counted])
    probability_of = {tally.key: probability for tally, probability in zip(counted, probabilities, strict=True)}
    alpha = ALPHA / max(1, len(tallies) - 1)
    variants = [tally.variant(baseline_tally, probability_of.get(tally.key), alpha=alpha) for tally in tallies]
    tip_counts = [count for count in counts if count.reaction == ALL_TIPS]
    return RewardReport(
        window=window,
        baseline=baseline_tally.label if baseline_tally else None,
        variants=tuple(sorted(variants, key=lambda variant: variant.comparison is not None)),
        sample_ratio=_sample_ratio(assignments),
        fallback=sum(count.tips for count in tip_counts if count.fallback and count.shown),
        not_shown=sum(count.tips for count in tip_counts if not count.shown),
        simulated=sum(count.simulated for count in tip_counts),
    )


@dataclass(slots=True)
class _Tally:
    """The sums over the shown tips of one prompt version with one digest."""

    prompt_version: str
    prompt_digest: str
    label: str
    tip_counts: RewardCounts = field(default_factory=RewardCounts)
    dependent: int = 0
    reactions: Counter[str] = field(default_factory=Counter)
    days: dict[int, Sample] = field(default_factory=lambda: defaultdict(Sample))
    newest_day: int = 0

    @property
    def key(self) -> tuple[str, str]:
        return self.prompt_version, self.prompt_digest

    def add(self, count: DayCounts) -> None:
        self.newest_day = max(self.newest_day, count.day)
        if count.reaction == ALL_TIPS:
            self.tip_counts += RewardCounts(
                count.tips, input_tokens=count.input_tokens, output_tokens=count.output_tokens, ms=count.ms
            )
            self.dependent += count.tips if count.dependent else 0
            rewards = Sample(count.tips if count.mature else 0)
        else:
            self.reactions[count.reaction] += count.tips
            # Mature tips are counted above, with or without a reaction.
            rewards = Sample(0 if count.mature else count.tips, count.reward, count.reward_squared)
        # The mean of ranked tips is the one of the best among several candidates. Tips of one user are correlated:
        # where a user has one version, intervals that count tips are too narrow.
        if not count.dependent:
            self.days[count.day] += rewards

    @property
    def sample(self) -> Sample:
        return sum(self.days.values(), Sample())

    @property
    def arm(self) -> Arm:
        return Arm(self.label, self.sample, self.dependent)

    def variant(self, baseline: "_Tally | None", probability_best: float | None, *, alpha: float) -> Variant:
        sample = self.sample
        tips = self.tip_counts.tips
        return Variant(
            prompt_version=self.prompt_version,
            prompt_digest=self.prompt_digest,
            label=self.label,
            tips=tips,
            reacted=self.reactions.total(),
            counted=sample.n,
            dependent=self.dependent,
            reactions={
                kind: self.reactions[kind] for kind in [*REACTIONS, *sorted(self.reactions.keys() - REACTIONS.keys())]
            },
            reward=rate(sample, alpha=ALPHA) if sample.n else None,
            probability_best=probability_best,
            comparison=None if baseline is None or baseline is self else compare(baseline.arm, self.arm, alpha=alpha),
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
    return max(of_baseline, key=lambda tally: (tally.newest_day, tally.tip_counts.tips), default=None)


def _sample_ratio(assignments: Mapping[str, tuple[int, float]]) -> SampleRatio:
    taken = {version: drawn for version, (drawn, _) in sorted(assignments.items())}
    expected = {version: propensities for version, (_, propensities) in sorted(assignments.items())}
    return SampleRatio(taken, expected, sample_ratio_p_value([*taken.values()], [*expected.values()]))
