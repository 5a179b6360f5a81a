import json
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from ml.experiments import evaluation
from ml.experiments.arrays import Floats, Integers
from ml.experiments.evaluation import MIN_EFFECTIVE_SAMPLE_SIZE, Estimate
from ml.experiments.off_policy_log import Log
from ml.experiments.off_policy_sums import OffPolicySums
from ml.experiments.reward_model import RewardModel, cross_fitted_means

DATA = Path(__file__).parents[1] / "data" / "obd"


def ips(log: Log, **options: float) -> Estimate:
    return evaluation.ips(OffPolicySums.of(log), **options)


def snips(log: Log, **options: float) -> Estimate:
    return evaluation.snips(OffPolicySums.of(log), **options)


def dm(log: Log, model: RewardModel, **options: float) -> Estimate:
    return evaluation.dm(OffPolicySums.of(log, model), **options)


def dr(log: Log, model: RewardModel, **options: float) -> Estimate:
    return evaluation.dr(OffPolicySums.of(log, model), **options)


def sndr(log: Log, model: RewardModel, **options: float) -> Estimate:
    return evaluation.sndr(OffPolicySums.of(log, model), **options)


def all_estimates(log: Log, model: RewardModel) -> dict[str, Estimate]:
    return {
        "ips": ips(log),
        "snips": snips(log),
        "dm": dm(log, model),
        "dr": dr(log, model),
        "sndr": sndr(log, model),
    }


# Logged decisions: the Open Bandit Dataset


@cache
def read_decisions(policy: str) -> tuple[Integers, Integers, Floats, Floats]:
    """Return the items, positions, clicks and propensities of the decisions of a policy."""
    rows = np.loadtxt(DATA / f"men_{policy}.csv.gz", delimiter=",", skiprows=1)
    return rows[:, 0].astype(np.intp), rows[:, 1].astype(np.intp), rows[:, 2], rows[:, 3]


def read_policy(policy: str, positions: Integers) -> Floats:
    """Return the policy's probability of each item at each decision."""
    if policy == "random":
        return np.full((positions.size, 34), 1 / 34)
    by_position: Floats = np.loadtxt(DATA / "men_bts_policy.csv", delimiter=",", skiprows=1)[:, 1:].T
    return by_position[positions]


def open_bandit_log(live: str, target: str) -> tuple[Log, Integers, Floats]:
    """Return the log, the items that were drawn and the distribution of the target."""
    items, positions, clicks, propensities = read_decisions(live)
    policy = read_policy(target, positions)
    return Log(clicks, propensities, policy[np.arange(items.size), items]), items, policy


DIRECTIONS = pytest.mark.parametrize(("live", "target"), [("random", "bts"), ("bts", "random")])


@DIRECTIONS
def test_estimates_from_the_open_bandit_dataset_equal_the_reference(live: str, target: str) -> None:
    reference = json.loads((DATA / "reference.json").read_text())[f"{live}->{target}/men"]
    log, items, policy = open_bandit_log(live, target)
    rates = np.bincount(items, weights=log.rewards, minlength=34) / np.maximum(np.bincount(items, minlength=34), 1)
    estimates = all_estimates(log, RewardModel(items, np.tile(rates, (items.size, 1)), policy))
    for ours, theirs in {"ips": "ipw", "snips": "snipw", "dm": "dm_ctr", "dr": "dr_ctr", "sndr": "sndr_ctr"}.items():
        estimate = estimates[ours]
        assert estimate.value == pytest.approx(reference[theirs], rel=0, abs=1e-12), ours
        assert estimate.effective_sample_size == pytest.approx(reference["ess"], rel=0, abs=1e-12)
        assert estimate.mean_weight == pytest.approx(reference["wmean"], rel=0, abs=1e-12)
        assert estimate.largest_weight == pytest.approx(reference["wmax"], rel=0, abs=1e-12)
        assert estimate.low < estimate.value < estimate.high
        assert estimate.refusal is None
    assert log.rewards.sum() == reference["clicks"]
    assert log.rewards.mean() == pytest.approx(reference["on_policy"], rel=0, abs=1e-12)
    assert log.propensities.min() == pytest.approx(reference["ps_min"], rel=0, abs=1e-12)


@DIRECTIONS
def test_estimates_with_a_cross_fitted_model_are_within_the_interval_of_snips(live: str, target: str) -> None:
    log, items, policy = open_bandit_log(live, target)
    means = cross_fitted_means(log.rewards, items, np.arange(items.size) % 5, n_options=34)
    plain = snips(log)
    for estimate in all_estimates(log, RewardModel(items, means, policy)).values():
        assert plain.low < estimate.value < plain.high
        assert estimate.refusal is None


# Simulated decisions with a known true mean

