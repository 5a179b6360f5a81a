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
from ml.experiments.linear import STRENGTHS, LinearModel, fit
from ml.experiments.regression_statistics import MAX_ROWS, RegressionStatistics, interaction_features

CONTEXT, CANDIDATE = ("mood=low", "sleep_hours/24", "steps"), ("version=v1", "length")
K, M = len(CONTEXT), len(CANDIDATE)
D = (1 + K) * (1 + M)

anything = st.floats(-1, 1) | st.floats() | st.just(math.nan)
rewards = st.floats(0, 1)


@st.composite
def rows(draw: st.DrawFn, min_rows: int = 0, max_rows: int = 40) -> tuple[Floats, Floats, Floats]:
    n = draw(st.integers(min_rows, max_rows))
    return (
        draw(npst.arrays(np.float64, (n, K), elements=anything)),
        draw(npst.arrays(np.float64, (n, M), elements=anything)),
        draw(npst.arrays(np.float64, n, elements=rewards)),
    )


def summed(contexts: Floats, candidates: Floats, earned: Floats) -> RegressionStatistics:
    return RegressionStatistics.from_rows(CONTEXT, CANDIDATE, contexts, candidates, earned)


def same(one: RegressionStatistics, other: RegressionStatistics) -> bool:
    """Equal to the last bit."""
    return (
        (one.context, one.candidate, one.n, one.yy) == (other.context, other.candidate, other.n, other.yy)
        and one.xx.tobytes() == (other.xx + 0.0).tobytes()
        and one.xy.tobytes() == (other.xy + 0.0).tobytes()
    )


def some_rows(n: int, seed: int = 1) -> tuple[Floats, Floats, Floats]:
    """Rows whose reward depends on a product, of columns of different scales, some missing."""
    rng = np.random.default_rng(seed)
    contexts, candidates = rng.uniform(-1, 1, (n, K)) * [1, 0.3, 0.05], rng.uniform(0, 1, (n, M))
    earned = 0.3 + 0.2 * contexts[:, 0] * candidates[:, 1] - 0.1 * candidates[:, 0] + rng.normal(0, 0.1, n)
    contexts[rng.random((n, K)) < 0.1] = np.nan
    return contexts, candidates, np.clip(earned, 0, 1)


# Statistics


@settings(max_examples=60, deadline=None)
@given(rows(), st.randoms(use_true_random=False), st.integers(0, 40), st.integers(1, 41))
def test_rows_in_any_order_chunk_and_split_give_the_same_bits(
    table: tuple[Floats, Floats, Floats], chance: Any, split: int, chunk: int
) -> None:
    whole = summed(*table)
    order = [*range(whole.n)]
    chance.shuffle(order)
    shuffled = [part[order] for part in table]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regression_statistics, "CHUNK_ROWS", chunk)
        first, second = summed(*(part[:split] for part in shuffled)), summed(*(part[split:] for part in shuffled))
    assert same(first + second, whole)
    assert same(second + first, whole)
    assert same(whole - second, first)
    assert same(whole + RegressionStatistics.empty(CONTEXT, CANDIDATE), whole)


def test_statistics_are_the_sums_that_they_are_named_after() -> None:
    contexts, candidates, earned = some_rows(200)
    statistics = summed(contexts, candidates, earned)
    x, y = interaction_features(contexts, candidates), np.rint(earned * 2**14) / 2**14
    assert x.shape == (200, D)
    assert (statistics.xx == x.T @ x).all()
    assert (statistics.xy == x.T @ y).all()
    assert statistics.yy == y @ y


@given(rows(min_rows=1))
def test_features_are_multiples_of_their_steps_from_minus_one_to_one(table: tuple[Floats, Floats, Floats]) -> None:
    x = interaction_features(table[0], table[1]).reshape(-1, 1 + K, 1 + M)
    assert (x[:, 0, 0] == 1).all()
    assert (abs(x) <= 1).all()
    assert (x[:, :, 0] * 2**8 % 1 == 0).all()
    assert (x[:, 0] * 2**6 % 1 == 0).all()
    assert (x == x[:, :, :1] * x[:, :1]).all()


def test_a_missing_number_counts_as_nothing_and_a_large_one_as_the_largest() -> None:
    x = interaction_features(np.array([[math.nan, math.inf, -1e308]]), np.array([[0.5, -math.inf]]))
    assert x.reshape(1 + K, 1 + M).tolist() == [[1, 0.5, -1], [0, 0, 0], [1, 0.5, -1], [-1, -0.5, 1]]


