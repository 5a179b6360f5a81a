"""The ranking of the candidates of a decision, by the policy that rollouts draw for it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import structlog

from ml.experiments.assignment import draw_weighted, hash_to_unit_interval
from ml.experiments.rollout_state import Track
from ml.platform.errors import TipsError, UnknownVersion
from ml.recommender.candidates import Candidate, UserContext
from ml.recommender.live_rollouts import LiveRollouts
from ml.recommender.serving_client import ServingClient
from ml.recommender.serving_responses import CandidateRanking

log = structlog.get_logger()

MAX_RANKING_SECONDS = 1.0
"""The timeout of a ranking: at most this, and at most a tenth of the time for the whole tip."""

POLICY_SALT = "ranking-policy"
"""Part of the hash that draws a ranking policy: independent of the draws of prompt versions and candidates."""


@dataclass(frozen=True, slots=True)
class PolicyDraw:
    """A ranking policy that was drawn for a decision, the distribution, and the id of the event that decided it."""

    version: str
    options: Mapping[str, float]
    event: int


@dataclass(frozen=True, slots=True)
class RankedDecision:
    """The ranking of candidates; None if serving did not rank them. `draw`: None if rollouts do not decide."""

    ranking: CandidateRanking | None
    draw: PolicyDraw | None


class CandidateRanker:
    """Has serving rank candidates, with the policy that rollouts draw; without any, with serving's default."""

    def __init__(self, live: LiveRollouts, serving: ServingClient) -> None:
        self._live = live
        self._serving = serving

    async def rank(self, candidates: Sequence[Candidate], context: UserContext, timeout: float) -> RankedDecision:
        """Rank candidates in `timeout` seconds; if serving does not have the policy, with the champion."""
        started = time.perf_counter()
        bodies = candidate_bodies(candidates)
        track = self._live.state.policy
        draw = draw_policy(track, candidates[0].tip_id, context.segments)
        try:
            try:
                return RankedDecision(await self._score(bodies, context, draw, timeout), draw)
            except UnknownVersion:
                champion = track.champion
                if draw is None or champion is None or champion.version == draw.version:
                    raise
                log.warning("champion_ranks", policy=draw.version, reason="serving does not have this policy")
                draw = PolicyDraw(champion.version, {champion.version: 1.0}, track.champion_event)
                remaining = timeout - (time.perf_counter() - started)
                return RankedDecision(await self._score(bodies, context, draw, remaining), draw)
        except TipsError as error:
            log.warning("candidates_not_ranked", outcome=error.slug, reason="the first candidate is shown")
            return RankedDecision(None, draw)

    async def _score(
        self,
        bodies: Sequence[Mapping[str, str]],
        context: UserContext,
        draw: PolicyDraw | None,
        timeout: float,
    ) -> CandidateRanking:
        version = draw.version if draw else None
        return await self._serving.score(
            bodies[0]["id"], context.user_id, context.signals, bodies, timeout=timeout, policy=version
        )


def draw_policy(track: Track, decision_id: UUID, segments: Sequence[str]) -> PolicyDraw | None:
    """Draw the ranking policy of a decision by the hash of its id; None while rollouts decide no policies."""
    shares = track.shares(segments)
    if not shares:
        return None
    drawn = draw_weighted(shares, hash_to_unit_interval(POLICY_SALT, str(decision_id)))
    return PolicyDraw(drawn.option, drawn.distribution, track.event)


def candidate_bodies(candidates: Sequence[Candidate]) -> list[dict[str, str]]:
    """Return the candidates as POST /score takes them."""
    return [
        {
            "id": str(candidate.tip_id),
            "prompt_version": candidate.generated.prompt_version,
            "tip": candidate.generated.tip,
        }
        for candidate in candidates
    ]
