"""The reader of the evidence about a rollout: from the counts, the shadows and the latencies in the store."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from ml.experiments.comparison import Stratum, sum_pair
from ml.experiments.failure_excess import failure_excess
from ml.experiments.guardrails import (
    HARM_ALPHA,
    MIN_LATENCIES,
    RARE_TUNED_AT,
    SliceResult,
    difference_limits,
    mean_limits,
    slice_results,
    slow_limit,
)
from ml.experiments.rollout_state import Catalogue, Kind, Position
from ml.experiments.shadow_pairs import excess_tokens, slow_difference, unusable_difference
from ml.experiments.statistics import Sample
from ml.registry.cards import ModelCard
from ml.rollouts.draw_sums import (
    Counts,
    has_ratio_alarm,
    indicator,
    is_rewarded,
    mean_reward,
    reward_strata,
    unusable_strata,
    version_counts,
    version_of,
)
from ml.rollouts.evidence import Evidence, standing
from ml.rollouts.evidence_window import EvidenceWindow, window_of
from ml.rollouts.gate_settings import GateSettings
from ml.rollouts.open_rollout import OpenRollout
from ml.rollouts.shadow_evidence import evidence_of_rankings, shadow_pair
from ml.store.exposures import MAX_UNSEEN_REACTIONS
from ml.store.hours import hour_of, start_of
from ml.store.latencies import Latencies
from ml.store.rollup import ALL_TIPS
from ml.store.shadows import Shadows, ShadowTip
from ml.store.tips import TipStore

SLICES = ("locale", "local_time", "visits", "activity")
"""The segments, by the first part of their names, in which no version may do harm."""

LATENCY_LIMIT = "latency_limit_ms"
"""The name of the latency limit in the evidence of an event."""

_LATENCY_PERIOD = timedelta(days=7)
"""The time before a canary begins from which the champion's latencies are taken."""

_FIRST_LATENCIES = 200
"""The champion's tips that the latency limit is taken from where there is none from before the canary."""

_EMBEDDED = "embedded/"
"""The provider in the id of the embedded model."""

_HOURS_BEFORE = 48
"""The hours before the window whose rewards centre its first day; without them a harm takes up to a sixth more tips."""

_SLICE_PERIOD = timedelta(days=28)
"""Slices are those that occurred since this time before the window: so nearly all are named from the first look on."""