def test_columns_that_were_added_later_were_missing_before() -> None:
    contexts, candidates, earned = some_rows(50)
    wider = (np.insert(contexts, 1, np.nan, axis=1), np.c_[candidates[:, ::-1], np.full(50, np.nan)], earned)
    names = (("mood=low", "new", "sleep_hours/24", "steps"), ("length", "version=v1", "version=v2"))
    moved = summed(contexts, candidates, earned).with_columns(*names)
    assert same(moved, RegressionStatistics.from_rows(*names, *wider))
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
def test_rows_that_do_not_fit_are_refused(changes: dict[str, Any], sentence: str) -> None:
    arguments: dict[str, Any] = {
        "context": CONTEXT,
        "candidate": CANDIDATE,
        "contexts": np.zeros((2, K)),
        "candidates": np.zeros((2, M)),
        "rewards": np.zeros(2),
    }
    with pytest.raises(ValueError, match=sentence):
        RegressionStatistics.from_rows(**arguments | changes)


def test_statistics_that_no_rows_have_are_refused() -> None:
    some, more = summed(*some_rows(10)), summed(*some_rows(20))
    with pytest.raises(ValueError, match="of 0 to 33,554,432 rows"):
        some - more
    with pytest.raises(ValueError, match="same columns"):
        some + RegressionStatistics.empty(CONTEXT, ("other", "length"))
    valid: dict[str, Any] = {"context": CONTEXT, "candidate": CANDIDATE, "n": 10, "xx": some.xx, "xy": some.xy}
    for changes, sentence in (
        ({"n": MAX_ROWS + 1}, "of 0 to"),
        ({"n": 11}, "number of rows"),
        ({"xx": some.xx[1:]}, "xx must have the shape"),
        ({"xx": np.where(some.xx == 10, math.nan, some.xx)}, "xx must be numbers"),
        ({"xx": some.xx + np.triu(np.full((D, D), 2**-20), 1)}, "symmetric"),
        ({"xy": some.xy + 11}, "xy must be numbers"),
        ({"yy": -1.0}, "yy must be numbers"),
    ):
        with pytest.raises(ValueError, match=sentence):
            RegressionStatistics(**valid | {"yy": some.yy} | changes)


# Fit


def directly(contexts: Floats, candidates: Floats, earned: Floats) -> tuple[Floats, Floats, float]:
    """The posterior means and standard deviations of the expected rewards, and the noise variance, by n-by-n matrices.

    The evidence is that of a multivariate t distribution (Bishop 2006, exercise 3.23).
    """
    n = len(earned)
    y = np.rint(earned * 2**14) / 2**14
    c = interaction_features(contexts, candidates).reshape(n, 1 + K, 1 + M)[:, 1:, 0]
    a = interaction_features(contexts, candidates).reshape(n, 1 + K, 1 + M)[:, 0]
    scaled = (c - c.mean(axis=0)) / np.sqrt(np.maximum(c.std(axis=0), 0.02))
    x = np.concatenate((np.ones((n, 1)), scaled), axis=1)[:, :, None] * a[:, None, :]
    x[:, 1:, 0] /= 3
    x = x.reshape(n, D)[:, 1:]
    x_centred, y_centred = x - x.mean(axis=0), y - y.mean()
    found = []
    for strength in STRENGTHS:
        kernel = np.eye(n) + x_centred @ x_centred.T / strength
        left = y_centred @ np.linalg.solve(kernel, y_centred) + 0.25
        found.append((-0.5 * np.linalg.slogdet(kernel)[1] - 0.5 * n * math.log(left), strength, left / n))
    _, strength, noise = max(found)
    ones = np.c_[np.ones(n), x]
    precision = ones.T @ ones + np.diag([0.0, *[strength] * (D - 1)])
    variances = noise * np.einsum("ij,ij->i", ones, np.linalg.solve(precision, ones.T).T)
    return ones @ np.linalg.solve(precision, ones.T @ y), np.sqrt(variances), noise


@pytest.mark.parametrize(("n", "seed"), [(5, 1), (60, 2), (300, 3)])
def test_a_fit_is_the_ridge_regression_of_highest_evidence(n: int, seed: int) -> None:
    table = some_rows(n, seed)
    model, (expected, deviations, noise) = fit(summed(*table)), directly(*table)
    assert model.noise_variance == pytest.approx(noise, rel=1e-6)
    for row in range(n):
        asked = table[0][row], table[1][row : row + 1]
        low, high = model.predict_interval(*asked, level=0.6826894921370859)
        assert model.predict(*asked) == pytest.approx(expected[row], abs=1e-5)
        assert (high - low) / 2 == pytest.approx(deviations[row], rel=1e-5)


