"""Which of several tips to show somebody: a ranking, and a choice drawn from it, with nothing kept in between."""

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from ml.experiments.assignment import Assignment, draw_weighted, hash_to_unit_interval
from ml.experiments.ranking import Ranking
from ml.features.online_store import OnlineStore
from ml.platform.errors import FieldError, PolicyReloadFailed, UnprocessableRequest
from ml.platform.settings import ConfigurationError
from ml.platform.telemetry import Telemetry, add_to_request_log
from ml.registry.policies import Policy
from ml.serving.shadow import ShadowScorer

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ActivePolicies:
    """The policies in force: the one that answers, and perhaps one that is only asked."""

    policy: Policy
    shadow: Policy | None = None


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """What was decided: scores and probabilities are those of the candidates, in their order."""

    event_id: str
    policy: Policy
    chosen: str
    ids: Sequence[str]
    ranking: Ranking
    aggregates: Mapping[str, float]


class Scorer:
    """Ranks candidates by the policies in force, which can be replaced as a whole."""

    def __init__(self, load: Callable[[], ActivePolicies], store: OnlineStore | None, telemetry: Telemetry) -> None:
        """Load the policies; `load` raises ConfigurationError when one cannot be used, and does so here."""
        self._load = load
        self._store = store
        self._telemetry = telemetry
        self._reloading = asyncio.Lock()
        self._shadow = ShadowScorer(telemetry)
        self.deployed = load()

    async def score(
        self,
        ids: Sequence[str],
        tips: Sequence[Mapping[str, Any]],
        signals: Mapping[str, Any],
        *,
        event_id: str | None = None,
        user_id: str | None = None,
    ) -> ScoreResult:
        """Rank candidates, each an id with what is known of it; the same event gets the same choice from a policy.

        Raises UnprocessableRequest when two ids are the same.
        """
        _refuse_repeated(ids)
        deployed = self.deployed  # the ones in force now, however long this takes
        event_id = event_id or uuid.uuid4().hex
        aggregates = await self._store.read(user_id, datetime.now(UTC)) if self._store and user_id else {}
        person = {**signals, **aggregates}
        ranking = deployed.policy.rank(person, tips)
        choice = _choose(event_id, ids, ranking)
        self._telemetry.scores.labels(deployed.policy.name, deployed.policy.version).inc()
        add_to_request_log(
            event_id=event_id,
            policy=deployed.policy.name,
            policy_version=deployed.policy.version,
            candidates=len(ids),
            chosen=choice.option,
            probability=choice.probability,
        )
        if shadow := deployed.shadow:
            self._shadow.ask(
                shadow, lambda: _choose(event_id, ids, shadow.rank(person, tips)), event_id, deployed.policy, choice
            )
        return ScoreResult(event_id, deployed.policy, choice.option, ids, ranking, aggregates)

    async def reload(self) -> ActivePolicies:
        """Load the policies anew and put them in force together. Raises PolicyUnusable; then nothing has changed."""
        async with self._reloading:
            try:
                self.deployed = await asyncio.to_thread(self._load)
            except ConfigurationError as error:
                log.warning("policies_not_loaded", reason=str(error))
                raise PolicyReloadFailed(str(error)) from None
        deployed = self.deployed
        log.info("policies_loaded", **{role: f"{one.name} {one.version}" for role, one in _roles(deployed).items()})
        return deployed

    def close(self) -> None:
        """Let go of the store, and of the shadow's thread."""
        self._shadow.close()
        if self._store:
            self._store.close()


def _choose(event_id: str, ids: Sequence[str], ranking: Ranking) -> Assignment:
    """Draw a candidate by its probability; the event's id is the only source of chance."""
    probabilities = dict(zip(ids, ranking.probabilities.tolist(), strict=True))
    return draw_weighted(probabilities, hash_to_unit_interval("score", event_id))


def _refuse_repeated(ids: Sequence[str]) -> None:
    if len({*ids}) < len(ids):
        first = {candidate: place for place, candidate in reversed([*enumerate(ids)])}
        errors = [
            FieldError(f"#/candidates/{place}/id", f"is the same as that of candidate {first[candidate]}")
            for place, candidate in enumerate(ids)
            if first[candidate] != place
        ]
        raise UnprocessableRequest("Candidates need ids of their own.", errors=errors)


def _roles(deployed: ActivePolicies) -> dict[str, Policy]:
    return {"policy": deployed.policy} | ({"shadow": deployed.shadow} if deployed.shadow else {})
