"""`with_newest_prompts`: decisions that offered an earlier digest of a prompt version are left out."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ml.experiments.decisions import LoggedCandidate, LoggedDecision, with_newest_prompts

VERSIONS = ("v1", "v2", "v3")


def decision(at: float, *candidates: LoggedCandidate, chosen: int = 0, **fields: Any) -> LoggedDecision:
    usual: dict[str, Any] = {
        "id": f"d-{at}",
        "user_id": "u-1",
        "signals": {},
        "aggregates": {},
        "reward": 0.0,
        "reward_in_window": 0.0,
        "ranked": False,
    }
    return LoggedDecision(at=at, candidates=candidates, chosen=chosen, **usual | fields)


def among_versions(at: float, chosen: str, digest: str, versions: tuple[str, ...] = VERSIONS) -> LoggedDecision:
    """Return a decision among prompt versions, of which only the chosen one has a digest."""
    candidates = (
        LoggedCandidate(version, 1 / len(versions), prompt_digest=digest if version == chosen else None)
        for version in versions
    )
    return decision(at, *candidates, chosen=versions.index(chosen))


def among_tips(at: float, *versions_and_digests: tuple[str, str]) -> LoggedDecision:
    """Return a decision among ranked tips, all of which have a digest."""
    n = len(versions_and_digests)
    candidates = (LoggedCandidate(version, 1 / n, "Rest.", digest) for version, digest in versions_and_digests)
    return decision(at, *candidates, ranked=True)


@st.composite
def decisions_of(draw: st.DrawFn, *, max_digests: int) -> list[LoggedDecision]:
    """Decisions among prompt versions or tips, with up to `max_digests` digests of each version, or none."""
    drawn = []
    for index in range(draw(st.integers(0, 12))):
        versions = draw(st.lists(st.sampled_from(VERSIONS), min_size=1, max_size=3))
        candidates = [
            LoggedCandidate(
                version,
                1 / len(versions),
                prompt_digest=draw(st.sampled_from([None, *(f"{version}-{n}" for n in range(max_digests))])),
            )
            for version in versions
        ]
        drawn.append(decision(float(draw(st.integers(0, 5))), *candidates, id=str(index), ranked=draw(st.booleans())))
    return drawn


@given(decisions_of(max_digests=1))
def test_with_one_digest_per_version_no_decision_is_left_out(log: list[LoggedDecision]) -> None:
    assert with_newest_prompts(log) == sorted(log, key=lambda one: (one.at, one.id))


@given(decisions_of(max_digests=3))
def test_every_remaining_candidate_has_the_newest_digest_of_its_version_or_none(log: list[LoggedDecision]) -> None:
    newest: dict[str, str] = {}
    for one in sorted(log, key=lambda one: (one.at, one.id)):
        newest |= {
            candidate.prompt_version: candidate.prompt_digest for candidate in one.candidates if candidate.prompt_digest
        }
    for one in with_newest_prompts(log):
        for candidate in one.candidates:
            assert candidate.prompt_digest in {None, newest.get(candidate.prompt_version)}


@given(decisions_of(max_digests=3), st.randoms(use_true_random=False))
def test_the_order_of_the_decisions_does_not_matter(log: list[LoggedDecision], chance: Any) -> None:
    shuffled = [*log]
    chance.shuffle(shuffled)
    assert with_newest_prompts(shuffled) == with_newest_prompts(log)


@given(decisions_of(max_digests=3))
def test_filtering_twice_changes_nothing(log: list[LoggedDecision]) -> None:
    assert with_newest_prompts(with_newest_prompts(log)) == with_newest_prompts(log)


def test_decisions_that_offered_the_version_before_its_newest_digest_are_left_out() -> None:
    old, without_v2 = among_versions(1, "v2", "a"), among_versions(2, "v1", "x", ("v1", "v3"))
    offered, new, later = among_versions(3, "v1", "x"), among_versions(4, "v2", "b"), among_versions(5, "v1", "x")
    # v2 was a candidate at 1 and 3, before its newest digest was first used at 4.
    assert with_newest_prompts([old, without_v2, offered, new, later]) == [without_v2, new, later]


def test_a_decision_with_an_earlier_digest_after_the_first_use_of_the_newest_is_left_out() -> None:
    first, late, last = among_versions(1, "v2", "b"), among_versions(2, "v2", "a"), among_versions(3, "v2", "b")
    assert with_newest_prompts([first, late, last]) == [first, last]


def test_after_a_return_to_an_earlier_digest_that_digest_is_the_newest() -> None:
    first, other, again = among_versions(1, "v2", "a"), among_versions(2, "v2", "b"), among_versions(3, "v2", "a")
    assert with_newest_prompts([first, other, again]) == [first, again]


def test_ranked_decisions_with_an_earlier_digest_among_the_candidates_are_left_out() -> None:
    old, same_time = among_tips(1, ("v1", "x"), ("v2", "a")), among_tips(2, ("v1", "x"), ("v2", "b"), ("v2", "a"))
    without_v2, new = among_tips(1.5, ("v1", "x"), ("v3", "y")), among_tips(3, ("v2", "b"), ("v1", "x"))
    assert with_newest_prompts([old, same_time, without_v2, new]) == [without_v2, new]
