"""The reward report: mean rewards per prompt version with intervals that hold at every look, verdicts, the funnel."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

from ml.platform.errors import FieldError, UnprocessableRequest
from ml.rewards.comparison import ALPHA, compare
from ml.rewards.funnel import Funnel, PeriodCounts, build_funnel
from ml.rewards.variants import Tally, Variant, tallies_of
from ml.store.hours import hour_of
from ml.store.rollup import ALL_TIPS, EVERYONE
from ml.store.tips import TipStore

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
    tallies = tallies_of(unknown, known, exposure_reported=exposure_reported)
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


def _baseline(tallies: Sequence[Tally], requested: str | None, preferred: Sequence[str]) -> Tally | None:
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