class EvidenceReader:
    """Reads the evidence about rollouts. All methods raise StorageUnavailable."""

    def __init__(self, tip_store: TipStore, settings: GateSettings, *, exposure_reported: bool) -> None:
        """`exposure_reported`: only tips that were seen count for rewards."""
        self._tip_store = tip_store
        self._counts = tip_store.counts
        self._shadows = Shadows(tip_store.database)
        self._latencies = Latencies(tip_store.database)
        self._settings = settings
        self._seen_only = exposure_reported

    async def of(
        self, subject: OpenRollout, catalogue: Catalogue | None, cards: Sequence[ModelCard], now: datetime
    ) -> Evidence:
        """Return the evidence about a version in shadow, as a canary or as the champion.

        `catalogue`: None if serving does not answer.
        """
        position, window = subject.position, window_of(subject, self._tip_store.reaction_window, now)
        evidence = replace(
            standing(position.kind, position.version, position.digest, catalogue, cards),
            baseline=window.baseline.prompt_version,
            since=start_of(window.hours.start).timestamp(),
            paused=position.paused,
            step_hours=(now - start_of(window.step_hours.start)).total_seconds() / 3600,
            reaction_window_hours=self._tip_store.reaction_window.total_seconds() / 3600,
        )
        draws = await self._draws(position.kind, window.segment, window.hours, window.mature_before)
        versions = dict.fromkeys((window.baseline.prompt_version, position.version))
        evidence = replace(evidence, funnel=version_counts(draws, versions, seen_only=self._seen_only))
        if position.stage == "shadow":
            return await self._in_shadow(evidence, position, window)
        if position.stage == "canary":
            return await self._as_canary(evidence, subject, window, draws, now)
        return evidence

    async def latency_limit(self, champion: str, now: datetime) -> int | None:
        """Return the latency above which the tips of a canary that begins now are slow, in ms; None with too few tips.

        It is fixed before the first tip of the canary, so that the shares of slow tips can be compared.
        """
        percentile = await self._latencies.percentile(champion, now - _LATENCY_PERIOD, now, min_tips=MIN_LATENCIES)
        return None if percentile is None else slow_limit(percentile)

    async def _draws(self, kind: Kind, segment: str, hours: range, mature_before: int) -> Sequence[Counts]:
        if kind == "prompt":
            return await self._counts.draws(segment, hours, mature_before)
        return await self._counts.rankings(segment, hours, mature_before)

    async def _in_shadow(self, evidence: Evidence, position: Position, window: EvidenceWindow) -> Evidence:
        since = start_of(window.hours.start)
        if position.kind == "prompt":
            tips = await self._shadows.tips(position.rollout, since)
            pairs = [shadow_pair(tip) for tip in tips]
            timed = [pair for tip, pair in zip(tips, pairs, strict=True) if not _is_embedded(tip)]
            return replace(
                evidence,
                shadow_decisions=len(pairs),
                shadow_days=len({pair.day for pair in pairs}),
                unusable=unusable_difference(pairs),
                slow=slow_difference(timed),
                slow_is_unknowable=bool(pairs) and not timed,
                tokens=excess_tokens(pairs),
                baseline_reward=mean_reward(evidence.funnel, evidence.baseline),
            )
        rankings = await self._shadows.rankings(position.rollout, since)
        failures: dict[int, Sample] = defaultdict(Sample)
        for ranking in rankings:
            failed = ranking.probabilities is None
            failures[hour_of(ranking.created_at) // 24] += Sample(1, failed, failed)
        decisions = await self._shadows.decisions(position.rollout, since, start_of(window.mature_before))
        decisions = [each for each in decisions if each.seen or not self._seen_only]
        rewards = [each.reward for each in decisions]
        return replace(
            evidence,
            shadow_decisions=len(decisions),
            shadow_days=len({hour_of(each.at) // 24 for each in decisions}),
            unusable=mean_limits(failures),
            ranking=evidence_of_rankings(decisions),
            baseline_reward=sum(rewards) / len(rewards) if rewards else None,
        )

    async def _as_canary(
        self,
        evidence: Evidence,
        subject: OpenRollout,
        window: EvidenceWindow,
        draws: Sequence[Counts],
        now: datetime,
    ) -> Evidence:
        position = subject.position
        baseline, other = evidence.baseline, position.version
        before = range(max(window.hours.start - _HOURS_BEFORE, 0), window.hours.start)
        earlier = self._strata(await self._draws(position.kind, window.segment, before, window.mature_before), window)
        sums = sum_pair(self._strata(draws, window), baseline, other, earlier=earlier)
        step = await self._draws(position.kind, window.segment, window.step_hours, window.mature_before)
        limit: int | None = None
        slow: list[Stratum] = []
        if position.kind == "prompt":
            limit, slow = await self._slow_strata(subject, window, now)
        unusable = unusable_strata(draws)
        return replace(
            evidence,
            reward=difference_limits(sums),
            reward_tips=sums.tips,
            live_unusable=difference_limits(sum_pair(unusable, baseline, other), tuned_at=RARE_TUNED_AT),
            unusable_excess=failure_excess(unusable, baseline, other),
            live_slow=difference_limits(sum_pair(slow, baseline, other), tuned_at=RARE_TUNED_AT),
            slow_excess=failure_excess(slow, baseline, other),
            latency_limit_ms=limit,
            slices=tuple(await self._slices(position, window)),
            alarms=tuple(await self._alarms(position, window, draws)),
            step_tips=sum(
                each.tips for each in step if version_of(each) == other and is_rewarded(each, seen_only=self._seen_only)
            ),
            baseline_reward=mean_reward(evidence.funnel, baseline),
        )

    def _strata(self, draws: Iterable[Counts], window: EvidenceWindow) -> list[Stratum]:
        return reward_strata(draws, window.baseline, window.other, seen_only=self._seen_only)

    async def _slow_strata(
        self, subject: OpenRollout, window: EvidenceWindow, now: datetime
    ) -> tuple[int | None, list[Stratum]]:
        """Return the latency limit in ms, and the strata of the tips since then; a slow tip has the reward 1."""
        since = start_of(window.hours.start)
        limit: int | None = None
        if subject.state.model_since <= subject.position.stage_since:
            begin = next(event for event in subject.events if event.id == subject.position.stage_event)
            limit = begin.evidence.get(LATENCY_LIMIT)
        if limit is None:
            first = await self._latencies.first(window.baseline.prompt_version, since, _FIRST_LATENCIES)
            if first is None:
                return None, []
            limit, since = slow_limit(first[0]), first[1]
        counts = await self._latencies.counts(limit, since, now)
        return limit, [
            Stratum(each.day, each.options, each.prompt_version, indicator(each.tips, each.slow)) for each in counts
        ]

    async def _slices(self, position: Position, window: EvidenceWindow) -> list[SliceResult]:
        hours = range(window.hours.start - int(_SLICE_PERIOD / timedelta(hours=1)), window.hours.stop)
        names = [name for name in await self._counts.segments(hours) if name.partition(":")[0] in SLICES]
        strata = {
            name: self._strata(await self._draws(position.kind, name, window.hours, window.mature_before), window)
            for name in names
        }
        baseline, other = window.baseline.prompt_version, window.other.prompt_version
        return slice_results(strata, baseline, other, alpha=HARM_ALPHA, margin=self._settings.slice_margin)

    async def _alarms(self, position: Position, window: EvidenceWindow, draws: Sequence[Counts]) -> list[str]:
        compared = [draw for draw in draws if position.version in draw.options and draw.outcome != "per_user"]
        alarms = []
        if has_ratio_alarm(compared):
            alarms.append("the versions were not drawn by their shares")
        if not self._seen_only:
            return alarms
        if has_ratio_alarm(draw for draw in compared if is_rewarded(draw, seen_only=True)):
            alarms.append("the seen tips are not distributed by the shares")
        tips = await self._counts.days(window.segment, window.hours, window.mature_before)
        reactions = [c for c in tips if c.reaction != ALL_TIPS and c.mature and c.shown and not c.fallback]
        unseen = sum(count.tips for count in reactions if not count.seen)
        if unseen > MAX_UNSEEN_REACTIONS * sum(count.tips for count in reactions):
            alarms.append("reactions have no exposures, so exposures are getting lost")
        return alarms


def _is_embedded(tip: ShadowTip) -> bool:
    """Return whether the embedded model wrote a tip in shadow: it reads such prompts in steps, which takes longer."""
    return (tip.model or "").startswith(_EMBEDDED)
