"""The funnel of each prompt version, from the draw to the reaction, and tests whether versions differ in a step."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ml.experiments.sample_ratio import SampleRatio, sample_ratio
from ml.store.day_counts import DayCounts, DrawCounts
from ml.store.exposures import MAX_UNSEEN_REACTIONS
from ml.store.rollup import ALL_TIPS

Step = Literal["drawn", "written", "seen"]


@dataclass(frozen=True, slots=True)
class PeriodCounts:
    """The counts of a period: of tips, with their reactions, and of draws."""

    tips: Sequence[DayCounts] = ()
    draws: Sequence[DrawCounts] = ()


@dataclass(frozen=True, slots=True)
class StepTest:
    """The test whether tips that passed a step are distributed over versions as their propensities say.

    `observed`: the number of tips of each version. `expected`: the sum of its propensities. `p_value`: anytime-valid.
    """

    step: Step
    observed: Mapping[str, int]
    expected: Mapping[str, float]
    p_value: float
    alarm: bool


@dataclass(slots=True)
class FunnelRow:
    """The mature tips of one drawn prompt version, with all its digests.

    `written`: by TIP_MODEL itself. `fallback`, `failed`: the other draws. `shown`: of the written ones. `unknown`: of
    the shown ones, those before the first exposure report. `seen`: of the later ones. `reacted`: of the shown ones.
    """

    prompt_version: str
    drawn: int = 0
    written: int = 0
    fallback: int = 0
    failed: int = 0
    shown: int = 0
    unknown: int = 0
    seen: int = 0
    reacted: int = 0


@dataclass(frozen=True, slots=True)
class Funnel:
    """The funnel of each version, and the tests of its steps.

    `exposures`: whether there is any exposure report; without one, nothing is known about the step `seen`. The numbers
    `reactions` and `unseen_reactions` are those of mature tips since the first report, and of those that were not seen.
    """

    rows: tuple[FunnelRow, ...]
    tests: tuple[StepTest, ...]
    exposures: bool
    reactions: int
    unseen_reactions: int

    @property
    def exposures_missing(self) -> bool:
        """Whether so many reactions have no exposure that exposures must be getting lost."""
        return self.unseen_reactions > MAX_UNSEEN_REACTIONS * self.reactions

    @property
    def alarm(self) -> bool:
        """Whether versions differ in a step, so that no comparison is valid."""
        return any(test.alarm for test in self.tests)


def build_funnel(unknown: PeriodCounts, known: PeriodCounts, *, exposures: bool) -> Funnel:
    """Return the funnel of the period before the first exposure report, and of the one since then.

    Without any report, `known` is empty.
    """
    rows: dict[str, FunnelRow] = {}
    for period in (unknown, known):
        for draw in _mature(period.draws):
            row = rows.setdefault(draw.prompt_version, FunnelRow(draw.prompt_version))
            _add_draw(row, draw, exposure_known=period is known)
        for count in _reactions(period.tips):
            rows.setdefault(count.prompt_version, FunnelRow(count.prompt_version)).reacted += count.tips
    since_report = _reactions(known.tips)
    draws = [draw for draw in (*unknown.draws, *known.draws) if draw.outcome != "per_user"]
    seen = [draw for draw in _mature(known.draws) if draw.outcome == "comparable" and draw.seen]
    tests = [_test("drawn", draws), _test("written", [draw for draw in draws if _is_written(draw)])]
    return Funnel(
        rows=tuple(rows[version] for version in sorted(rows)),
        tests=(*tests, _test("seen", seen)) if exposures else tuple(tests),
        exposures=exposures,
        reactions=sum(count.tips for count in since_report),
        unseen_reactions=sum(count.tips for count in since_report if not count.seen),
    )


def _add_draw(row: FunnelRow, draw: DrawCounts, *, exposure_known: bool) -> None:
    written = _is_written(draw)
    shown = written and draw.outcome != "not_shown"
    row.drawn += draw.tips
    row.written += draw.tips if written else 0
    row.fallback += draw.tips if draw.outcome == "fallback" else 0
    row.failed += draw.tips if draw.outcome == "failed" else 0
    row.shown += draw.tips if shown else 0
    row.unknown += draw.tips if shown and not exposure_known else 0
    row.seen += draw.tips if shown and exposure_known and draw.seen else 0


def _is_written(draw: DrawCounts) -> bool:
    return draw.outcome not in ("fallback", "failed")


def _mature(draws: Iterable[DrawCounts]) -> list[DrawCounts]:
    return [draw for draw in draws if draw.mature]


def _reactions(counts: Iterable[DayCounts]) -> list[DayCounts]:
    """Return the counts of reactions to mature shown tips that no fallback model wrote."""
    return [c for c in counts if c.reaction != ALL_TIPS and c.mature and c.shown and not c.fallback]


def _test(step: Step, draws: Iterable[DrawCounts]) -> StepTest:
    """Test the tips that passed a step; a draw with one option says nothing about the shares."""
    counts: dict[tuple[tuple[str, float], ...], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for draw in draws:
        if len(draw.options) > 1:
            counts[tuple(sorted(draw.options.items()))][draw.prompt_version] += draw.tips
    ratio: SampleRatio = sample_ratio((dict(options), versions) for options, versions in counts.items())
    return StepTest(step, ratio.observed, ratio.expected, ratio.p_value, ratio.alarm)