GROUP_SHARES = np.array([0.5, 0.3, 0.2])
RATES = np.array([[0.1, 0.3, 0.5, 0.7], [0.6, 0.2, 0.4, 0.1], [0.3, 0.8, 0.2, 0.5]])
LOGGING = np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]])
TARGET = np.array([[0.1, 0.1, 0.3, 0.5], [0.4, 0.1, 0.3, 0.2], [0.05, 0.6, 0.05, 0.3]])
TRUTH = float(GROUP_SHARES @ (TARGET * RATES).sum(axis=1))
RUNS = 300


def simulate_log(rng: np.random.Generator, n: int, target: Floats = TARGET) -> tuple[Log, Integers, Integers]:
    """Return a log with binary rewards, the options that were drawn, and the groups of their contexts."""
    groups = rng.choice(GROUP_SHARES.size, size=n, p=GROUP_SHARES)
    options = (rng.random((n, 1)) > LOGGING[groups].cumsum(axis=1)[:, :-1]).sum(axis=1)
    rewards = (rng.random(n) < RATES[groups, options]).astype(np.float64)
    return Log.from_policies(rewards, options, LOGGING[groups], target[groups]), options, groups


@cache
def simulate_estimates() -> dict[str, list[Estimate]]:
    """Return estimates from many logs, with a model that is fitted to each log, and with a wrong model."""
    rng = np.random.default_rng(7)
    runs: dict[str, list[Estimate]] = {}
    for _ in range(RUNS):
        log, options, groups = simulate_log(rng, 1_000)
        folds = np.arange(options.size) % 5
        means = cross_fitted_means(log.rewards, options, folds, n_options=4, groups=groups)
        estimates = all_estimates(log, RewardModel(options, means, TARGET[groups]))
        wrong_model = RewardModel(options, 1 - RATES[groups], TARGET[groups])
        estimates |= {"dr, wrong model": dr(log, wrong_model), "sndr, wrong model": sndr(log, wrong_model)}
        for name, estimate in estimates.items():
            runs.setdefault(name, []).append(estimate)
    return runs


ESTIMATES = ["ips", "snips", "dm", "dr", "sndr", "dr, wrong model", "sndr, wrong model"]


@pytest.mark.parametrize("name", ESTIMATES)
def test_an_interval_contains_the_true_mean_with_about_its_level(name: str) -> None:
    covered = [estimate.low <= TRUTH <= estimate.high for estimate in simulate_estimates()[name]]
    assert 0.9 <= sum(covered) / RUNS <= 0.99


@pytest.mark.parametrize("name", ESTIMATES)
def test_estimates_are_unbiased_and_their_intervals_have_the_right_width(name: str) -> None:
    estimates = simulate_estimates()[name]
    values = np.array([estimate.value for estimate in estimates])
    errors = np.array([(estimate.high - estimate.low) / 2 / 1.959964 for estimate in estimates])
    # The direct method has a small bias from the shrinkage of its model.
    slack = 0.005 if name == "dm" else 0.0
    assert abs(values.mean() - TRUTH) < 4 * values.std() / math.sqrt(RUNS) + slack
    assert errors.mean() == pytest.approx(values.std(), rel=0.15)
    assert not any(estimate.refusal for estimate in estimates)


@pytest.mark.parametrize("estimator", [ips, snips, dr, sndr])
def test_the_width_of_an_interval_equals_that_of_the_jackknife(estimator: Callable[..., Estimate]) -> None:
    rng = np.random.default_rng(7)
    n = 300
    log, options, groups = simulate_log(rng, n)
    model = RewardModel(options, rng.random((n, 4)), TARGET[groups])
    more = () if estimator in {ips, snips} else (model,)
    values = []
    for left_out in range(n):
        kept = np.arange(n) != left_out
        part = Log(log.rewards[kept], log.propensities[kept], log.target_probabilities[kept])
        models = [RewardModel(each.options[kept], each.means[kept], each.target[kept]) for each in more]
        values.append(estimator(part, *models).value)
    error = math.sqrt((n - 1) * float(np.var(values)))
    whole = estimator(log, *more)
    assert whole.high - whole.low == pytest.approx(2 * 1.959964 * error, rel=0.01)


def standard_deviation(name: str) -> float:
    return float(np.std([estimate.value for estimate in simulate_estimates()[name]]))


def test_a_good_model_makes_doubly_robust_estimates_more_precise() -> None:
    assert standard_deviation("dr") < 0.8 * standard_deviation("ips")
    assert standard_deviation("sndr") < 0.8 * standard_deviation("ips")
    assert standard_deviation("dr, wrong model") > standard_deviation("dr")


