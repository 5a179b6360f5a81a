"""Training on the decision log, and the quality of the policy on simulated users with known preferences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.cli import train as train_command
from ml.experiments.arrays import Floats
from ml.experiments.decisions import InMemoryDecisionLog, LoggedCandidate, LoggedDecision
from ml.experiments.regression_statistics import RegressionStatistics
from ml.features.encoder import CONTEXT_ENCODER, candidate_encoder, candidate_row
from ml.features.offline_store import OfflineStore
from ml.pipelines.day_statistics import shown_versions, sum_statistics
from ml.pipelines.offline_log import OfflineDecisionLog
from ml.pipelines.training import train
from ml.registry.artifacts import RankingPolicy
from ml.simulation.people import LISTED_VERSIONS, Visit, visits
from ml.store.recount import prepare_database
from tests.example_tips import WINDOW
from tests.offline import write_decisions
from tests.pipelines.logs import DAY, MOODS, VERSIONS, log_of, ranked_log_of, with_digests
from tests.policies import decisions
from tests.simulation.oracle import expected_rewards

MAIN_SHARE = 0.95


def train_on(decisions: Sequence[LoggedDecision], *, name: str = "tips") -> bytes:
    return train(InMemoryDecisionLog(decisions), name=name)


def first_visits(day: int, n: int, seed: int) -> list[Visit]:
    """Return the first `n` visits of 1,000 simulated users from a day on."""
    results: list[Visit] = []
    for after in count():
        if len(results) >= n:
            return results[:n]
        results += visits(1_000, day + after, seed)
    raise AssertionError


def skewed_log(main: str, n: int, seed: int) -> list[LoggedDecision]:
    """Return `n` decisions for simulated users, of which the share `MAIN_SHARE` has one prompt version."""
    other = (1 - MAIN_SHARE) / (len(LISTED_VERSIONS) - 1)
    shares = {version: MAIN_SHARE if version == main else other for version in LISTED_VERSIONS}
    candidates = tuple(LoggedCandidate(version, share) for version, share in shares.items())
    choices = np.random.default_rng([seed, *main.encode()]).choice(len(candidates), size=n, p=[*shares.values()])
    return [
        LoggedDecision(
            visit.id,
            visit.user_id,
            float(number),
            visit.signals,
            {},
            candidates,
            int(choice),
            reward := float(visit.helps(candidates[choice].prompt_version)),
            reward,
            False,
        )
        for number, (visit, choice) in enumerate(zip(first_visits(0, n, seed), choices, strict=True))
    ]


@dataclass(frozen=True)
class HeldOut:
    """Visits that no policy was trained on.

    `contexts`: shape (n, columns). `preferences`: the true expected reward of each version, shape (n, versions), given
    the user's persona. `expected`: the same given the signals only.
    """

    contexts: Floats
    preferences: Floats
    expected: Floats

    @classmethod
    def of(cls, n: int, seed: int) -> "HeldOut":
        held_out = first_visits(1_000, n, seed)
        return cls(
            CONTEXT_ENCODER.encode_rows([visit.signals for visit in held_out]),
            np.array([[visit.persona.preference(version) for version in LISTED_VERSIONS] for visit in held_out]),
            np.array([expected_rewards(visit.signals) for visit in held_out]),
        )

    def scores(self, policy: RankingPolicy) -> Floats:
        tips = candidate_encoder(policy.card.versions).encode_rows(
            [candidate_row(version, None) for version in LISTED_VERSIONS]
        )
        return np.array([policy.rank(context, tips).scores for context in self.contexts])

    def reward(self, scores: Floats) -> float:
        """Return the mean true reward if the version with the highest score is chosen."""
        return float(self.preferences[np.arange(len(scores)), scores.argmax(axis=1)].mean())

    def share_of_oracle(self, scores: Floats) -> float:
        """Return the gain over uniform, divided by the gain of the best choice by signals."""
        uniform, oracle = float(self.preferences.mean()), self.reward(self.expected)
        return (self.reward(scores) - uniform) / (oracle - uniform)

    def calibration_error(self, scores: Floats) -> float:
        """Return the expected calibration error: the weighted mean of |mean score - true mean| over ten equal bins.

        Scores of all versions at all visits are compared with their true expected rewards. Source: Naeini, Cooper &
        Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015.
        """
        bins = np.minimum((scores * 10).astype(np.intp), 9)
        errors = [
            (bins == number).mean() * abs(scores[bins == number].mean() - self.preferences[bins == number].mean())
            for number in np.unique(bins)
        ]
        return float(sum(errors))


def measure(seeds: Sequence[int], n_held_out: int) -> list[tuple[float, float]]:
    """Return `share_of_oracle` and the calibration error for each seed and each main version."""
    results = []
    for seed in seeds:
        held_out = HeldOut.of(n_held_out, seed)
        for main in LISTED_VERSIONS:
            scores = held_out.scores(RankingPolicy.from_bytes(train_on(skewed_log(main, 4_000, seed))))
            results.append((held_out.share_of_oracle(scores), held_out.calibration_error(scores)))
    return results


def test_a_policy_trained_on_a_skewed_log_gains_three_quarters_of_the_oracle_s_advantage() -> None:
    shares, errors = zip(*measure([1, 2, 3], 1_500), strict=True)
    assert fmean(shares) >= 0.75
    assert min(shares) >= 0.6
    assert fmean(errors) <= 0.04


def equal_statistics(one: RegressionStatistics, other: RegressionStatistics) -> bool:
    return (one.n, one.yy) == (other.n, other.yy) and bool((one.xx == other.xx).all() and (one.xy == other.xy).all())


LOG = [*decisions(120), *log_of(60), *ranked_log_of(60)]
"""Decisions among prompt versions and among tips, with and without texts."""
ALL_VERSIONS = shown_versions(LOG)


@settings(max_examples=8, deadline=None)
@given(st.permutations(LOG))
def test_the_same_decisions_in_any_order_give_the_same_bytes(shuffled: list[LoggedDecision]) -> None:
    assert train_on(shuffled) == train_on(LOG)


def test_different_decisions_give_different_policies_and_an_empty_log_is_refused() -> None:
    assert train_on(LOG) != train_on(LOG[:-1])
    with pytest.raises(ValueError, match="no decisions to learn from"):
        train_on([])


@settings(max_examples=10, deadline=None)
@given(st.permutations(LOG), st.integers(0, len(LOG)))
def test_statistics_of_two_parts_add_up_to_those_of_the_whole(shuffled: list[LoggedDecision], end: int) -> None:
    whole = sum_statistics(LOG, ALL_VERSIONS)
    first, second = (sum_statistics(part, ALL_VERSIONS) for part in (shuffled[:end], shuffled[end:]))
    assert equal_statistics(first + second, whole)
    assert equal_statistics(whole - second, first)


def test_statistics_of_days_with_different_versions_add_up() -> None:
    days = [
        decisions(100),
        log_of(100, shares={"v3": 0.5, "v9": 0.5}, rates={mood: {"v3": 0.4, "v9": 0.2} for mood in MOODS}),
        log_of(50),
    ]
    versions = shown_versions([decision for day in days for decision in day])
    columns = candidate_encoder(versions).columns
    summed = RegressionStatistics.empty(CONTEXT_ENCODER.columns, columns)
    for day in days:
        summed += sum_statistics(day, shown_versions(day)).with_columns(CONTEXT_ENCODER.columns, columns)
    assert equal_statistics(summed, sum_statistics([decision for day in days for decision in day], versions))


def test_the_card_describes_the_training_data() -> None:
    card = RankingPolicy.from_bytes(train_on(LOG, name="mine")).card
    assert (card.name, card.learned_from) == ("mine", len(LOG))
    assert card.trained_until == max(decision.at for decision in LOG)
    assert card.versions == (*sorted({"v1", "v2-mentor", "v3-few-shot", *VERSIONS}),)
    assert (card.context, card.candidate) == (CONTEXT_ENCODER.columns, candidate_encoder(card.versions).columns)


# Changes of a prompt version's content


@pytest.mark.parametrize("make_log", [log_of, ranked_log_of])
def test_rewards_of_an_earlier_digest_are_not_learned(make_log: Callable[..., list[LoggedDecision]]) -> None:
    log = make_log(200)
    earlier, current = with_digests(log[:100], "old"), with_digests(log[100:], "new")
    # Among prompt versions, only the chosen one has a digest: the first decisions with "new" are those of the choices.
    chosen_versions = [one.candidates[one.chosen].prompt_version for one in current]
    start = 0 if current[0].ranked else max(chosen_versions.index(prompt_version) for prompt_version in VERSIONS)
    expected = current[start:]
    assert 80 < len(expected) <= 100
    assert train_on([*earlier, *current]) == train_on(expected)
    assert train_on([*with_digests(log[:100], "old", reward=1.0), *current]) == train_on(expected)
    assert RankingPolicy.from_bytes(train_on([*earlier, *current])).card.learned_from == len(expected)


def test_the_command_reports_tips_with_an_earlier_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shares = {"v1": 1.0}
    log = [
        *with_digests(log_of(30, shares=shares), "old"),
        *with_digests(log_of(70, shares=shares, start=DAY, seed=2), "new"),
    ]
    store = OfflineStore.open(str(tmp_path / "offline"))
    write_decisions(store, log)
    monkeypatch.setattr(train_command, "decision_log", lambda: OfflineDecisionLog(store, seen_only=False))
    url = f"sqlite+aiosqlite:///{tmp_path / 'tips.db'}"
    prepare_database(url, WINDOW)
    monkeypatch.setenv("DATABASE_URL", url)
    train_command.train(to=tmp_path / "policy.npz")
    policy = RankingPolicy.from_bytes((tmp_path / "policy.npz").read_bytes())
    assert capsys.readouterr().out == (
        "30 of 100 tips are left out, because the digest of a prompt version has changed since.\n"
        "The policy's model card is incomplete, since figures on the 3 newest days need tips of earlier days too.\n"
        f"learned from 70 tips of {tmp_path / 'tips.db'}: policy version {policy.version}, "
        f"in {tmp_path / 'policy.npz'}\n"
    )
