"""Complete model cards: what serving knows of a version, its figures about real users, and its history of rollouts.

Every figure is computed from the store when the card is read, and names what it was computed from.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ml.experiments.comparison import Stratum, difference, sum_pair
from ml.experiments.confidence_sequence import rate
from ml.experiments.guardrails import HARM_ALPHA, OneSidedLimits, slice_results
from ml.experiments.rollout_state import Position, RolloutEvent, fold
from ml.experiments.shadow_pairs import excess_tokens, slow_difference, unusable_difference
from ml.experiments.statistics import Interval, Sample
from ml.platform.clock import Clock
from ml.registry.cards import CalibrationBin, LiveFigures, Metric, ModelCard, RolloutEntry, Slice, find_card
from ml.registry.ranking_cards import drift_metrics
from ml.rollouts.evidence_reader import SLICES
from ml.rollouts.gate_settings import GateSettings
from ml.rollouts.shadow_evidence import evidence_of_rankings, shadow_pair
from ml.store.batch_reports import DRIFT, BatchReports
from ml.store.counts import Counts
from ml.store.database import Database
from ml.store.day_counts import DrawCounts, RankingCounts
from ml.store.hours import hour_of
from ml.store.rollouts import RolloutLog, time_of
from ml.store.rollup import EVERYONE
from ml.store.shadows import ShadowDecision, Shadows
from ml.store.strata import DigestedVersion, strata_of

CALIBRATION_BINS = 10
"""Bins of equal width over the predicted rewards, so that their edges do not depend on the data."""

DIGITS = 6
"""Figures are rounded, so that a card is the same on all machines."""

_START = datetime(1970, 1, 1, tzinfo=UTC)
_ALL_HOURS = range(2**31 - 1)
_REWARDS = "mature tips for users, with the rewards at the end of the reaction window"


@dataclass(frozen=True, slots=True)
class CardStore:
    """The source of the live figures and of the history of cards.

    `exposure_reported`: only tips that were seen count for rewards.
    """

    database: Database
    reaction_window: timedelta
    exposure_reported: bool

    async def complete(self, card: ModelCard, now: datetime) -> ModelCard:
        """Return the card of serving with its live figures and its history. Raises StorageUnavailable."""
        events = await RolloutLog(self.database).events()
        history = [event for event in events if _is_of(event, card)]
        live = None if card.kind == "model" else await self._live_figures(card, events, history, now)
        return card.model_copy(update={"live": live, "rollouts": tuple(map(_entry, history))})

    async def _live_figures(
        self, card: ModelCard, events: Sequence[RolloutEvent], history: Sequence[RolloutEvent], now: datetime
    ) -> LiveFigures:
        mature_before = hour_of(now - self.reaction_window)
        baseline = _compared_with(card, events)
        draws = await self._draws(card, EVERYONE, mature_before)
        metrics = _reward_metrics(card, draws, baseline)
        slices: list[Slice] = []
        sources = []
        if baseline:
            slices = await self._slices(card, baseline, mature_before)
            sources += [f"Slices: {_compared(baseline)}; simultaneous limits."] if slices else []
        calibration: list[CalibrationBin] = []
        if card.kind == "policy":
            metrics += await self._drift(card)
        if history:
            rollout = history[-1].rollout
            if card.kind == "prompt":
                metrics += await self._shadow_tip_metrics(rollout)
            else:
                decisions = await self._shadow_decisions(rollout, mature_before)
                metrics += _shadow_ranking_metrics(rollout, decisions)
                calibration = _calibration(decisions)
                if calibration:
                    sources.append(
                        f"Calibration: {_source_of_rankings(rollout)}; predicted for the tip that was shown, observed "
                        "with simultaneous limits."
                    )
        return LiveFigures(
            at=now,
            metrics=tuple(metrics),
            calibration=tuple(calibration),
            slices=tuple(slices),
            sources=tuple(sources),
        )

    async def _drift(self, card: ModelCard) -> list[Metric]:
        """Return the newest drift of the inputs, if it was measured with this policy."""
        reports = await BatchReports(self.database).newest(DRIFT)
        return [
            metric
            for each in reports
            if each.figures["policy"] == card.version
            for metric in drift_metrics(each.figures)
        ]

    async def _draws(
        self, card: ModelCard, segment: str, mature_before: int
    ) -> Sequence[DrawCounts] | Sequence[RankingCounts]:
        """Return the draws of prompt versions or of ranking policies whose rewards are known and count."""
        counts = Counts(self.database)
        if card.kind == "prompt":
            return [draw for draw in await counts.draws(segment, _ALL_HOURS, mature_before) if self._is_rewarded(draw)]
        return [draw for draw in await counts.rankings(segment, _ALL_HOURS, mature_before) if self._is_rewarded(draw)]

    def _is_rewarded(self, draw: DrawCounts | RankingCounts) -> bool:
        return draw.mature and draw.outcome == "comparable" and (draw.seen or not self.exposure_reported)

    async def _slices(self, card: ModelCard, baseline: Position, mature_before: int) -> list[Slice]:
        names = await Counts(self.database).segments(_ALL_HOURS)
        strata = {
            name: _strata(card, baseline, await self._draws(card, name, mature_before))
            for name in names
            if name.partition(":")[0] in SLICES
        }
        margin = GateSettings().slice_margin
        results = slice_results(strata, baseline.version, card.version, alpha=HARM_ALPHA, margin=margin)
        return [
            Slice(name=each.name, n=each.tips, status=each.status, **_limits(each.limits))
            for each in results
            if each.tips
        ]

    async def _shadow_tip_metrics(self, rollout: int) -> list[Metric]:
        pairs = [shadow_pair(tip) for tip in await Shadows(self.database).tips(rollout, _START)]
        source = f"the tips in shadow of rollout {rollout}, minus the live tips of the same decisions"
        figures = {
            "shadow_unusable": unusable_difference(pairs),
            "shadow_slow": slow_difference(pairs),
            "shadow_excess_tokens": excess_tokens(pairs),
        }
        return [_metric(name, limits, len(pairs), source) for name, limits in figures.items() if limits]

    async def _shadow_decisions(self, rollout: int, mature_before: int) -> list[ShadowDecision]:
        before = _START + timedelta(hours=mature_before)
        decisions = await Shadows(self.database).decisions(rollout, _START, before)
        return [each for each in decisions if each.seen or not self.exposure_reported]


def _is_of(event: RolloutEvent, card: ModelCard) -> bool:
    same_digest = card.kind != "prompt" or event.digest == card.digest
    return (event.kind, event.version) == (card.kind, card.version) and same_digest


def _compared_with(card: ModelCard, events: Sequence[RolloutEvent]) -> Position | None:
    """Return the champion; of the champion itself, the one before it; None without one."""
    if card.kind == "model":
        return None
    track = fold(events).track(card.kind)
    champions = [*track.previous, *([track.champion] if track.champion else [])]
    return next((each for each in reversed(champions) if each.version != card.version), None)


def _compared(baseline: Position) -> str:
    digest = f" ({baseline.digest[:8]})" if baseline.kind == "prompt" else ""
    return f"{_REWARDS}, for which this version and {baseline.version}{digest} could have been drawn"


def _strata(
    card: ModelCard, baseline: Position, draws: Sequence[DrawCounts] | Sequence[RankingCounts]
) -> list[Stratum]:
    of_prompts = [draw for draw in draws if isinstance(draw, DrawCounts)]
    pair = [DigestedVersion(each.version, each.digest or "") for each in (baseline, card)]
    of_policies = [
        Stratum(draw.day, draw.options, draw.policy_version, _rewards(draw))
        for draw in draws
        if isinstance(draw, RankingCounts)
    ]
    return strata_of(of_prompts, *pair) + of_policies


def _rewards(draw: DrawCounts | RankingCounts) -> Sample:
    return Sample(draw.tips, draw.reward, draw.reward_squared)


def _is_of_version(draw: DrawCounts | RankingCounts, card: ModelCard) -> bool:
    if isinstance(draw, RankingCounts):
        return draw.policy_version == card.version
    return (draw.prompt_version, draw.prompt_digest) == (card.version, card.digest)


def _reward_metrics(
    card: ModelCard, draws: Sequence[DrawCounts] | Sequence[RankingCounts], baseline: Position | None
) -> list[Metric]:
    days: dict[int, Sample] = defaultdict(Sample)
    for draw in draws:
        if _is_of_version(draw, card):
            days[draw.day] += _rewards(draw)
    total = sum(days.values(), Sample())
    if not total.n:
        return []
    metrics = [_metric("live_reward", rate(days, alpha=HARM_ALPHA), total.n, f"all {_REWARDS}")]
    if baseline:
        sums = sum_pair(_strata(card, baseline, draws), baseline.version, card.version)
        interval = difference(sums, alpha=HARM_ALPHA)
        if interval:
            metrics.append(_metric("live_reward_difference", interval, sums.tips, _compared(baseline)))
    return metrics


def _source_of_rankings(rollout: int) -> str:
    return f"decisions that the policy ranked in shadow in rollout {rollout}, with the live rewards"


def _shadow_ranking_metrics(rollout: int, decisions: Sequence[ShadowDecision]) -> list[Metric]:
    evidence = evidence_of_rankings(decisions)
    if not evidence.decisions:
        return []
    source = _source_of_rankings(rollout)
    gain = [_metric("shadow_gain", evidence.gain, evidence.decisions, source)] if evidence.gain else []
    agreement = Metric(
        name="shadow_agreement", value=round(evidence.agreement, DIGITS), n=evidence.decisions, source=source
    )
    return [*gain, agreement]


def _calibration(decisions: Iterable[ShadowDecision]) -> list[CalibrationBin]:
    bins: Mapping[int, list[ShadowDecision]] = defaultdict(list)
    for decision in decisions:
        score = decision.candidates[decision.chosen].score
        bins[min(int(score * CALIBRATION_BINS), CALIBRATION_BINS - 1)].append(decision)
    found = []
    for _, rows in sorted(bins.items()):
        days: dict[int, Sample] = defaultdict(Sample)
        for row in rows:
            days[hour_of(row.at) // 24] += Sample(1, row.reward, row.reward**2)
        observed = rate(days, alpha=HARM_ALPHA / CALIBRATION_BINS)
        predicted = sum(row.candidates[row.chosen].score for row in rows) / len(rows)
        found.append(
            CalibrationBin(
                predicted=round(predicted, DIGITS),
                observed=round(observed.estimate, DIGITS),
                low=round(observed.low, DIGITS),
                high=round(observed.high, DIGITS),
                n=len(rows),
            )
        )
    return found


def _limits(limits: OneSidedLimits | Interval | None) -> dict[str, float]:
    if limits is None:
        return {}
    return {
        "value": round(limits.estimate, DIGITS),
        "low": round(limits.low, DIGITS),
        "high": round(limits.high, DIGITS),
    }


def _metric(name: str, limits: OneSidedLimits | Interval, n: int, source: str) -> Metric:
    return Metric(name=name, n=n, source=source, **_limits(limits))


def _entry(event: RolloutEvent) -> RolloutEntry:
    return RolloutEntry(
        at=time_of(event),
        actor=event.actor,
        action=event.action,
        from_stage=event.from_stage,
        to_stage=event.to_stage,
        share=event.share,
        reason=event.reason,
        event=event.id,
    )


@dataclass(frozen=True, slots=True)
class CardReader:
    """The cards of a running service. `fetch`: asks serving for its cards; it raises TipsError without an answer."""

    fetch: Callable[[], Awaitable[Sequence[ModelCard]]]
    store: CardStore
    clock: Clock

    async def all(self) -> Sequence[ModelCard]:
        """Return the cards as serving has them, without figures from the store. Raises TipsError."""
        return await self.fetch()

    async def find(self, name: str) -> ModelCard | None:
        """Return the complete card with this version or name; None if there is not exactly one. Raises TipsError."""
        card = find_card(await self.fetch(), name)
        return card and await self.store.complete(card, self.clock())
