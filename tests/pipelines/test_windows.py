"""The days that a ranking policy learns from: effects of days, and the window that predicts the newest days best."""

from collections.abc import Callable

import numpy as np
import pytest

from ml.experiments.arrays import Floats
from ml.experiments.decisions import InMemoryDecisionLog, LoggedCandidate, LoggedDecision
from ml.experiments.linear import DAY_EFFECT_ROWS, DayAdjustedStatistics
from ml.experiments.regression_statistics import RegressionStatistics, interaction_features
from ml.pipelines.day_statistics import sum_statistics
from ml.pipelines.training import fit_policy, train
from ml.registry.artifacts import RankingPolicy
from ml.registry.policies import LearnedPolicy

DAY = 86_400.0
MOODS = ("great", "low")
PER_DAY = 300

Rate = Callable[[int, str, str], float]
"""Returns the mean reward on a day of a version for users in a mood."""


def log_of(
    days: int,
    rate: Rate,
    *,
    versions: Callable[[int], tuple[str, ...]] = lambda _: ("v1", "v2"),
    per_day: int = PER_DAY,
) -> list[LoggedDecision]:
    """Return decisions among equally likely versions, `per_day` on each day."""
    rng = np.random.default_rng(5)
    log = []
    for number in range(days * per_day):
        day = number // per_day
        offered = versions(day)
        chosen, mood = int(rng.integers(len(offered))), MOODS[int(rng.integers(2))]
        reward = float(rng.random() < rate(day, offered[chosen], mood))
        log.append(
            LoggedDecision(
                f"d-{number}",
                f"u-{number % 500}",
                day * DAY + number % per_day,
                {"mood": mood},
                {},
                tuple(LoggedCandidate(version, 1 / len(offered)) for version in offered),
                chosen,
                reward,
                reward,
                ranked=False,
            )
        )
    return log


def policy_of(log: list[LoggedDecision]) -> RankingPolicy:
    return RankingPolicy.from_bytes(train(InMemoryDecisionLog(log)))


def scores(policy: RankingPolicy, mood: str) -> dict[str, float]:
    rows = [{"prompt_version": version} for version in ("v1", "v2")]
    return dict(zip(("v1", "v2"), LearnedPolicy(policy).rank({"mood": mood}, rows).scores.tolist(), strict=True))


@pytest.mark.parametrize(("lift", "loss", "margin"), [(0.20, 0.10, 0.01), (0.10, 0.03, 0.0)])
def test_a_worse_version_that_was_added_during_a_lift_does_not_win_by_it(
    lift: float, loss: float, margin: float
) -> None:
    def rate(day: int, version: str, mood: str) -> float:  # noqa: ARG001
        return 0.25 + (0.0 if day < 5 else lift) - (loss if version == "v2" else 0.0)

    log = log_of(10, rate, versions=lambda day: ("v1",) if day < 5 else ("v1", "v2"), per_day=1_200)
    rewards = {
        version: np.mean([one.reward for one in log if one.candidates[one.chosen].prompt_version == version])
        for version in ("v1", "v2")
    }
    assert rewards["v2"] > rewards["v1"] + 0.02  # by pooled means it would win
    policy = policy_of(log)
    assert policy.card.learned_from == len(log)
    for mood in MOODS:
        assert scores(policy, mood)["v1"] > scores(policy, mood)["v2"] + margin


def test_after_preferences_change_a_short_window_is_chosen_and_the_policy_follows() -> None:
    def rate(day: int, version: str, mood: str) -> float:
        prefers_first = (mood == "great") == (day < 25)
        return 0.5 if prefers_first == (version == "v1") else 0.2

    policy = policy_of(log_of(35, rate))
    assert policy.card.window_days == 7
    errors = {each.days: each.error for each in policy.card.window_errors}
    assert errors[7] < errors[28]
    assert policy.card.learned_from == 7 * PER_DAY
    assert scores(policy, "great")["v2"] > scores(policy, "great")["v1"]
    assert scores(policy, "low")["v1"] > scores(policy, "low")["v2"]


def test_while_preferences_stay_all_days_count() -> None:
    policy = policy_of(log_of(35, lambda _, version, mood: 0.5 if (mood == "great") == (version == "v1") else 0.2))
    assert policy.card.window_days is None
    assert [each.days for each in policy.card.window_errors] == [None, 28, 14, 7]
    assert policy.card.learned_from == 35 * PER_DAY


def test_the_choice_among_windows_does_not_depend_on_the_order_of_the_log() -> None:
    log = log_of(35, lambda day, version, _: 0.5 if (day < 25) == (version == "v1") else 0.2)
    shuffled = [log[index] for index in np.random.default_rng(1).permutation(len(log))]
    assert policy_of(log).card.window_days == 7
    assert train(InMemoryDecisionLog(shuffled)) == train(InMemoryDecisionLog(log))


def test_days_before_all_windows_are_summed_without_changing_the_policy() -> None:
    log = log_of(50, lambda _, version, mood: 0.5 if (mood == "great") == (version == "v1") else 0.2, per_day=40)
    days = {day: [one for one in log if one.at // DAY == day] for day in range(50)}
    separate = {day: DayAdjustedStatistics.of_day(sum_statistics(of_day, ["v1", "v2"])) for day, of_day in days.items()}
    policy = fit_policy(separate, name="tips", versions=["v1", "v2"], trained_until=log[-1].at)
    trained = policy_of(log)
    card = trained.card.model_copy(update={"training": None, "held_out": None})
    assert RankingPolicy(card, trained.model).to_bytes() == policy.to_bytes()


def test_with_few_days_no_windows_are_compared() -> None:
    policy = policy_of(log_of(5, lambda *_: 0.3))
    assert (policy.card.window_days, policy.card.window_errors) == (None, ())


@pytest.fixture
def days() -> list[tuple[Floats, Floats, Floats]]:
    """The contexts, candidates and rewards of days with different numbers of decisions."""
    rng = np.random.default_rng(2)
    return [
        (rng.uniform(-1, 1, (n, 2)), rng.integers(0, 2, (n, 1)).astype(float), rng.integers(0, 2, n).astype(float))
        for n in (1, 7, 40, 200)
    ]


def test_adjusted_sums_are_those_of_generalised_least_squares_with_a_random_effect_per_day(
    days: list[tuple[Floats, Floats, Floats]],
) -> None:
    adjusted = [DayAdjustedStatistics.of_day(RegressionStatistics.from_rows(["a", "b"], ["c"], *rows)) for rows in days]
    total = adjusted[0] + adjusted[1] + adjusted[2] + adjusted[3]
    x = np.concatenate([interaction_features(contexts, candidates) for contexts, candidates, _ in days])
    y = np.concatenate([rewards for _, _, rewards in days])
    day = np.repeat(np.arange(4), [len(rewards) for _, _, rewards in days])
    # The covariance of the rewards, relative to the variance of one: those of one day share its effect.
    covariance = np.eye(y.size) + (day[:, None] == day[None, :]) / DAY_EFFECT_ROWS
    inverse = np.linalg.inv(covariance)
    np.testing.assert_allclose(total.xx, x.T @ inverse @ x, atol=1e-9)
    np.testing.assert_allclose(total.xy, x.T @ inverse @ y, atol=1e-9)
    assert total.yy == pytest.approx(float(y @ inverse @ y))
