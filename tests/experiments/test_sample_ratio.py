"""The sample-ratio test: false alarms over daily looks, power, and the e-process behind it."""

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from ml.experiments.sample_ratio import _LOG_RATIOS, _LOG_WEIGHTS, ALARM_LEVEL, sample_ratio

Traffic = Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]

DAYS, RUNS = 90, 2_500


def p_values(counts: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the p-values after each day of each run, shape (runs, days), from arrays of shape (runs, days, versions).

    It is the vectorised form of `sample_ratio`, which a test below compares with it.
    """
    tips = counts.sum(2, keepdims=True)
    probabilities = np.broadcast_to(probabilities, counts.shape)
    mixtures = []
    for version in range(counts.shape[2]):
        odds = np.log1p(probabilities[:, :, version, None] * np.expm1(_LOG_RATIOS))
        log_likelihoods = (counts[:, :, version, None] * _LOG_RATIOS - tips * odds).cumsum(1)
        mixtures.append(special.logsumexp(log_likelihoods + _LOG_WEIGHTS, axis=2))
    log_e = special.logsumexp(np.array(mixtures), axis=0) - math.log(counts.shape[2])
    return np.asarray(np.exp(np.minimum(0, -log_e)))


def constant_shares(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    shares = np.array([0.8, 0.1, 0.1])
    return rng.multinomial(500, shares, (RUNS, DAYS)), shares


def changed_shares(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    shares = np.where(np.arange(DAYS)[:, None] < 30, [0.95, 0.05], [0.5, 0.5])
    return rng.multinomial(500, np.broadcast_to(shares, (RUNS, DAYS, 2))), shares


def shares_that_depend_on_earlier_draws(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    counts, shares = np.empty((RUNS, DAYS, 2), int), np.empty((RUNS, DAYS, 2))
    drawn = np.zeros(RUNS)
    for day in range(DAYS):
        # As under a policy that learns, shares follow what happened so far.
        first = np.clip(0.5 + (drawn - 250 * day) / (50 + 10 * day), 0.02, 0.98)
        shares[:, day] = np.stack([first, 1 - first], 1)
        counts[:, day] = rng.multinomial(500, shares[:, day])
        drawn += counts[:, day, 0]
    return counts, shares


def systematic_sampling(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return counts of decisions with three candidates each, of which a version gets floor(3 p) or ceil(3 p)."""
    shares = np.array([0.5, 0.5])
    extra = rng.binomial(167, 0.5, (RUNS, DAYS))
    return np.stack([167 + extra, 167 * 2 - extra], 2), shares


@pytest.mark.parametrize(
    "traffic", [constant_shares, changed_shares, shares_that_depend_on_earlier_draws, systematic_sampling]
)
def test_false_alarms_over_90_daily_looks_are_rarer_than_the_alarm_level(traffic: Traffic) -> None:
    counts, shares = traffic(np.random.default_rng(5))
    # Their number in 2,500 runs varies. In 40,000 runs, 0 to 0.02 % alarmed.
    assert (p_values(counts, shares) < ALARM_LEVEL).any(1).mean() <= 0.001
    assert (p_values(counts, shares) < 0.05).any(1).mean() <= 0.06


def test_the_vectorised_form_equals_the_test() -> None:
    rng = np.random.default_rng(2)
    shares = rng.dirichlet([2, 2, 2], (1, 6))
    counts = rng.multinomial(300, shares * 0.9 + np.array([0.1, 0, 0]))
    strata = [
        (dict(zip("abc", shares[0, day].tolist(), strict=True)), dict(zip("abc", counts[0, day].tolist(), strict=True)))
        for day in range(6)
    ]
    expected = p_values(counts, shares)[0]
    for day in range(6):
        assert sample_ratio(strata[: day + 1]).p_value == pytest.approx(expected[day])
    assert expected[-1] < 1


def compositions(n: int) -> Iterator[dict[str, int]]:
    for a in range(n + 1):
        for b in range(n + 1 - a):
            yield {"a": a, "b": b, "c": n - a - b}


@pytest.mark.parametrize("shares", [{"a": 0.2, "b": 0.3, "c": 0.5}, {"a": 0.98, "b": 0.01, "c": 0.01}])
def test_the_expected_value_of_the_mixture_is_1_under_the_null(shares: Mapping[str, float]) -> None:
    # The p-value is cut at 1, so e is computed here from the alternatives.
    n, total = 6, 0.0
    for counts in compositions(n):
        probability = math.factorial(n) * math.prod(shares[v] ** counts[v] / math.factorial(counts[v]) for v in shares)
        e = np.mean(
            [
                np.exp(counts[v] * _LOG_RATIOS - n * np.log1p(shares[v] * np.expm1(_LOG_RATIOS)) + _LOG_WEIGHTS).sum()
                for v in shares
            ]
        )
        assert sample_ratio([(shares, counts)]).p_value == pytest.approx(min(1, 1 / e))
        total += probability * e
    assert total == pytest.approx(1)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=6))
def test_the_result_does_not_depend_on_the_split_of_a_distribution(pairs: list[tuple[int, int]]) -> None:
    shares = {"a": 0.3, "b": 0.7}
    split = sample_ratio([(shares, {"a": a, "b": b}) for a, b in pairs])
    whole = sample_ratio([(shares, {"a": sum(a for a, _ in pairs), "b": sum(b for _, b in pairs)})])
    assert split.observed == whole.observed
    assert split.expected == pytest.approx(whole.expected)
    assert split.p_value == pytest.approx(whole.p_value)


@pytest.mark.parametrize(
    ("observed", "alarm"),
    [((50_000, 48_500), True), ((50_000, 49_700), False), ((200, 100), True), ((60, 50), False), ((5, 0), False)],
    ids=["3 % lost", "0.6 % lost", "half lost", "few tips", "very few tips"],
)
def test_lost_tips_alarm_when_there_are_enough_of_them(observed: tuple[int, int], alarm: bool) -> None:
    result = sample_ratio([({"a": 0.5, "b": 0.5}, dict(zip("ab", observed, strict=True)))])
    assert result.alarm is alarm
    assert result.expected == {"a": sum(observed) / 2, "b": sum(observed) / 2}


def test_a_version_that_could_not_be_drawn_alarms_at_once() -> None:
    assert sample_ratio([({"a": 1.0, "b": 0.0}, {"a": 99, "b": 1})]).p_value == 0
    assert sample_ratio([({"a": 1.0}, {"b": 1})]).alarm
    assert sample_ratio([({"a": 1.0, "b": 0.0}, {"a": 99})]).p_value == 1


def test_one_option_or_no_tips_never_alarm() -> None:
    assert sample_ratio([]).p_value == 1
    assert sample_ratio([({"a": 1.0}, {"a": 1_000_000})]).p_value == pytest.approx(1)
