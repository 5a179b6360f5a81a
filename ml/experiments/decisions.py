"""A logged decision: its context, its candidates with their propensities, the one chosen, and its reward."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LoggedCandidate:
    """One option of a decision.

    `probability`: in (0, 1], its propensity under the live policy. `tip`: its text; None if it was never written,
    because the choice was among prompt versions. `prompt_digest`: the digest of the version's text; None likewise.
    """

    prompt_version: str
    probability: float
    tip: str | None = None
    prompt_digest: str | None = None


@dataclass(frozen=True, slots=True)
class LoggedDecision:
    """One decision for one user.

    `id`: the id that the draw was hashed from. `at`: the time, in Unix seconds. `signals`, `aggregates`: the context.
    `chosen`: the index of the candidate that was shown. `reward`: in [0, 1], 0 for no reaction. `ranked`: the
    candidates are tips that a policy ranked; otherwise they are the prompt versions to choose among.
    """

    id: str
    user_id: str
    at: float
    signals: Mapping[str, Any]
    aggregates: Mapping[str, float]
    candidates: tuple[LoggedCandidate, ...]
    chosen: int
    reward: float
    ranked: bool


def with_newest_prompts(decisions: Iterable[LoggedDecision]) -> list[LoggedDecision]:
    """Return, in the order of time, the decisions whose candidates all have the newest text of their prompt version.

    The newest text is the one with the digest of the latest decision that has the version. What earlier texts of a
    version earned says nothing about it, so decisions that offered the version before its newest text first appeared
    are left out, and so are those that had another text.
    """
    in_time = sorted(decisions, key=lambda decision: (decision.at, decision.id))
    newest: dict[str, str] = {}
    for decision in in_time:
        newest |= {one.prompt_version: one.prompt_digest for one in decision.candidates if one.prompt_digest}
    first_seen: dict[str, float] = {}
    for decision in in_time:
        for candidate in decision.candidates:
            if candidate.prompt_digest and candidate.prompt_digest == newest[candidate.prompt_version]:
                first_seen.setdefault(candidate.prompt_version, decision.at)
    changed = _versions_with_several_texts(in_time)

    def is_newest(decision: LoggedDecision) -> bool:
        return all(
            candidate.prompt_version not in changed
            or (
                decision.at >= first_seen[candidate.prompt_version]
                and candidate.prompt_digest in {None, newest[candidate.prompt_version]}
            )
            for candidate in decision.candidates
        )

    return [decision for decision in in_time if is_newest(decision)]


def _versions_with_several_texts(decisions: Iterable[LoggedDecision]) -> set[str]:
    digests: dict[str, set[str]] = {}
    for decision in decisions:
        for candidate in decision.candidates:
            if candidate.prompt_digest:
                digests.setdefault(candidate.prompt_version, set()).add(candidate.prompt_digest)
    return {version for version, texts in digests.items() if len(texts) > 1}