def test_only_the_direct_method_has_the_bias_of_its_model() -> None:
    log, options, groups = simulate_log(np.random.default_rng(7), 20_000)
    model = RewardModel(options, np.full((options.size, 4), 0.9), TARGET[groups])
    assert dm(log, model).value == pytest.approx(0.9)
    assert dr(log, model).value == pytest.approx(TRUTH, abs=0.03)
    assert sndr(log, model).value == pytest.approx(TRUTH, abs=0.03)


def test_a_smaller_alpha_gives_a_wider_interval() -> None:
    log, options, groups = simulate_log(np.random.default_rng(7), 500)
    model = RewardModel(options, RATES[groups], TARGET[groups])
    for wide, narrow in [
        (ips(log, alpha=0.01), ips(log)),
        (snips(log, alpha=0.01), snips(log)),
        (dm(log, model, alpha=0.01), dm(log, model)),
        (dr(log, model, alpha=0.01), dr(log, model)),
        (sndr(log, model, alpha=0.01), sndr(log, model)),
    ]:
        assert wide.low < narrow.low < narrow.high < wide.high


# Arbitrary logs


@st.composite
def logs(draw: st.DrawFn) -> Log:
    n = draw(st.integers(1, 40))

    def numbers(low: float, high: float) -> Floats:
        return np.array(draw(st.lists(st.floats(low, high), min_size=n, max_size=n)))

    return Log(numbers(0, 1), numbers(0.001, 1), numbers(0, 1))


