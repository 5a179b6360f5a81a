"""The rows of a decision: of its candidates, with their ranking, and of the generations that failed."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from ml.recommender.candidates import Candidate, Draw, UserContext
from ml.recommender.ranking import RankedDecision
from ml.store.failures import GenerationFailure
from ml.store.tip_dimensions import UNAVAILABLE
from ml.store.tip_records import TipRecord


def tip_records(
    candidates: Sequence[Candidate], context: UserContext, now: datetime, *, simulated: bool
) -> list[TipRecord]:
    """Return the rows of the candidates of one decision, all of them shown, without a ranking."""
    return [
        TipRecord(
            tip_id=candidate.tip_id,
            user_id=context.user_id,
            created_at=now,
            policy=candidate.selection.policy,
            policy_version=candidate.selection.policy_version,
            options=candidate.selection.options or {candidate.generated.prompt_version: 1.0},
            probability=candidate.selection.probability,
            prompt_version_asked=candidate.selection.prompt_version,
            generation_id=candidate.generated.generation_id,
            prompt_version=candidate.generated.prompt_version,
            prompt_digest=candidate.generated.prompt_digest,
            model=candidate.generated.model,
            fallback=candidate.generated.fallback,
            signals=context.signals,
            segments=context.segments,
            tip=candidate.generated.tip,
            input_tokens=candidate.generated.usage.input_tokens,
            output_tokens=candidate.generated.usage.output_tokens,
            ms=candidate.ms,
            simulated=simulated,
            decision_id=candidates[0].tip_id,
            prompt_event=candidate.selection.event,
        )
        for candidate in candidates
    ]


def with_ranking(records: Sequence[TipRecord], ranked: RankedDecision) -> list[TipRecord]:
    """Return the rows of a decision with its ranking; without a ranking, the first candidate is shown."""
    candidate_ids = [str(record.tip_id) for record in records]
    if ranked.draw:
        draw = ranked.draw
        records = [
            replace(record, policy_asked=draw.version, policy_options=draw.options, policy_event=draw.event)
            for record in records
        ]
    ranking = ranked.ranking
    if ranking is None:
        return [
            replace(
                record,
                shown=index == 0,
                score_probability=1.0 if index == 0 else 0.0,
                score_policy=UNAVAILABLE,
                candidates=candidate_ids,
            )
            for index, record in enumerate(records)
        ]
    return [
        replace(
            record,
            shown=scored.id == ranking.chosen,
            score=scored.score,
            score_probability=scored.probability,
            score_policy=ranking.policy.name,
            score_policy_version=ranking.policy.version,
            candidates=candidate_ids,
            aggregates=ranking.aggregates,
            aggregates_at=ranking.aggregates_at,
        )
        for record, scored in zip(records, ranking.scores, strict=True)
    ]


def failure_records(
    draws: Sequence[tuple[Draw, str]],
    context: UserContext,
    now: datetime,
    *,
    simulated: bool,
    decision_id: UUID | None = None,
) -> list[GenerationFailure]:
    """Return the rows of draws that failed, each with the slug of its error.

    `decision_id`: of the tips of their decision; None if it has none.
    """
    return [
        GenerationFailure(
            tip_id=draw.tip_id,
            decision_id=decision_id or draws[0][0].tip_id,
            user_id=context.user_id,
            created_at=now,
            policy=draw.selection.policy,
            policy_version=draw.selection.policy_version,
            options=draw.selection.options,
            probability=draw.selection.probability,
            prompt_version_asked=draw.selection.prompt_version,
            error=error,
            segments=context.segments,
            simulated=simulated,
        )
        for draw, error in draws
    ]
