"""The reward report: mean rewards per prompt version with intervals that hold at every look, verdicts, the funnel."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from ml.experiments.confidence_sequence import rate
from ml.experiments.statistics import Interval, Sample
from ml.platform.errors import FieldError, UnprocessableRequest
from ml.rewards.comparison import Arm, Comparison, compare
from ml.rewards.funnel import Funnel, PeriodCounts, build_funnel
from ml.store.day_counts import DayCounts
from ml.store.hours import hour_of
from ml.store.reactions import REACTIONS
from ml.store.rollup import ALL_TIPS, EVERYONE, RewardCounts
from ml.store.tips import TipStore

ALPHA = 0.05
"""The probability that any verdict of a report is ever wrong; each has an equal part of it (Bonferroni)."""

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

    `tips`: all of them, of which `reacted` have a reaction; each is in one of the next four. `counted`: the mature
    ones that count: `reward` and `days` are over these only, and None or empty without them. `young`: tips whose
    reaction window has not ended. `dependent`: tips that a learned policy chose among candidates, or whose version was
    drawn per user. `unseen`: mature tips without an exposure, where exposures are reported; of these,
    `exposure_unknown` are older than the first report. `reactions`, and the means per tip `input_tokens`,
    `output_tokens` and `ms`, are over all tips.
    """

    prompt_version: str
    prompt_digest: str
    label: str
    tips: int
    reacted: int
    counted: int
    young: int
    dependent: int
    unseen: int
    exposure_unknown: int
    reactions: Mapping[str, int]
    reward: Interval | None
    comparison: Comparison | None
    input_tokens: float
    output_tokens: float
    ms: float
    days: tuple[DayReward, ...]


@dataclass(frozen=True, slots=True)
class RewardReport:
    """All variants, the baseline first, the funnel, and the tips of the window in total.

    `exploratory`: the window, the segment or the baseline is not the default one, so that there are no verdicts.
    `verdict_alpha`: the probability that a single verdict is ever wrong. `exposure_reported`: only tips that were seen
    count. Tips of a `fallback` model and candidates that were `not_shown` are not among `tips`. `simulated`: of all
    stored tips.
    """

    window: ReportWindow
    baseline: str | None
    exploratory: bool
    verdict_alpha: float
    exposure_reported: bool
    variants: tuple[Variant, ...]
    funnel: Funnel
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
    def young(self) -> int:
        return sum(variant.young for variant in self.variants)

    @property
    def dependent(self) -> int:
        return sum(variant.dependent for variant in self.variants)

    @property
    def unseen(self) -> int:
        return sum(variant.unseen for variant in self.variants)

    @property
    def exposure_unknown(self) -> int:
        return sum(variant.exposure_unknown for variant in self.variants)

    @property
    def stored(self) -> int:
        """The number of all tips in the window."""
        return self.tips + self.fallback + self.not_shown


class RewardReporter:
    """Builds reports from the counts in the store."""

    def __init__(self, tip_store: TipStore, *, versions: Sequence[str], exposure_reported: bool) -> None:
        """`versions`: in the order of TIP_PROMPT_VERSION; the first one with tips is the baseline.

        `exposure_reported`: whether only tips whose exposure was reported count.
        """
        self.tip_store = tip_store
        self.reaction_window = tip_store.reaction_window
        self._versions = versions
        self._exposure_reported = exposure_reported

    def mature_before(self, now: datetime) -> int:
        """Return the hour before which tips are mature: a tip is mature when its whole hour is."""
        return hour_of(now - self.reaction_window)

    async def report(self, window: ReportWindow, now: datetime, *, baseline: str | None = None) -> RewardReport:
        """Return the report on the tips of a window.

        Raises UnprocessableRequest for a baseline without tips in the window, and StorageUnavailable.
        """
        first = await self.tip_store.counts.first_exposure_hour()
        hours = window.hours
        split = min(max(hours.start, hours.stop if first is None else first), hours.stop)
        unknown = await self._counts(window.segment, range(hours.start, split), now)
        known = await self._counts(window.segment, range(split, hours.stop), now)
        return build_report(
            window,
            unknown,
            known,
            baseline=baseline,
            preferred=self._versions,
            exposures=first is not None,
            exposure_reported=self._exposure_reported,
        )

    async def _counts(self, segment: str, hours: range, now: datetime) -> PeriodCounts:
        if not hours:
            return PeriodCounts()
        counts, mature_before = self.tip_store.counts, self.mature_before(now)
        return PeriodCounts(
            await counts.days(segment, hours, mature_before), await counts.draws(segment, hours, mature_before)
        )