@st.composite
def logs_and_models(draw: st.DrawFn) -> tuple[Log, RewardModel]:
    n, k = draw(st.integers(1, 30)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logging, target = (rng.dirichlet(np.ones(k), size=n) + 0.01 for _ in range(2))
    logging, target = (each / each.sum(axis=1, keepdims=True) for each in (logging, target))
    options = rng.integers(k, size=n)
    return Log.from_policies(rng.random(n), options, logging, target), RewardModel(options, rng.random((n, k)), target)


# Clusters

CLUSTER_RUNS = 400


def simulate_clustered_log(
    rng: np.random.Generator, n_clusters: int, *, sticky: bool = False, preference: float = 0.25
) -> tuple[Log, RewardModel]:
    """Return decisions of clusters of different sizes, each with its own preferences.

    Three equally likely options with the mean rewards 0.3, 0.4 and 0.5; the target draws the last one. `sticky`: the
    live policy draws the same option at all decisions of a cluster.
    """
    sizes = np.maximum(1, np.round(8 * np.exp(rng.normal(0, 0.5, n_clusters)))).astype(int)
    clusters = np.repeat(rng.permutation(n_clusters), sizes)
    n = clusters.size
    rates = np.array([0.3, 0.4, 0.5]) + rng.choice([-preference, preference], size=(n_clusters, 3))
    options = rng.integers(3, size=n_clusters)[clusters] if sticky else rng.integers(3, size=n)
    rewards = (rng.random(n) < rates[clusters, options]).astype(np.float64)
    target = np.tile([0.0, 0.0, 1.0], (n, 1))
    means = cross_fitted_means(rewards, options, clusters % 5, n_options=3)
    log = Log.from_policies(rewards, options, np.full((n, 3), 1 / 3), target, clusters=clusters)
    return log, RewardModel(options, means, target)


def without_clusters(log: Log) -> Log:
    return Log(log.rewards, log.propensities, log.target_probabilities)


def repeated(log: Log, times: int) -> Log:
    rewards, propensities, targets = (
        np.tile(each, times) for each in (log.rewards, log.propensities, log.target_probabilities)
    )
    return Log(rewards, propensities, targets, clusters=None if log.clusters is None else np.tile(log.clusters, times))


@cache
def simulate_clustered_estimates(sticky: bool) -> dict[str, list[tuple[Estimate, Estimate]]]:
    """Return estimates from many logs, each with and without cluster ids."""
    rng = np.random.default_rng(7)
    runs: dict[str, list[tuple[Estimate, Estimate]]] = {}
    for _ in range(CLUSTER_RUNS):
        log, model = simulate_clustered_log(rng, 300, sticky=sticky)
        both = all_estimates(log, model), all_estimates(without_clusters(log), model)
        for name in both[0]:
            runs.setdefault(name, []).append((both[0][name], both[1][name]))
    return runs


@pytest.mark.parametrize("sticky", [False, True])
@pytest.mark.parametrize("name", ["ips", "snips", "dm", "dr", "sndr"])
def test_intervals_have_their_level_if_decisions_of_a_cluster_are_dependent(name: str, sticky: bool) -> None:
    estimates = simulate_clustered_estimates(sticky)[name]
    assert 0.9 <= sum(one.low <= 0.5 <= one.high for one, _ in estimates) / CLUSTER_RUNS <= 0.985
    gained = sum(one.gain.low <= 0.1 <= one.gain.high for one, _ in estimates)
    assert 0.9 <= gained / CLUSTER_RUNS <= 0.985
    assert not any(one.refusal for one, _ in estimates)


@pytest.mark.parametrize("name", ["ips", "snips", "dm", "dr", "sndr"])
def test_without_cluster_ids_intervals_are_too_narrow_for_dependent_decisions(name: str) -> None:
    estimates = simulate_clustered_estimates(True)[name]
    assert sum(naive.low <= 0.5 <= naive.high for _, naive in estimates) / CLUSTER_RUNS < 0.8


@given(logs_and_models(), st.integers(2, 5))
def test_repeated_decisions_of_the_same_clusters_do_not_change_estimates(
    both: tuple[Log, RewardModel], times: int
) -> None:
    log, model = both
    clusters = np.arange(log.rewards.size)
    once = Log(log.rewards, log.propensities, log.target_probabilities, clusters=clusters)
    again = repeated(once, times)
    model_again = RewardModel(
        np.tile(model.options, times), np.tile(model.means, (times, 1)), np.tile(model.target, (times, 1))
    )
    estimates = all_estimates(again, model_again)
    assert OffPolicySums.of(again).effective_clusters == pytest.approx(OffPolicySums.of(once).effective_clusters)
    for name, one in all_estimates(once, model).items():
        assert limits_of(estimates[name]) == pytest.approx(limits_of(one), abs=1e-9)


@given(logs_and_models(), st.integers(0, 2**32 - 1))
def test_the_values_of_cluster_ids_do_not_matter(both: tuple[Log, RewardModel], seed: int) -> None:
    log, model = both
    rng = np.random.default_rng(seed)
    clusters = rng.integers(5, size=log.rewards.size)
    other_ids = rng.permutation(1_000)[:5] - 500
    one, other = (
        all_estimates(Log(log.rewards, log.propensities, log.target_probabilities, clusters=each), model)
        for each in (clusters, other_ids[clusters])
    )
    for name in one:
        assert limits_of(one[name]) == pytest.approx(limits_of(other[name]), abs=1e-9)


def limits_of(estimate: Estimate) -> tuple[float, ...]:
    return (estimate.value, estimate.low, estimate.high, *(getattr(estimate.gain, one) for one in ("low", "high")))


def test_clusters_of_one_decision_each_hardly_change_estimates() -> None:
    log, options, groups = simulate_log(np.random.default_rng(7), 2_000)
    model = RewardModel(options, RATES[groups], TARGET[groups])
    each = all_estimates(Log(log.rewards, log.propensities, log.target_probabilities, clusters=np.arange(2_000)), model)
    for name, one in all_estimates(log, model).items():
        assert limits_of(each[name]) == pytest.approx(limits_of(one), abs=2e-4), name


@pytest.mark.parametrize("estimator", [ips, snips])
def test_the_width_of_an_interval_equals_that_of_the_jackknife_over_clusters(
    estimator: Callable[[Log], Estimate],
) -> None:
    log, _ = simulate_clustered_log(np.random.default_rng(7), 150)
    clusters = log.clusters
    assert clusters is not None
    values, gains = [], []
    for cluster in range(150):
        kept = clusters != cluster
        part = estimator(Log(log.rewards[kept], log.propensities[kept], log.target_probabilities[kept]))
        values.append(part.value)
        gains.append(part.gain.estimate)
    whole = estimator(log)
    t = -float(special.stdtrit(OffPolicySums.of(log).effective_clusters - 1, 0.025))
    for width, left_out in ((whole.high - whole.low, values), (whole.gain.high - whole.gain.low, gains)):
        # The tolerance is needed because clusters with many decisions influence the mean.
        assert width == pytest.approx(2 * t * math.sqrt(149 * float(np.var(left_out))), rel=0.05)


def test_any_number_of_decisions_of_few_clusters_is_refused() -> None:
    few = repeated(simulate_clustered_log(np.random.default_rng(8), 15)[0], 50)
    assert snips(without_clusters(few)).refusal is None
    for estimate in (ips(few), snips(few)):
        sentence = r"The effective number of users is (8|9|1\d); at least 40 are needed\."
        assert re.fullmatch(sentence, estimate.refusal or "")


def test_a_log_of_one_cluster_has_intervals_of_the_whole_range() -> None:
    log = Log(np.arange(500) % 2 / 1.0, np.full(500, 0.5), np.full(500, 0.5), clusters=np.zeros(500, np.intp))
    estimate = snips(log)
    assert (estimate.low, estimate.high, estimate.gain.low, estimate.gain.high) == (0, 1, -1, 1)
    assert estimate.refusal == "The effective number of users is 1; at least 40 are needed."


def test_the_tolerance_of_the_mean_weight_accounts_for_clusters() -> None:
    # For 48 of 80 clusters, instead of 40, the live policy drew the target's option. This is within chance for 80
    # clusters, and would not be for 2,400 independent decisions.
    clusters = np.repeat(np.arange(80), 30)
    log = Log(np.arange(2_400) % 2 / 1.0, np.full(2_400, 0.5), np.where(clusters < 48, 1.0, 0.0), clusters=clusters)
    assert snips(log).mean_weight == pytest.approx(1.2)
    assert snips(log).refusal is None
    assert "mean weight" in (snips(without_clusters(log)).refusal or "")


# Gain over the log


@given(logs_and_models())
def test_the_gain_is_the_estimate_minus_the_mean_reward_of_the_log(both: tuple[Log, RewardModel]) -> None:
    log = both[0]
    for estimate in all_estimates(*both).values():
        assert estimate.gain.estimate == pytest.approx(estimate.value - float(log.rewards.mean()), abs=1e-12)
        assert estimate.gain.low <= estimate.gain.estimate <= estimate.gain.high


@given(logs())
def test_the_gain_of_the_live_policy_itself_is_0(log: Log) -> None:
    own = Log(log.rewards, log.propensities, log.propensities)
    for estimate in (ips(own), snips(own)):
        assert estimate.gain.estimate == pytest.approx(0, abs=1e-12)
        assert not estimate.gain_excludes_zero
        if log.rewards.size > 1:
            assert (estimate.gain.low, estimate.gain.high) == pytest.approx((0, 0), abs=1e-12)


@pytest.mark.parametrize("name", ESTIMATES)
def test_the_interval_of_the_gain_contains_the_true_gain_with_about_its_level(name: str) -> None:
    gained = TRUTH - float(GROUP_SHARES @ (LOGGING * RATES).sum(axis=1))
    covered = [estimate.gain.low <= gained <= estimate.gain.high for estimate in simulate_estimates()[name]]
    assert 0.9 <= sum(covered) / RUNS <= 0.99


def test_the_gain_of_a_similar_policy_has_a_narrower_interval_than_the_estimate() -> None:
    similar = 0.9 * LOGGING + 0.1 * TARGET
    log, _, _ = simulate_log(np.random.default_rng(7), 2_000, similar)
    for estimate in (ips(log), snips(log)):
        assert estimate.gain.high - estimate.gain.low < 0.2 * (estimate.high - estimate.low)


def test_gains_and_losses_are_significant_and_refused_estimates_are_not() -> None:
    rng = np.random.default_rng(7)
    best, worst = (np.eye(4)[choice(RATES, axis=1)] for choice in (np.argmax, np.argmin))
    for target, better in ((best, True), (worst, False)):
        log, options, groups = simulate_log(rng, 2_000, target)
        for estimate in all_estimates(log, RewardModel(options, RATES[groups], target[groups])).values():
            assert estimate.gain_excludes_zero
            assert (estimate.gain.low > 0) is better
            assert (estimate.gain.high < 0) is not better
        few = Log(log.rewards[:150], log.propensities[:150], log.target_probabilities[:150])
        assert snips(few).refusal
        assert not snips(few).gain_excludes_zero


# Refusals


def test_a_target_that_draws_unreachable_options_is_refused() -> None:
    n = 1_000
    options = np.arange(n) % 2
    logging, target = np.tile([0.5, 0.5, 0.0], (n, 1)), np.tile([0.4, 0.35, 0.25], (n, 1))
    log = Log.from_policies(np.linspace(0, 1, n), options, logging, target)
    assert log.unreachable == pytest.approx(0.25)
    sentence = "The target draws options that the live policy could not draw, with a mean probability of 0.25."
    assert ips(log).refusal == sentence
    assert dr(log, RewardModel(options, np.full((n, 3), 0.5), target)).refusal == sentence


def test_an_option_that_neither_policy_draws_is_accepted() -> None:
    logging, target = np.tile([0.5, 0.5, 0.0], (200, 1)), np.tile([0.6, 0.4, 0.0], (200, 1))
    log = Log.from_policies(np.linspace(0, 1, 200), np.arange(200) % 2, logging, target)
    assert log.unreachable == 0
    assert snips(log).refusal is None


def test_a_target_that_never_draws_a_logged_option_is_refused_with_intervals_of_the_whole_range() -> None:
    log = Log(np.arange(500) % 2 / 2, np.full(500, 0.5), np.zeros(500))
    model = RewardModel(np.zeros(500, np.intp), np.full((500, 2), 0.3), np.tile([0.0, 1.0], (500, 1)))
    for name, estimate in all_estimates(log, model).items():
        assert estimate.refusal == "The target has probability 0 for every option that the live policy drew."
        assert (estimate.low, estimate.high) == (0, 1)
        assert estimate.value == pytest.approx(0.0 if name in {"ips", "snips"} else 0.3)
        assert (estimate.effective_sample_size, estimate.mean_weight, estimate.largest_weight) == (0, 0, 0)


def test_a_log_that_hardly_overlaps_with_the_target_is_refused() -> None:
    targets = np.full(2_000, 0.002)
    targets[:37] = 1.0
    log = Log(np.arange(2_000) % 2 / 1.0, np.full(2_000, 0.02), targets)
    assert snips(log).refusal == "The effective sample size is 45 decisions; at least 100 are needed."
    assert snips(log).effective_sample_size == pytest.approx(40.926**2 / 37.007852)


@pytest.mark.parametrize(("n", "refused"), [(1, True), (99, True), (100, False)])
def test_few_decisions_are_refused_even_if_the_target_is_the_live_policy(n: int, refused: bool) -> None:
    log = Log(np.arange(n) % 2 / 1.0, np.full(n, 0.5), np.full(n, 0.5))
    assert (ips(log).refusal is not None) is refused


@pytest.mark.parametrize(
    ("weight", "refusal"),
    [
        (0.6, "The mean weight is 0.60 instead of 1: propensities are wrong, or options are missing in the log."),
        (1.5, "The mean weight is 1.50 instead of 1: propensities are wrong, or options are missing in the log."),
        (0.95, None),
        (1.05, None),
    ],
)
def test_a_mean_weight_far_from_1_is_refused(weight: float, refusal: str | None) -> None:
    log = Log(np.arange(1_000) % 2 / 1.0, np.full(1_000, 0.5), np.full(1_000, 0.5 * weight))
    assert ips(log).refusal == refusal


def test_a_mean_weight_within_its_standard_error_is_accepted() -> None:
    # Of 10,000 decisions 130 have a weight of 100: the mean is 1.3, with a standard error of 0.11.
    targets = np.where(np.arange(10_000) < 130, 1.0, 0.0)
    estimate = snips(Log(np.arange(10_000) % 2 / 1.0, np.full(10_000, 0.01), targets))
    assert estimate.mean_weight == pytest.approx(1.3)
    assert estimate.effective_sample_size == pytest.approx(130)
    assert estimate.refusal is None


def test_propensities_of_another_policy_are_refused() -> None:
    log, _, groups = simulate_log(np.random.default_rng(7), 2_000)
    wrong = Log(log.rewards, LOGGING[groups].max(axis=1), log.target_probabilities)
    assert "mean weight" in (ips(wrong).refusal or "")


@pytest.mark.parametrize("reward", [0.0, 0.5, 1.0])
def test_equal_rewards_are_refused(reward: float) -> None:
    log = Log(np.full(500, reward), np.full(500, 0.5), np.full(500, 0.5))
    assert snips(log).refusal == "All decisions have the same reward, so the variance of rewards is unknown."


def test_no_decision_has_more_than_a_tenth_of_the_weight_of_an_accepted_log() -> None:
    targets = np.concatenate([[1.0], np.full(10_000, 0.01)])
    log = Log(np.arange(10_001) % 2 / 1.0, np.full(10_001, 0.01), targets)
    assert OffPolicySums.of(log).effective_sample_size > MIN_EFFECTIVE_SAMPLE_SIZE
    assert log.weights.max() / log.weights.sum() <= 1 / math.sqrt(OffPolicySums.of(log).effective_sample_size)


# Properties of all logs


@given(logs())
def test_the_estimate_for_the_live_policy_is_the_mean_reward(log: Log) -> None:
    own = Log(log.rewards, log.propensities, log.propensities)
    for estimate in (ips(own), snips(own)):
        assert estimate.value == pytest.approx(float(log.rewards.mean()), abs=1e-12)
        assert (estimate.mean_weight, estimate.largest_weight) == (1, 1)
        assert estimate.effective_sample_size == pytest.approx(log.rewards.size)


@given(logs(), st.floats(0.01, 1))
def test_scaled_weights_scale_ips_and_do_not_change_snips(log: Log, scale: float) -> None:
    scaled = Log(log.rewards, log.propensities, log.target_probabilities * scale)
    assert ips(scaled).value == pytest.approx(ips(log).value * scale)
    before, after = snips(log), snips(scaled)
    assert (after.value, after.low, after.high) == pytest.approx((before.value, before.low, before.high), abs=1e-9)
    assert after.effective_sample_size == pytest.approx(before.effective_sample_size)


@given(logs_and_models(), st.integers(0, 2**32 - 1))
def test_the_order_of_decisions_does_not_matter(both: tuple[Log, RewardModel], seed: int) -> None:
    log, model = both
    order = np.random.default_rng(seed).permutation(log.rewards.size)
    reordered_log = Log(log.rewards[order], log.propensities[order], log.target_probabilities[order])
    reordered_model = RewardModel(model.options[order], model.means[order], model.target[order])
    estimates, others = all_estimates(log, model), all_estimates(reordered_log, reordered_model)
    for name, one in estimates.items():
        other = others[name]
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high), abs=1e-9)
        assert one.effective_sample_size == pytest.approx(other.effective_sample_size)


