"""Logged decisions: the context, the candidates with their propensities, the chosen candidate, and the reward."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class LoggedCandidate:
    """One candidate of a decision.

    `probability`: in [0, 1], its propensity under the live policy; above 0 for the chosen candidate. `tip`: its text;
    None if it was not generated, because the decision was among prompt versions. `prompt_digest`: the digest of the
    prompt version; None if it is unknown.
    """

    prompt_version: str
    probability: float
    tip: str | None = None
    prompt_digest: str | None = None


@dataclass(frozen=True, slots=True)
class LoggedDecision:
    """One decision for one user.

    `id`: the id that the draw was hashed from. `at`: the time, in Unix seconds. `signals`, `aggregates`: the context.
    `chosen`: the index of the candidate that was shown. `reward`: in [0, 1], 0 for no reaction, as known
    at present. `reward_in_window`: the one that was known at the end of the reaction window. `ranked`: the candidates
    are tips that a ranking policy ranked; otherwise they are the prompt versions to choose among. `per_user`: the
    version was drawn for the user, not for this decision. `segments`: those of the user when the tip was stored.
    """

    id: str
    user_id: str
    at: float
    signals: Mapping[str, Any]
    aggregates: Mapping[str, float]
    candidates: tuple[LoggedCandidate, ...]
    chosen: int
    reward: float
    reward_in_window: float
    ranked: bool
    per_user: bool = False
    segments: tuple[str, ...] = ()


def with_newest_prompts(decisions: Iterable[LoggedDecision]) -> list[LoggedDecision]:
    """Return the decisions whose candidates all have the newest digest of their prompt version, ordered by time.

    The newest digest of a version is that of the latest decision that has one for it. Rewards of an earlier digest say
    nothing about the newest one. If a version has had several digests, these decisions are therefore left out: those
    that have the version with another digest, and those that have it and are older than the first decision with the
    newest digest. The latter rule covers candidates without a digest, which were offered but not generated.
    """
    by_time = sorted(decisions, key=lambda decision: (decision.at, decision.id))
    # The digests of each version, in the order of their last use, each with the time of its first use.
    digests_of: dict[str, dict[str, float]] = {}
    for decision in by_time:
        for candidate in decision.candidates:
            if candidate.prompt_digest:
                digests = digests_of.setdefault(candidate.prompt_version, {})
                digests[candidate.prompt_digest] = digests.pop(candidate.prompt_digest, decision.at)
    newest = {version: [*digests.items()][-1] for version, digests in digests_of.items() if len(digests) > 1}

    def is_newest(candidate: LoggedCandidate, at: float) -> bool:
        if candidate.prompt_version not in newest:
            return True
        digest, first_use = newest[candidate.prompt_version]
        return at >= first_use and candidate.prompt_digest in {None, digest}

    return [
        decision for decision in by_time if all(is_newest(candidate, decision.at) for candidate in decision.candidates)
    ]


class DecisionLog(Protocol):
    """A log of decisions, larger than memory, that can be read repeatedly."""

    def chunks(self, since: float = -math.inf, before: float = math.inf) -> Iterator[Sequence[LoggedDecision]]:
        """Yield the decisions from `since` (included) to `before` (excluded), in the order of (`at`, `id`), in chunks.

        Both in Unix seconds. A result that is computed from chunks must not depend on their sizes.
        """


@dataclass(frozen=True, slots=True, eq=False)
class InMemoryDecisionLog:
    """A log of decisions that are in memory, in any order."""

    decisions: Sequence[LoggedDecision]
    chunk_size: int = 4_096

    def chunks(self, since: float = -math.inf, before: float = math.inf) -> Iterator[Sequence[LoggedDecision]]:
        selected = [decision for decision in self.decisions if since <= decision.at < before]
        selected.sort(key=lambda decision: (decision.at, decision.id))
        for start in range(0, len(selected), self.chunk_size):
            yield selected[start : start + self.chunk_size]
