"""Logged decisions: the context, the candidates with their propensities, the chosen candidate, and the reward."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

DAY_SECONDS = 86_400.0


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

    @property
    def day(self) -> int:
        """The day (UTC), since 1970."""
        return int(self.at // DAY_SECONDS)


PromptUse = tuple[str, str, float]
"""A prompt version, its digest, and the time of a decision that had both as a candidate."""


@dataclass(frozen=True, slots=True)
class NewestPrompts:
    """The newest digest of each prompt version that has had several, with the time of its first use.

    The newest digest of a version is that of the latest decision that has one for it. Rewards of an earlier digest say
    nothing about the newest one. Decisions are therefore left out that have the version with another digest, and those
    that have it and are older than the first decision with the newest digest. The latter rule covers candidates without
    a digest, which were offered but not generated.
    """

    digests: Mapping[str, tuple[str, float]]

    @classmethod
    def of_uses(cls, uses: Iterable[PromptUse]) -> Self:
        """Return those of uses in the order of time; only the first and the last use of a digest matter."""
        # The digests of each version, in the order of their last use, each with the time of its first use.
        digests_of: dict[str, dict[str, float]] = {}
        for version, digest, at in uses:
            digests = digests_of.setdefault(version, {})
            digests[digest] = digests.pop(digest, at)
        return cls({version: [*digests.items()][-1] for version, digests in digests_of.items() if len(digests) > 1})

    def kept(self, decisions: Sequence[LoggedDecision]) -> Sequence[LoggedDecision]:
        """Return the decisions that are not left out, in their order."""
        return [each for each in decisions if self._is_kept(each)] if self.digests else decisions

    def _is_kept(self, decision: LoggedDecision) -> bool:
        for candidate in decision.candidates:
            newest = self.digests.get(candidate.prompt_version)
            if newest and not (decision.at >= newest[1] and candidate.prompt_digest in {None, newest[0]}):
                return False
        return True


def prompt_uses(decisions: Iterable[LoggedDecision]) -> Iterator[PromptUse]:
    """Yield each use of a digest among the candidates of decisions."""
    for decision in decisions:
        for candidate in decision.candidates:
            if candidate.prompt_digest:
                yield candidate.prompt_version, candidate.prompt_digest, decision.at


def with_newest_prompts(decisions: Iterable[LoggedDecision]) -> list[LoggedDecision]:
    """Return the decisions that `NewestPrompts` does not leave out, ordered by time."""
    by_time = sorted(decisions, key=lambda decision: (decision.at, decision.id))
    return [*NewestPrompts.of_uses(prompt_uses(by_time)).kept(by_time)]


class DecisionLog(Protocol):
    """A log of decisions, larger than memory, that can be read repeatedly."""

    def chunks(self, since: float = -math.inf, before: float = math.inf) -> Iterator[Sequence[LoggedDecision]]:
        """Yield the decisions from `since` (included) to `before` (excluded), in the order of (`at`, `id`), in chunks.

        Both in Unix seconds. A result that is computed from chunks must not depend on their sizes.
        """

    def newest_prompts(self, since: float = -math.inf, before: float = math.inf) -> NewestPrompts:
        """Return the newest digests of the prompt versions among the decisions of a period."""


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

    def newest_prompts(self, since: float = -math.inf, before: float = math.inf) -> NewestPrompts:
        return NewestPrompts.of_uses(use for chunk in self.chunks(since, before) for use in prompt_uses(chunk))


@dataclass(frozen=True, slots=True, eq=False)
class SelectedDecisions:
    """The decisions of a log from `since` to `before` that `newest` does not leave out, as a log."""

    log: DecisionLog
    newest: NewestPrompts
    since: float = -math.inf
    before: float = math.inf

    @classmethod
    def of_period(cls, log: DecisionLog, since: float, before: float) -> Self:
        """Select the decisions of a period with the newest prompts of that period."""
        return cls(log, log.newest_prompts(since, before), since, before)

    def chunks(self, since: float = -math.inf, before: float = math.inf) -> Iterator[Sequence[LoggedDecision]]:
        for chunk in self.log.chunks(max(since, self.since), min(before, self.before)):
            if kept := self.newest.kept(chunk):
                yield kept

    def newest_prompts(self, since: float = -math.inf, before: float = math.inf) -> NewestPrompts:  # noqa: ARG002
        return NewestPrompts({})  # one digest of each version is left