@given(logs_and_models())
def test_limits_enclose_the_value_and_weights_are_bounded(both: tuple[Log, RewardModel]) -> None:
    log = both[0]
    for name, estimate in all_estimates(*both).items():
        assert estimate.low <= estimate.value <= estimate.high
        assert 0 <= estimate.effective_sample_size <= log.rewards.size * (1 + 1e-12)
        assert 0 <= estimate.mean_weight <= estimate.largest_weight * (1 + 1e-12)
        if name in {"snips", "dm"}:
            assert estimate.low >= 0
            assert estimate.high <= 1 + 1e-12


@given(logs_and_models())
def test_doubly_robust_equals_ips_with_a_zero_model_and_the_direct_method_with_a_perfect_model(
    both: tuple[Log, RewardModel],
) -> None:
    log, model = both
    zero_model = RewardModel(model.options, np.zeros_like(model.means), model.target)
    assert dr(log, zero_model).value == pytest.approx(ips(log).value)
    assert sndr(log, zero_model).value == pytest.approx(snips(log).value)
    perfect = Log(model.logged_predictions, log.propensities, log.target_probabilities)
    assert dr(perfect, model).value == pytest.approx(dm(perfect, model).value)
    assert sndr(perfect, model).value == pytest.approx(dm(perfect, model).value)


