"""Ridge regression on additive statistics: exact sums, the fit against a direct computation, and intervals."""

import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from ml.experiments import regression_statistics
from ml.experiments.arrays import Floats
from ml.experiments.linear import STRENGTHS, DayAdjustedStatistics, LinearModel, fit
from ml.experiments.regression_statistics import MAX_ROWS, RegressionStatistics, interaction_features

CONTEXT, CANDIDATE = ("mood=low", "sleep_hours/24", "steps"), ("version=v1", "length")
K, M = len(CONTEXT), len(CANDIDATE)
D = (1 + K) * (1 + M)

any_float = st.floats(-1, 1) | st.floats() | st.just(math.nan)
rewards = st.floats(0, 1)


@st.composite
def row_arrays(draw: st.DrawFn, min_rows: int = 0, max_rows: int = 40) -> tuple[Floats, Floats, Floats]:
    n = draw(st.integers(min_rows, max_rows))
    return (
        draw(npst.arrays(np.float64, (n, K), elements=any_float)),
        draw(npst.arrays(np.float64, (n, M), elements=any_float)),
        draw(npst.arrays(np.float64, n, elements=rewards)),
    )


def fit_day(statistics: RegressionStatistics) -> LinearModel:
    """Fit the statistics of a single day, whose effect is a part of the constant."""
    return fit(DayAdjustedStatistics.of_day(statistics))


def statistics_of(contexts: Floats, candidates: Floats, rewarded: Floats) -> RegressionStatistics:
    return RegressionStatistics.from_rows(CONTEXT, CANDIDATE, contexts, candidates, rewarded)


def equal_bits(one: RegressionStatistics, other: RegressionStatistics) -> bool:
    """Return whether all fields are equal to the last bit."""
    return (
        (one.context, one.candidate, one.n, one.yy) == (other.context, other.candidate, other.n, other.yy)
        and one.xx.tobytes() == (other.xx + 0.0).tobytes()
        and one.xy.tobytes() == (other.xy + 0.0).tobytes()
    )


def example_rows(n: int, seed: int = 1) -> tuple[Floats, Floats, Floats]:
    """Return rows whose reward depends on an interaction, with columns of different scales and missing values."""
    rng = np.random.default_rng(seed)
    contexts, candidates = rng.uniform(-1, 1, (n, K)) * [1, 0.3, 0.05], rng.uniform(0, 1, (n, M))
    rewarded = 0.3 + 0.2 * contexts[:, 0] * candidates[:, 1] - 0.1 * candidates[:, 0] + rng.normal(0, 0.1, n)
    contexts[rng.random((n, K)) < 0.1] = np.nan
    return contexts, candidates, np.clip(rewarded, 0, 1)


# Statistics


@settings(max_examples=60, deadline=None)
@given(row_arrays(), st.randoms(use_true_random=False), st.integers(0, 40), st.integers(1, 41))
def test_rows_in_any_order_chunks_and_parts_give_the_same_bits(
    arrays: tuple[Floats, Floats, Floats], chance: Any, split: int, chunk: int
) -> None:
    whole = statistics_of(*arrays)
    order = [*range(whole.n)]
    chance.shuffle(order)
    shuffled = [part[order] for part in arrays]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regression_statistics, "CHUNK_ROWS", chunk)
        first, second = (
            statistics_of(*(part[:split] for part in shuffled)),
            statistics_of(*(part[split:] for part in shuffled)),
        )
    assert equal_bits(first + second, whole)
    assert equal_bits(second + first, whole)
    assert equal_bits(whole - second, first)
    assert equal_bits(whole + RegressionStatistics.empty(CONTEXT, CANDIDATE), whole)


def test_statistics_equal_the_sums_over_all_rows() -> None:
    contexts, candidates, rewarded = example_rows(200)
    statistics = statistics_of(contexts, candidates, rewarded)
    x, y = interaction_features(contexts, candidates), np.rint(rewarded * 2**14) / 2**14
    assert x.shape == (200, D)
    assert (statistics.xx == x.T @ x).all()
    assert (statistics.xy == x.T @ y).all()
    assert statistics.yy == y @ y