FIT = """
import numpy as np
from ml.experiments.linear import fit
from ml.experiments.regression_statistics import RegressionStatistics
rng = np.random.default_rng(1)
contexts, candidates = rng.uniform(-1, 1, (2_000, 30)), rng.integers(0, 2, (2_000, 8)).astype(float)
names = [str(number) for number in range(30)]
model = fit(RegressionStatistics.from_rows(names, names[:8], contexts, candidates, rng.random(2_000)))
print(model.weights.tobytes().hex(), model.noise_variance)
print(hash(model.covariance.tobytes()))
"""


def test_a_fit_is_the_same_to_the_last_bit_with_any_number_of_threads_on_any_processor() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", FIT],
            env={**os.environ, "PYTHONHASHSEED": "1", **environment},
            capture_output=True,
            check=True,
        ).stdout
        for environment in (
            {"OPENBLAS_NUM_THREADS": "1"},
            {"OPENBLAS_NUM_THREADS": "2"},
            {"OPENBLAS_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "Nehalem"},  # an old one, without wide registers
        )
    }
    assert len(found) == 1


@settings(max_examples=60, deadline=None)
@given(rows(min_rows=1))
def test_any_rows_give_a_model_of_finite_numbers(table: tuple[Floats, Floats, Floats]) -> None:
    model = fit(summed(*table))
    low, high = model.predict_interval(table[0][0], table[1])
    assert np.isfinite(low).all()
    assert (low <= high).all()
    assert (model.covariance == model.covariance.T).all()


def test_no_decisions_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match="no decisions to fit"):
        fit(RegressionStatistics.empty(CONTEXT, CANDIDATE))


def test_one_decision_moves_predictions_to_its_reward_with_wide_intervals() -> None:
    model = fit(summed(np.zeros((1, K)), np.ones((1, M)), np.ones(1)))
    low, high = model.predict_interval(np.zeros(K), np.ones((1, M)))
    assert model.predict(np.zeros(K), np.ones((1, M))) == pytest.approx(1.0)
    assert high - low > 0.5


def test_intervals_hold_the_true_expected_reward_as_often_as_they_say() -> None:
    """If the truth is drawn from the prior."""
    rng = np.random.default_rng(5)
    hits = []
    for _ in range(400):
        truth = rng.normal(0, 0.03, (1 + K, 1 + M))
        truth[1:, 0] /= 3
        truth[0, 0] = 0.5
        contexts, candidates = rng.choice([0.0, 1.0], (200, K)), rng.choice([0.0, 1.0], (200, M))
        expected = np.einsum("ni,ij,nj->n", np.c_[np.ones(200), contexts], truth, np.c_[np.ones(200), candidates])
        model = fit(summed(contexts, candidates, np.clip(expected + rng.normal(0, 0.08, 200), 0, 1)))
        low, high = model.predict_interval(contexts[0], candidates[:1], level=0.9)
        hits.append(low[0] <= expected[0] <= high[0])
    assert np.mean(hits) == pytest.approx(0.9, abs=0.04)


def test_intervals_are_wider_where_less_is_known() -> None:
    contexts, candidates, earned = some_rows(500)
    candidates[:, 0] = 0.0
    model = fit(summed(contexts, candidates, earned))
    low, high = model.predict_interval(contexts[0], np.array([[0.0, 0.5], [1.0, 0.5]]))
    known, unknown = high - low
    assert unknown > 2 * known


@pytest.mark.parametrize("level", [0.0, 1.0, math.nan])
def test_a_level_that_is_no_probability_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match="level"):
        fit(summed(*some_rows(5))).predict_interval(np.zeros(K), np.zeros((1, M)), level=level)


@pytest.mark.parametrize(
    ("context", "candidates"), [((K + 1,), (2, M)), ((1, K), (2, M)), ((K,), (2, M + 1)), ((K,), (M,))]
)
def test_columns_that_are_missing_are_refused(context: tuple[int, ...], candidates: tuple[int, ...]) -> None:
    model = fit(summed(*some_rows(5)))
    for ask in (model.predict, model.predict_interval):
        with pytest.raises(ValueError, match="columns must be"):
            ask(np.zeros(context), np.zeros(candidates))


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
def test_a_model_of_other_shapes_or_numbers_is_refused(
    weights: Floats, covariance: Floats, noise: float, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        LinearModel(weights, covariance, noise)
