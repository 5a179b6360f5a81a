"""The test whether a version fails more often; `tests/bench/guardrails.py` has more runs."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.experiments.comparison import Stratum
from ml.experiments.failure_excess import FailureExcess, failure_excess
from ml.experiments.guardrails import HARM_ALPHA
from ml.experiments.statistics import Sample
from tests.bench.guardrails import EQUAL, HARMS, draw_traffic, failure_alarms, rollbacks, tips_until_found

OPTIONS = {"a": 0.9, "b": 0.1}


def stratum(version: str, failed: int, options: dict[str, float] = OPTIONS) -> Stratum:
    return Stratum(0, options, version, Sample(1_000, failed, failed))


def excess(a: int, b: int, *, tolerated: float = 1.0) -> FailureExcess:
    return failure_excess([stratum("a", a), stratum("b", b)], "a", "b", tolerated=tolerated)


@pytest.mark.parametrize("tolerated", [1.0, 2.0])
def test_the_expected_value_of_the_e_process_is_1_at_the_tolerated_ratio(tolerated: float) -> None:
    # The p-value is cut at 1, so only results with an excess show e.
    n, null = 12, tolerated * 0.1 / (0.9 + tolerated * 0.1)
    p_values = [excess(n - k, k, tolerated=tolerated).p_value for k in range(n + 1)]
    probabilities = [math.comb(n, k) * null**k * (1 - null) ** (n - k) for k in range(n + 1)]
    with_excess = [(p, p_value) for p, p_value in zip(probabilities, p_values, strict=True) if p_value < 1]
    assert 0.3 < sum(p / p_value for p, p_value in with_excess) < 1
    assert p_values == sorted(p_values, reverse=True)
    assert excess(9, 3, tolerated=tolerated).expected == pytest.approx(12 * null)


@pytest.mark.parametrize(
    ("a", "b", "is_harm"), [(0, 1, False), (0, 3, True), (20, 12, True), (90, 10, False), (90, 0, False), (0, 0, False)]
)
def test_a_few_failures_of_a_small_share_are_enough(a: int, b: int, is_harm: bool) -> None:
    assert (excess(a, b).p_value < HARM_ALPHA) is is_harm


def test_one_failure_at_a_share_of_1_percent_is_not_enough() -> None:
    assert failure_excess([stratum("b", 1, {"a": 0.99, "b": 0.01})], "a", "b").p_value > HARM_ALPHA
    assert failure_excess([stratum("b", 2, {"a": 0.99, "b": 0.01})], "a", "b").p_value < HARM_ALPHA


def test_a_tolerated_ratio_is_no_harm() -> None:
    assert excess(900, 150).p_value < HARM_ALPHA < excess(900, 150, tolerated=2.0).p_value
    assert excess(900, 300, tolerated=2.0).p_value < HARM_ALPHA


def test_failures_of_other_versions_and_without_overlap_do_not_count() -> None:
    strata = [stratum("a", 5), stratum("b", 3)]
    others = [stratum("c", 9, {"a": 0.5, "b": 0.3, "c": 0.2}), stratum("b", 9, {"b": 1.0}), stratum("a", 9, {"a": 1.0})]
    assert failure_excess([*strata, *others], "a", "b") == failure_excess(strata, "a", "b")
    assert failure_excess(others, "a", "b") == FailureExcess(0, 0, 1)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=5))
def test_the_result_does_not_depend_on_the_split_of_a_distribution(pairs: list[tuple[int, int]]) -> None:
    split = failure_excess([s for a, b in pairs for s in (stratum("a", a), stratum("b", b))], "a", "b")
    whole = excess(sum(a for a, _ in pairs), sum(b for _, b in pairs))
    assert (split.observed, split.expected) == pytest.approx((whole.observed, whole.expected))
    assert split.p_value == pytest.approx(whole.p_value)


def test_equal_failure_rates_are_rarely_an_excess_while_the_share_grows() -> None:
    traffic = EQUAL["unusable: 2 % against 2 %, share of 1, 5, 25, 50 %"]
    counts = draw_traffic(traffic, 100, np.random.default_rng(1))
    assert 0 < failure_alarms(counts, traffic.harm).any(axis=0).mean() <= HARM_ALPHA


def test_a_version_that_fails_is_found_after_a_third_of_the_tips() -> None:
    traffic = replace(HARMS["unusable: 2 % against 20 %, share 10 %"], hours=100, tips_per_hour=20)
    ours, limits = (
        np.median(tips_until_found(traffic, 60, np.random.default_rng(1), rule)) for rule in (failure_alarms, rollbacks)
    )
    assert ours < limits / 3