def build_report(
    window: ReportWindow,
    unknown: PeriodCounts,
    known: PeriodCounts,
    *,
    baseline: str | None = None,
    preferred: Sequence[str] = (),
    exposures: bool = False,
    exposure_reported: bool = False,
) -> RewardReport:
    """Return the report on a window from its counts.

    `unknown`, `known`: the periods before and since the first exposure report, which exists if `exposures`. The
    baseline is `baseline`; else the first version with tips in `preferred`; else the first one in the alphabet. Raises
    UnprocessableRequest when `baseline` has no tips.
    """
    tallies = _tallies(unknown, known, exposure_reported=exposure_reported)
    baseline_tally = _baseline(tallies, baseline, preferred)
    default = _baseline(tallies, None, preferred)
    exploratory = bool(window.first or window.last or window.segment != EVERYONE or baseline_tally is not default)
    alpha = ALPHA / max(1, len(tallies) - 1)
    draws = [draw for draw in (*unknown.draws, *known.draws) if draw.seen or not exposure_reported]
    variants = []
    for tally in tallies:
        comparison = None
        if baseline_tally and baseline_tally is not tally:
            comparison = compare(draws, baseline_tally.arm, tally.arm, alpha=alpha, exploratory=exploratory)
        variants.append(tally.variant(comparison))
    tip_counts = [count for count in (*unknown.tips, *known.tips) if count.reaction == ALL_TIPS]
    return RewardReport(
        window=window,
        baseline=baseline_tally.label if baseline_tally else None,
        exploratory=exploratory,
        verdict_alpha=alpha,
        exposure_reported=exposure_reported,
        variants=tuple(sorted(variants, key=lambda variant: variant.comparison is not None)),
        funnel=build_funnel(unknown, known, exposures=exposures),
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
    young: int = 0
    dependent: int = 0
    unseen: int = 0
    exposure_unknown: int = 0
    reactions: Counter[str] = field(default_factory=Counter)
    days: dict[int, Sample] = field(default_factory=lambda: defaultdict(Sample))
    newest_day: int = 0

    def add(self, count: DayCounts, *, exposure_known: bool, exposure_reported: bool) -> None:
        self.newest_day = max(self.newest_day, count.day)
        tips = count.tips if count.reaction == ALL_TIPS else 0
        tokens = {"input_tokens": count.input_tokens, "output_tokens": count.output_tokens}
        self.tip_counts.add(RewardCounts(tips, ms=count.ms, **tokens))
        if count.reaction != ALL_TIPS:
            self.reactions[count.reaction] += count.tips
        # The mean of ranked tips is the one of the best among several candidates. Tips of one user are correlated:
        # where a user has one version, intervals that count tips are too narrow.
        if count.dependent:
            self.dependent += tips
        elif not count.mature:
            self.young += tips
        elif exposure_reported and not count.seen:
            self.unseen += tips
            self.exposure_unknown += 0 if exposure_known else tips
        else:
            self.days[count.day] += Sample(tips, count.reward, count.reward_squared)

    @property
    def arm(self) -> Arm:
        return Arm(self.prompt_version, self.prompt_digest, self.label, self.dependent + self.unseen)

    def variant(self, comparison: Comparison | None) -> Variant:
        tips = self.tip_counts.tips
        counted = sum(sample.n for sample in self.days.values())
        return Variant(
            prompt_version=self.prompt_version,
            prompt_digest=self.prompt_digest,
            label=self.label,
            tips=tips,
            reacted=self.reactions.total(),
            counted=counted,
            young=self.young,
            dependent=self.dependent,
            unseen=self.unseen,
            exposure_unknown=self.exposure_unknown,
            reactions={
                kind: self.reactions[kind] for kind in [*REACTIONS, *sorted(self.reactions.keys() - REACTIONS.keys())]
            },
            reward=rate(self.days, alpha=ALPHA) if counted else None,
            comparison=comparison,
            input_tokens=self.tip_counts.input_tokens / tips,
            output_tokens=self.tip_counts.output_tokens / tips,
            ms=self.tip_counts.ms / tips,
            days=tuple(
                DayReward(_EPOCH + timedelta(days=day), sample.n, sample.mean)
                for day, sample in sorted(self.days.items())
                if sample.n
            ),
        )


def _tallies(unknown: PeriodCounts, known: PeriodCounts, *, exposure_reported: bool) -> list[_Tally]:
    """Return a tally for each prompt version and digest that has tips, sorted by both.

    The label of a version with several digests includes the start of the digest.
    """
    counts = [*((count, False) for count in unknown.tips), *((count, True) for count in known.tips)]
    included = [(count, is_known) for count, is_known in counts if count.tips and count.shown and not count.fallback]
    keys = sorted({(count.prompt_version, count.prompt_digest) for count, _ in included})
    digests = Counter(version for version, _ in keys)
    tallies = {
        (version, digest): _Tally(version, digest, f"{version} ({digest[:8]})" if digests[version] > 1 else version)
        for version, digest in keys
    }
    for count, is_known in included:
        tally = tallies[count.prompt_version, count.prompt_digest]
        tally.add(count, exposure_known=is_known, exposure_reported=exposure_reported)
    return list(tallies.values())


def _baseline(tallies: Sequence[_Tally], requested: str | None, preferred: Sequence[str]) -> _Tally | None:
    """Return the tally of the baseline, with the digest of its newest tips; None without tips."""
    versions = sorted({tally.prompt_version for tally in tallies})
    if requested is not None and requested not in versions:
        error = FieldError("#/baseline", "has no tips here", tuple(versions))
        known = f"it should be one of {', '.join(versions)}" if versions else "no version has any"
        raise UnprocessableRequest(f"The baseline {requested!r} has no tips in this window; {known}.", errors=[error])
    alphabetical = versions[0] if versions else None
    baseline = requested or next((version for version in preferred if version in versions), alphabetical)
    of_baseline = [tally for tally in tallies if tally.prompt_version == baseline]
    return max(of_baseline, key=lambda tally: (tally.newest_day, tally.tip_counts.tips), default=None)