@given(row_arrays(min_rows=1))
def test_features_are_multiples_of_their_steps_from_minus_one_to_one(arrays: tuple[Floats, Floats, Floats]) -> None:
    x = interaction_features(arrays[0], arrays[1]).reshape(-1, 1 + K, 1 + M)
    assert (x[:, 0, 0] == 1).all()
    assert (abs(x) <= 1).all()
    assert (x[:, :, 0] * 2**8 % 1 == 0).all()
    assert (x[:, 0] * 2**6 % 1 == 0).all()
    assert (x == x[:, :, :1] * x[:, :1]).all()


def test_a_missing_value_counts_as_0_and_a_large_value_is_clipped() -> None:
    x = interaction_features(np.array([[math.nan, math.inf, -1e308]]), np.array([[0.5, -math.inf]]))
    assert x.reshape(1 + K, 1 + M).tolist() == [[1, 0.5, -1], [0, 0, 0], [1, 0.5, -1], [-1, -0.5, 1]]


def test_added_columns_count_as_missing_in_earlier_statistics() -> None:
    contexts, candidates, rewarded = example_rows(50)
    wider = (np.insert(contexts, 1, np.nan, axis=1), np.c_[candidates[:, ::-1], np.full(50, np.nan)], rewarded)
    names = (("mood=low", "new", "sleep_hours/24", "steps"), ("length", "version=v1", "version=v2"))
    moved = statistics_of(contexts, candidates, rewarded).with_columns(*names)
    assert equal_bits(moved, RegressionStatistics.from_rows(*names, *wider))
    with pytest.raises(ValueError, match="columns cannot be left out: steps"):
        moved.with_columns(names[0][:-1], names[1])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rewards": np.array([0.5, 1.1])}, "rewards must be numbers from 0 to 1"),
        ({"rewards": np.array([0.5, math.nan])}, "rewards must be numbers from 0 to 1"),
        ({"rewards": np.array([0.5])}, "must have the shapes"),
        ({"contexts": np.zeros((2, K + 1))}, "must have the shapes"),
        ({"candidates": np.zeros(2)}, "must have the shapes"),
        ({"context": ("a", "a", "b")}, "context columns must have different names"),
    ],
)
def test_invalid_rows_are_refused(changes: dict[str, Any], sentence: str) -> None:
    arguments: dict[str, Any] = {
        "context": CONTEXT,
        "candidate": CANDIDATE,
        "contexts": np.zeros((2, K)),
        "candidates": np.zeros((2, M)),
        "rewards": np.zeros(2),
    }
    with pytest.raises(ValueError, match=sentence):
        RegressionStatistics.from_rows(**arguments | changes)


def test_statistics_that_no_rows_can_have_are_refused() -> None:
    small, large = statistics_of(*example_rows(10)), statistics_of(*example_rows(20))
    with pytest.raises(ValueError, match="of 0 to 33,554,432 rows"):
        small - large
    with pytest.raises(ValueError, match="same columns"):
        small + RegressionStatistics.empty(CONTEXT, ("other", "length"))
    valid: dict[str, Any] = {"context": CONTEXT, "candidate": CANDIDATE, "n": 10, "xx": small.xx, "xy": small.xy}
    for changes, sentence in (
        ({"n": MAX_ROWS + 1}, "of 0 to"),
        ({"n": 11}, "number of rows"),
        ({"xx": small.xx[1:]}, "xx must have the shape"),
        ({"xx": np.where(small.xx == 10, math.nan, small.xx)}, "xx must be numbers"),
        ({"xx": small.xx + np.triu(np.full((D, D), 2**-20), 1)}, "symmetric"),
        ({"xy": small.xy + 11}, "xy must be numbers"),
        ({"yy": -1.0}, "yy must be numbers"),
    ):
        with pytest.raises(ValueError, match=sentence):
            RegressionStatistics(**valid | {"yy": small.yy} | changes)


