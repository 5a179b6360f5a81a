"""Ranking of candidates, and the draw of the one to show. No state is kept between requests."""

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import structlog

from ml.experiments.assignment import Assignment, draw_weighted, hash_to_unit_interval
from ml.experiments.exploration import Ranking
from ml.features.online_store import OnlineStore
from ml.platform.errors import FieldError, PolicyReloadFailed, UnprocessableRequest
from ml.platform.settings import ConfigurationError
from ml.platform.telemetry import Telemetry, add_to_request_log
from ml.registry.policies import Ranker
from ml.serving.shadow import ShadowScorer

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ActivePolicies:
    """The live policy, which answers, and the shadow policy, if any, whose decisions are only logged."""

    policy: Ranker
    shadow: Ranker | None = None


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """The ranking of the candidates, in their order, and the id of the chosen one."""

    event_id: str
    policy: Ranker
    chosen: str
    candidate_ids: Sequence[str]
    ranking: Ranking
    aggregates: Mapping[str, float]


class Scorer:
    """Ranks candidates with the active policies, which are replaced together.

    A context manager: at its end, the thread of the shadow policy ends.
    """

    def __init__(
        self,
        policies: ActivePolicies,
        load: Callable[[], ActivePolicies],
        online_store: OnlineStore,
        telemetry: Telemetry,
    ) -> None:
        """Take the active policies and `load`, which loads them again and may raise ConfigurationError."""
        self.policies = policies
        self._load = load
        self._online_store = online_store
        self._telemetry = telemetry
        self._reload_lock = asyncio.Lock()
        self._shadow_scorer = ShadowScorer(telemetry)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._shadow_scorer.close()

    async def score(
        self,
        candidate_ids: Sequence[str],
        candidates: Sequence[Mapping[str, Any]],
        signals: Mapping[str, Any],
        *,
        event_id: str | None = None,
        user_id: str | None = None,
    ) -> ScoreResult:
        """Rank candidates, each an id with its features, and draw one; for the same event id a policy repeats its draw.

        Raises UnprocessableRequest when two ids are equal.
        """
        _refuse_repeated_ids(candidate_ids)
        policy, shadow = self.policies.policy, self.policies.shadow  # unaffected by a reload from here on
        event_id = event_id or uuid.uuid4().hex
        aggregates = await self._online_store.read(user_id, datetime.now(UTC)) if user_id else {}
        context = {**signals, **aggregates}
        ranking = policy.rank(context, candidates)
        drawn = _draw(event_id, candidate_ids, ranking)
        self._telemetry.scores.labels(policy.name, policy.version).inc()
        add_to_request_log(
            event_id=event_id,
            policy=policy.name,
            policy_version=policy.version,
            candidates=len(candidate_ids),
            chosen=drawn.option,
            probability=drawn.probability,
        )
        if shadow:
            self._shadow_scorer.submit(
                shadow,
                lambda: _draw(event_id, candidate_ids, shadow.rank(context, candidates)),
                event_id,
                policy,
                drawn,
            )
        return ScoreResult(event_id, policy, drawn.option, candidate_ids, ranking, aggregates)

    async def reload(self) -> ActivePolicies:
        """Load the policies again and replace them together. Raises PolicyReloadFailed, without a replacement."""
        async with self._reload_lock:
            try:
                self.policies = await asyncio.to_thread(self._load)
            except ConfigurationError as error:
                log.warning("policies_not_loaded", reason=str(error))
                raise PolicyReloadFailed(str(error)) from None
        policies = self.policies
        names = {"policy": policies.policy} | ({"shadow": policies.shadow} if policies.shadow else {})
        log.info("policies_loaded", **{role: f"{policy.name} {policy.version}" for role, policy in names.items()})
        return policies


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
