"""Training on a log of decisions, and how good the policy is where the truth is known."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.experiments.arrays import Floats
from ml.experiments.decisions import LoggedCandidate, LoggedDecision
from ml.experiments.regression_statistics import RegressionStatistics
from ml.features.encoder import CONTEXT_ENCODER, candidate_encoder, candidate_row
from ml.pipelines import training
from ml.pipelines.training import shown_versions, sum_statistics, train
from ml.registry.artifacts import RankingPolicy
from ml.simulation.people import TASTES, Visit, visits
from tests.pipelines.logs import MOODS, VERSIONS, log_of, ranked_log_of
from tests.policies import decisions
from tests.simulation.oracle import expected_rewards

MAIN_SHARE = 0.95


def visits_from(day: int, n: int, seed: int) -> list[Visit]:
    """The first `n` visits of 1,000 people from a day on."""
    found: list[Visit] = []
    for after in count():
        if len(found) >= n:
            return found[:n]
        found += visits(1_000, day + after, seed)
    raise AssertionError


def skewed_log(main: str, n: int, seed: int) -> list[LoggedDecision]:
    """Return `n` decisions for simulated people, of which `MAIN_SHARE` took one version."""
    other = (1 - MAIN_SHARE) / (len(TASTES) - 1)
    shares = {version: MAIN_SHARE if version == main else other for version in TASTES}
    offered = tuple(LoggedCandidate(version, share) for version, share in shares.items())
    taken = np.random.default_rng([seed, *main.encode()]).choice(len(offered), size=n, p=[*shares.values()])
    return [
        LoggedDecision(
            visit.id,
            visit.user_id,
            float(number),
            visit.signals,
            {},
            offered,
            int(choice),
            float(visit.helps(offered[choice].prompt_version)),
            False,
        )
        for number, (visit, choice) in enumerate(zip(visits_from(0, n, seed), taken, strict=True))
    ]


@dataclass(frozen=True)
class HeldOut:
    """Visits that no policy has learned from.

    `contexts`: shape (n, columns). `tastes`: the true expected reward of each version, shape (n, versions), given the
    person's kind. `expected`: the same given their signals only.
    """

    contexts: Floats
    tastes: Floats
    expected: Floats

    @classmethod
    def of(cls, n: int, seed: int) -> "HeldOut":
        held_out = visits_from(1_000, n, seed)
        return cls(
            CONTEXT_ENCODER.encode_rows([visit.signals for visit in held_out]),
            np.array([[visit.kind.taste(version) for version in TASTES] for visit in held_out]),
            np.array([expected_rewards(visit.signals) for visit in held_out]),
        )

    def scores(self, policy: RankingPolicy) -> Floats:
        tips = candidate_encoder(policy.card.versions).encode_rows([candidate_row(version, None) for version in TASTES])
        return np.array([policy.rank(context, tips).scores for context in self.contexts])

    def reward(self, scores: Floats) -> float:
        """The mean true reward if the version with the highest score is taken."""
        return float(self.tastes[np.arange(len(scores)), scores.argmax(axis=1)].mean())

    def way_to_oracle(self, scores: Floats) -> float:
        """The share of the way from uniform to the best choice by signals: 0 is no better than uniform."""
        uniform, oracle = float(self.tastes.mean()), self.reward(self.expected)
        return (self.reward(scores) - uniform) / (oracle - uniform)

    def calibration_error(self, scores: Floats) -> float:
        """Expected calibration error, over ten bins of equal width: the weighted mean of |mean score - true mean|.

        Of all versions at all visits, against their true expected rewards. Source: Naeini, Cooper & Hauskrecht,
        "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015.
        """
        bins = np.minimum((scores * 10).astype(np.intp), 9)
        errors = [
            (bins == number).mean() * abs(scores[bins == number].mean() - self.tastes[bins == number].mean())
            for number in np.unique(bins)
        ]
        return float(sum(errors))


def measured(seeds: Sequence[int], n_held_out: int) -> list[tuple[float, float]]:
    """The share of the way to the oracle, and the calibration error, for each seed and each main version."""
    found = []
    for seed in seeds:
        held_out = HeldOut.of(n_held_out, seed)
        for main in TASTES:
            scores = held_out.scores(RankingPolicy.from_bytes(train(skewed_log(main, 4_000, seed))))
            found.append((held_out.way_to_oracle(scores), held_out.calibration_error(scores)))
    return found


def test_from_a_log_of_mostly_one_version_three_quarters_of_the_way_to_the_oracle_is_learned() -> None:
    ways, errors = zip(*measured([1, 2, 3], 1_500), strict=True)
    assert fmean(ways) >= 0.75
    assert min(ways) >= 0.6
    assert fmean(errors) <= 0.04


def equal(one: RegressionStatistics, other: RegressionStatistics) -> bool:
    return (one.n, one.yy) == (other.n, other.yy) and bool((one.xx == other.xx).all() and (one.xy == other.xy).all())


LOG = [*decisions(120), *log_of(60), *ranked_log_of(60)]
"""Decisions between versions and between tips, with and without texts, of several prompt versions."""
ALL_VERSIONS = shown_versions(LOG)


@settings(max_examples=8, deadline=None)
@given(st.permutations(LOG))
def test_the_same_decisions_in_any_order_give_the_same_policy_to_the_last_byte(shuffled: list[LoggedDecision]) -> None:
    assert train(shuffled) == train(LOG)


def test_other_decisions_give_another_policy_and_none_are_refused() -> None:
    assert train(LOG) != train(LOG[:-1])
    with pytest.raises(ValueError, match="no decisions to learn from"):
        train([])


@settings(max_examples=10, deadline=None)
@given(st.permutations(LOG), st.integers(0, len(LOG)))
def test_sum_statistics_two_parts_add_up_to_those_of_the_whole(shuffled: list[LoggedDecision], end: int) -> None:
    whole = sum_statistics(LOG, ALL_VERSIONS)
    first, second = (sum_statistics(part, ALL_VERSIONS) for part in (shuffled[:end], shuffled[end:]))
    assert equal(first + second, whole)
    assert equal(whole - second, first)


def test_days_on_which_other_versions_were_shown_add_up() -> None:
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
    assert equal(summed, sum_statistics([decision for day in days for decision in day], versions))


def test_decisions_are_read_in_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sum_statistics(LOG, ALL_VERSIONS)
    monkeypatch.setattr(training, "CHUNK_DECISIONS", 37)
    assert equal(sum_statistics(LOG, ALL_VERSIONS), whole)


def test_the_card_says_what_the_policy_was_trained_on() -> None:
    card = RankingPolicy.from_bytes(train(LOG, name="mine")).card
    assert (card.name, card.learned_from) == ("mine", len(LOG))
    assert card.trained_until == max(decision.at for decision in LOG)
    assert card.versions == (*sorted({"v1", "v2-mentor", "v3-few-shot", *VERSIONS}),)
    assert (card.context, card.candidate) == (CONTEXT_ENCODER.columns, candidate_encoder(card.versions).columns)
