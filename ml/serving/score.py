"""Ranking of candidates, and the draw of the one to show. No state is kept between requests."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ml.experiments.assignment import Assignment, draw_weighted, hash_to_unit_interval
from ml.experiments.exploration import Ranking
from ml.features.online_store import OnlineStore, OnlineStoreUnavailable
from ml.features.user_aggregates import NO_AGGREGATES, UserAggregates
from ml.platform.clock import Clock, utc_now
from ml.platform.errors import FieldError, UnprocessableRequest
from ml.platform.telemetry import Telemetry, add_to_request_log
from ml.registry.policies import Ranker
from ml.serving.policies import ActivePolicies


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """The ranking of the candidates, in their order, and the id of the chosen one."""

    event_id: str
    policy: Ranker
    chosen: str
    candidate_ids: Sequence[str]
    ranking: Ranking
    aggregates: UserAggregates


class Scorer:
    """Ranks candidates with the active policies."""

    def __init__(
        self, policies: ActivePolicies, online_store: OnlineStore, telemetry: Telemetry, clock: Clock = utc_now
    ) -> None:
        self._policies = policies
        self._online_store = online_store
        self._clock = clock
        self._telemetry = telemetry

    async def score(
        self,
        candidate_ids: Sequence[str],
        candidates: Sequence[Mapping[str, Any]],
        signals: Mapping[str, Any],
        *,
        event_id: str | None = None,
        user_id: str | None = None,
        policy: str | None = None,
    ) -> ScoreResult:
        """Rank candidates, each an id with its features, and draw one; for the same event id a policy repeats its draw.

        `policy`: the version of the policy; by default that of the settings. Raises UnprocessableRequest when two ids
        are equal, or that version is not loaded.
        """
        _refuse_repeated_ids(candidate_ids)
        ranker = self._policies.loaded.resolve(policy)  # unaffected by a reload from here on
        event_id = event_id or uuid.uuid4().hex
        aggregates = await self._read_aggregates(user_id) if user_id else NO_AGGREGATES
        context = {**signals, **aggregates.values}
        ranking = ranker.rank(context, candidates)
        drawn = _draw(event_id, candidate_ids, ranking)
        self._telemetry.scores.labels(ranker.name, ranker.version).inc()
        add_to_request_log(
            event_id=event_id,
            policy=ranker.name,
            policy_version=ranker.version,
            candidates=len(candidate_ids),
            chosen=drawn.option,
            probability=drawn.probability,
        )
        return ScoreResult(event_id, ranker, drawn.option, candidate_ids, ranking, aggregates)

    async def _read_aggregates(self, user_id: str) -> UserAggregates:
        """Return the user's aggregates; none if the store fails: a ranking without them is better than none."""
        try:
            return await self._online_store.read(user_id, self._clock())
        except OnlineStoreUnavailable:
            self._telemetry.online_store_failures.inc()
            return NO_AGGREGATES


def _draw(event_id: str, candidate_ids: Sequence[str], ranking: Ranking) -> Assignment:
    """Draw a candidate by its probability; the hash of the event id is the only source of randomness."""
    probabilities = dict(zip(candidate_ids, ranking.probabilities.tolist(), strict=True))
    return draw_weighted(probabilities, hash_to_unit_interval("score", event_id))


def _refuse_repeated_ids(candidate_ids: Sequence[str]) -> None:
    if len({*candidate_ids}) < len(candidate_ids):
        first_index = {candidate_id: index for index, candidate_id in reversed([*enumerate(candidate_ids)])}
        errors = [
            FieldError(f"#/candidates/{index}/id", f"is the same as that of candidate {first_index[candidate_id]}")
            for index, candidate_id in enumerate(candidate_ids)
            if first_index[candidate_id] != index
        ]
        raise UnprocessableRequest("Each candidate needs its own id.", errors=errors)