# Fit


def fit_directly(contexts: Floats, candidates: Floats, rewarded: Floats) -> tuple[Floats, Floats, float]:
    """Return the posterior means and standard deviations of the expected rewards, and the noise variance.

    Computed with n-by-n matrices. The evidence is that of a multivariate t distribution (Bishop 2006, exercise 3.23).
    """
    n = len(rewarded)
    y = np.rint(rewarded * 2**14) / 2**14
    c = interaction_features(contexts, candidates).reshape(n, 1 + K, 1 + M)[:, 1:, 0]
    a = interaction_features(contexts, candidates).reshape(n, 1 + K, 1 + M)[:, 0]
    scaled = (c - c.mean(axis=0)) / np.sqrt(np.maximum(c.std(axis=0), 0.02))
    x = np.concatenate((np.ones((n, 1)), scaled), axis=1)[:, :, None] * a[:, None, :]
    x[:, 1:, 0] /= 3
    x = x.reshape(n, D)[:, 1:]
    x_centred, y_centred = x - x.mean(axis=0), y - y.mean()
    results = []
    for strength in STRENGTHS:
        kernel = np.eye(n) + x_centred @ x_centred.T / strength
        scale = y_centred @ np.linalg.solve(kernel, y_centred) + 0.25
        results.append((-0.5 * np.linalg.slogdet(kernel)[1] - 0.5 * n * math.log(scale), strength, scale / n))
    _, strength, noise = max(results)
    ones = np.c_[np.ones(n), x]
    precision = ones.T @ ones + np.diag([0.0, *[strength] * (D - 1)])
    variances = noise * np.einsum("ij,ij->i", ones, np.linalg.solve(precision, ones.T).T)
    return ones @ np.linalg.solve(precision, ones.T @ y), np.sqrt(variances), noise


@pytest.mark.parametrize(("n", "seed"), [(5, 1), (60, 2), (300, 3)])
def test_a_fit_equals_the_ridge_regression_of_highest_evidence(n: int, seed: int) -> None:
    arrays = example_rows(n, seed)
    model, (expected, deviations, noise) = fit_day(statistics_of(*arrays)), fit_directly(*arrays)
    assert model.noise_variance == pytest.approx(noise, rel=1e-6)
    for row in range(n):
        inputs = arrays[0][row], arrays[1][row : row + 1]
        low, high = model.predict_interval(*inputs, level=0.6826894921370859)
        assert model.predict(*inputs) == pytest.approx(expected[row], abs=1e-5)
        assert (high - low) / 2 == pytest.approx(deviations[row], rel=1e-5)


FIT = """
import numpy as np
from ml.experiments.linear import DayAdjustedStatistics, fit
from ml.experiments.regression_statistics import RegressionStatistics
rng = np.random.default_rng(1)
contexts, candidates = rng.uniform(-1, 1, (2_000, 30)), rng.integers(0, 2, (2_000, 8)).astype(float)
names = [str(number) for number in range(30)]
rows = RegressionStatistics.from_rows(names, names[:8], contexts, candidates, rng.random(2_000))
model = fit(DayAdjustedStatistics.of_day(rows))
print(model.weights.tobytes().hex(), model.noise_variance)
print(hash(model.covariance.tobytes()))
"""