@given(st.integers(1, 10))
def test_weights_whose_squares_underflow_are_used(n: int) -> None:
    log = Log(np.linspace(0, 1, n), np.ones(n), np.full(n, 5e-324))
    assert OffPolicySums.of(log).effective_sample_size == pytest.approx(n)
    assert snips(log).value == pytest.approx(float(log.rewards.mean()))


# The reward model


def test_means_are_those_of_the_other_folds_shrunk_to_the_overall_mean() -> None:
    rewards = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.5])
    options, folds = np.array([0, 0, 1, 0, 1, 1]), np.array([7, 7, 7, 9, 9, 9])
    means = cross_fitted_means(rewards, options, folds, n_options=3, strength=2)
    # Rewards in the second fold: 1 for the first option, 0 and 0.5 for the second, none for the third; mean 0.5.
    assert means[:3] == pytest.approx(np.tile([(1 + 2 * 0.5) / 3, (0.5 + 2 * 0.5) / 4, 0.5], (3, 1)))
    overall = 2 / 3
    assert means[3:] == pytest.approx(np.tile([(1 + 2 * overall) / 4, (1 + 2 * overall) / 3, overall], (3, 1)))


def test_each_group_has_its_own_means() -> None:
    rewards, groups = np.tile([1.0, 0.0], 50), np.tile([-3, 12], 50)
    folds = np.arange(100) // 50
    means = cross_fitted_means(rewards, np.zeros(100, np.intp), folds, n_options=2, groups=groups)
    assert means[groups == -3] == pytest.approx(np.tile([25.5 / 26, 0.5], (50, 1)))
    assert means[groups == 12] == pytest.approx(np.tile([0.5 / 26, 0.5], (50, 1)))


@given(st.integers(2, 30), st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_no_prediction_depends_on_rewards_of_its_own_fold(n: int, n_folds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rewards, options, groups, folds = rng.random(n), rng.integers(3, size=n), rng.integers(2, size=n), np.arange(n)
    folds %= n_folds
    own = folds == folds[-1]
    changed = np.where(own, rng.random(n), rewards)
    before, after = (
        cross_fitted_means(each, options, folds, n_options=3, groups=groups)[own] for each in (rewards, changed)
    )
    assert (before == after).all()
    assert ((before >= 0) & (before <= 1)).all()


def test_means_without_cross_fitting_would_repeat_the_noise_of_the_rewards() -> None:
    # Rewards are noise, and each option was drawn about ten times.
    rng = np.random.default_rng(7)
    rewards, options = rng.random(2_000), rng.integers(200, size=2_000)
    own = np.bincount(options, weights=rewards) / np.bincount(options)
    crossed = cross_fitted_means(rewards, options, np.arange(2_000) % 5, n_options=200)
    assert np.corrcoef(own[options], rewards)[0, 1] > 0.25
    assert abs(np.corrcoef(crossed[np.arange(2_000), options], rewards)[0, 1]) < 0.1


# Invalid arguments

HALF, ONES = np.full(4, 0.5), np.ones(4, np.intp)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Log(np.array([]), np.array([]), np.array([])), "a log must have at least one decision"),
        (lambda: Log(HALF, HALF[:3], HALF), r"propensities must have the shape \(4,\), not \(3,\)"),
        (lambda: Log(HALF, HALF, HALF[:, None]), r"target_probabilities must have the shape \(4,\), not \(4, 1\)"),
        (lambda: Log(HALF[None], HALF, HALF), r"rewards must have the shape \(4,\), not \(1, 4\)"),
        (lambda: Log(HALF, HALF * 0, HALF), "propensities must be numbers from 1e-100 to 1"),
        (lambda: Log(HALF, HALF * 2.1, HALF), "propensities must be numbers"),
        (lambda: Log(HALF, HALF * math.nan, HALF), "propensities must be numbers"),
        (lambda: Log(HALF * math.nan, HALF, HALF), "rewards must be numbers from 0 to 1"),
        (lambda: Log(HALF * 3, HALF, HALF), "rewards must be numbers"),
        (lambda: Log(HALF, HALF, -HALF), "target_probabilities must be numbers"),
        (lambda: Log(HALF, HALF, HALF * math.inf), "target_probabilities must be numbers"),
        (lambda: Log(HALF, HALF, HALF, math.nan), "unreachable must be numbers"),
    ],
)
def test_an_invalid_log_is_refused(build: Callable[[], Log], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


PAIR = np.tile([0.5, 0.5], (4, 1))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Log.from_policies(HALF, ONES, PAIR * 0.9, PAIR), "logging must sum to 1 at each decision"),
        (lambda: Log.from_policies(HALF, ONES, PAIR, PAIR[:3]), r"target must have the shape \(4, 2\)"),
        (lambda: Log.from_policies(HALF, ONES * 2, PAIR, PAIR), "options must be from 0 to 1"),
        (lambda: Log.from_policies(HALF, -ONES, PAIR, PAIR), "options must be from 0 to 1"),
        (lambda: Log.from_policies(HALF, ONES, np.tile([1.0, 0.0], (4, 1)), PAIR), "propensities must be numbers"),
        (lambda: Log.from_policies(HALF[:0], ONES[:0], PAIR[:0], PAIR[:0]), "a log must have at least one decision"),
    ],
)
def test_invalid_policies_are_refused(build: Callable[[], Log], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: RewardModel(ONES, PAIR * 2.1, PAIR), "means must be numbers from 0 to 1"),
        (lambda: RewardModel(ONES, PAIR * math.nan, PAIR), "means must be numbers from 0 to 1"),
        (lambda: RewardModel(ONES, PAIR, PAIR * 0.5), "target must sum to 1 at each decision"),
        (lambda: RewardModel(ONES, PAIR[:3], PAIR), r"means must have the shape \(4, 2\), not \(3, 2\)"),
        (lambda: RewardModel(HALF.astype(np.float64), PAIR, PAIR), "options must be integers"),
        (lambda: RewardModel(ONES[:3], PAIR[:3], PAIR[:3]), "the model predicts 3 decisions, and the log has 4"),
        (lambda: RewardModel(ONES, PAIR, np.tile([0.4, 0.6], (4, 1))), "the log and the model differ"),
    ],
)
def test_a_model_that_does_not_match_the_log_is_refused(model: Callable[[], RewardModel], message: str) -> None:
    log = Log(HALF, HALF, HALF)
    for estimator in (dm, dr, sndr):
        with pytest.raises(ValueError, match=message):
            estimator(log, model())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": HALF * math.nan}, "rewards must be numbers"),
        ({"options": ONES[:3]}, r"options must have the shape \(4,\), not \(3,\)"),
        ({"options": ONES * 2}, "options must be from 0 to 1"),
        ({"folds": ONES}, "at least two folds"),
        ({"folds": HALF}, "folds must be integers"),
        ({"groups": ONES[:2]}, r"groups must have the shape \(4,\), not \(2,\)"),
        ({"strength": 0.0}, "strength must be a number above 0"),
        ({"strength": math.nan}, "strength must be a number above 0"),
    ],
)
def test_invalid_data_for_cross_fitting_is_refused(changes: dict[str, Any], message: str) -> None:
    fine: dict[str, Any] = {"rewards": HALF, "options": ONES, "folds": np.arange(4) % 2, "n_options": 2}
    assert cross_fitted_means(**fine).shape == (4, 2)
    with pytest.raises(ValueError, match=message):
        cross_fitted_means(**fine | changes)