def test_a_fit_has_the_same_bits_with_any_number_of_threads_on_any_processor() -> None:
    results = {
        subprocess.run(
            [sys.executable, "-c", FIT],
            env={**os.environ, "PYTHONHASHSEED": "1", **environment},
            capture_output=True,
            check=True,
        ).stdout
        for environment in (
            {"OPENBLAS_NUM_THREADS": "1"},
            {"OPENBLAS_NUM_THREADS": "2"},
            {"OPENBLAS_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "Nehalem"},  # without AVX
        )
    }
    assert len(results) == 1


@settings(max_examples=60, deadline=None)
@given(row_arrays(min_rows=1))
def test_any_rows_give_a_model_with_finite_numbers(arrays: tuple[Floats, Floats, Floats]) -> None:
    model = fit_day(statistics_of(*arrays))
    low, high = model.predict_interval(arrays[0][0], arrays[1])
    assert np.isfinite(low).all()
    assert (low <= high).all()
    assert (model.covariance == model.covariance.T).all()


def test_statistics_of_no_decisions_are_refused() -> None:
    with pytest.raises(ValueError, match="no decisions to fit"):
        fit_day(RegressionStatistics.empty(CONTEXT, CANDIDATE))


def test_a_model_of_one_decision_predicts_its_reward_with_a_wide_interval() -> None:
    model = fit_day(statistics_of(np.zeros((1, K)), np.ones((1, M)), np.ones(1)))
    low, high = model.predict_interval(np.zeros(K), np.ones((1, M)))
    assert model.predict(np.zeros(K), np.ones((1, M))) == pytest.approx(1.0)
    assert high - low > 0.5


def test_intervals_contain_the_expected_reward_with_their_level_if_it_is_drawn_from_the_prior() -> None:
    rng = np.random.default_rng(5)
    covered = []
    for _ in range(400):
        truth = rng.normal(0, 0.03, (1 + K, 1 + M))
        truth[1:, 0] /= 3
        truth[0, 0] = 0.5
        contexts, candidates = rng.choice([0.0, 1.0], (200, K)), rng.choice([0.0, 1.0], (200, M))
        expected = np.einsum("ni,ij,nj->n", np.c_[np.ones(200), contexts], truth, np.c_[np.ones(200), candidates])
        model = fit_day(statistics_of(contexts, candidates, np.clip(expected + rng.normal(0, 0.08, 200), 0, 1)))
        low, high = model.predict_interval(contexts[0], candidates[:1], level=0.9)
        covered.append(low[0] <= expected[0] <= high[0])
    assert np.mean(covered) == pytest.approx(0.9, abs=0.04)


def test_intervals_are_wider_for_candidates_with_less_data() -> None:
    contexts, candidates, rewarded = example_rows(500)
    candidates[:, 0] = 0.0
    model = fit_day(statistics_of(contexts, candidates, rewarded))
    low, high = model.predict_interval(contexts[0], np.array([[0.0, 0.5], [1.0, 0.5]]))
    with_data, without_data = high - low
    assert without_data > 2 * with_data


@pytest.mark.parametrize("level", [0.0, 1.0, math.nan])
def test_an_invalid_level_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match="level"):
        fit_day(statistics_of(*example_rows(5))).predict_interval(np.zeros(K), np.zeros((1, M)), level=level)


@pytest.mark.parametrize(
    ("context", "candidates"), [((K + 1,), (2, M)), ((1, K), (2, M)), ((K,), (2, M + 1)), ((K,), (M,))]
)
def test_arrays_with_other_columns_are_refused(context: tuple[int, ...], candidates: tuple[int, ...]) -> None:
    model = fit_day(statistics_of(*example_rows(5)))
    for method in (model.predict, model.predict_interval):
        with pytest.raises(ValueError, match="columns must be"):
            method(np.zeros(context), np.zeros(candidates))


@pytest.mark.parametrize(
    ("weights", "covariance", "noise", "sentence"),
    [
        (np.zeros(2), np.eye(2), 0.1, "weights must have the shape"),
        (np.zeros((1, 2)), np.eye(3), 0.1, "covariance must have the shape"),
        (np.full((1, 2), math.nan), np.eye(2), 0.1, "weights must be numbers"),
        (np.zeros((1, 2)), np.array([[1.0, 0.5], [0.4, 1.0]]), 0.1, "symmetric"),
        (np.zeros((1, 2)), -np.eye(2), 0.1, "variances must be numbers"),
        (np.zeros((1, 2)), np.eye(2), math.inf, "noise_variance must be numbers"),
    ],
)
def test_a_model_with_invalid_shapes_or_numbers_is_refused(
    weights: Floats, covariance: Floats, noise: float, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        LinearModel(weights, covariance, noise)
