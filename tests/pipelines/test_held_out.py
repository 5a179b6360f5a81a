"""The figures of a policy on held-out days, and the digest of the decisions it has learned from."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml.cli import train as train_command
from ml.experiments.decisions import InMemoryDecisionLog, LoggedCandidate, LoggedDecision
from ml.features.offline_store import OfflineStore
from ml.pipelines import held_out
from ml.pipelines.held_out import ALPHA, held_out_figures, predict
from ml.pipelines.offline_log import OfflineDecisionLog
from ml.pipelines.targets import RankingTarget
from ml.pipelines.training import HELD_OUT_DAYS, train, training_data
from ml.registry.artifacts import HeldOutFigures, RankingPolicy
from ml.registry.cards import Metric, Slice, missing
from ml.registry.policies import LearnedPolicy
from ml.registry.ranking_cards import ranking_card
from ml.store.recount import prepare_database
from tests.example_tips import WINDOW
from tests.offline import write_decisions
from tests.pipelines.logs import DAY, evaluate
from tests.policies import policy
from tests.registry.test_artifacts import with_card

Rate = Callable[[int, str, str], float]
"""Returns the mean reward on a day of a version for users in a mood."""


def days_of(
    days: int,
    per_day: int,
    rate: Rate,
    *,
    moods: Mapping[str, float] = {"great": 0.5, "low": 0.5},
    **fields: Any,
) -> list[LoggedDecision]:
    """Return decisions between v1 and v2, equally likely; `moods`: the share of each mood."""
    rng, log = np.random.default_rng(3), []
    candidates = (LoggedCandidate("v1", 0.5), LoggedCandidate("v2", 0.5))
    for number in range(days * per_day):
        day, chosen = number // per_day, int(rng.integers(2))
        mood = str(rng.choice([*moods], p=[*moods.values()]))
        reward = float(rng.random() < rate(day, candidates[chosen].prompt_version, mood))
        at, user = day * DAY + 60.0 * (number % per_day), f"u-{number % 400}"
        decision = LoggedDecision(
            f"d-{number}", user, at, {"mood": mood}, {}, candidates, chosen, reward, reward, ranked=False
        )
        log.append(replace(decision, **fields))
    return log


def better_by_mood(_: int, version: str, mood: str) -> float:
    return 0.5 if (version == "v1") == (mood == "low") else 0.2


def figures_of(log: list[LoggedDecision]) -> HeldOutFigures:
    figures = RankingPolicy.from_bytes(train(InMemoryDecisionLog(log))).card.held_out
    assert figures is not None
    return figures


def metrics_of(figures: HeldOutFigures) -> dict[str, Metric]:
    return {metric.name: metric for metric in figures.metrics}


def slices_of(figures: HeldOutFigures) -> dict[str, Slice]:
    return {each.name: each for each in figures.slices}


def command_output(
    log: list[LoggedDecision], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """Return what `tips train` prints about these decisions before its last line."""
    store = OfflineStore.open(str(tmp_path / "offline"))
    write_decisions(store, log)
    monkeypatch.setattr(train_command, "decision_log", lambda: OfflineDecisionLog(store, seen_only=False))
    url = f"sqlite+aiosqlite:///{tmp_path / 'tips.db'}"
    prepare_database(url, WINDOW)
    monkeypatch.setenv("DATABASE_URL", url)
    train_command.train(to=tmp_path / "policy.npz")
    *lines, _ = capsys.readouterr().out.splitlines()
    return lines


LOG = days_of(9, 400, better_by_mood)
N_EARLIER = 6 * 400


@pytest.fixture(scope="module")
def figures() -> HeldOutFigures:
    return figures_of(LOG)


@pytest.fixture(scope="module")
def earlier_policy() -> RankingPolicy:
    return RankingPolicy.from_bytes(train(InMemoryDecisionLog(LOG[:N_EARLIER])))


def test_the_card_names_the_decisions_that_it_was_trained_with() -> None:
    card = RankingPolicy.from_bytes(train(InMemoryDecisionLog(LOG))).card
    assert card.training is not None
    assert card.training.decisions == card.training.learned_from == card.learned_from == len(LOG)
    assert card.training.until.timestamp() == card.trained_until
    assert card.training.since.timestamp() == LOG[0].at
    assert card.training.dataset_sha256 == training_data(InMemoryDecisionLog(LOG)).sha256


def test_the_decisions_that_a_window_was_chosen_with_are_named_and_not_reported_as_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def changes(day: int, version: str, mood: str) -> float:
        return better_by_mood(day, version, mood if day < 20 else {"low": "great", "great": "low"}[mood])

    log = days_of(30, 200, changes)
    card = RankingPolicy.from_bytes(train(InMemoryDecisionLog(log))).card
    assert card.window_days == 7
    assert card.training is not None
    assert (card.training.window_days, card.training.learned_from) == (7, 7 * 200)
    assert (card.training.decisions, card.training.dataset_sha256) == (
        len(log),
        training_data(InMemoryDecisionLog(log)).sha256,
    )
    assert command_output(log, tmp_path, monkeypatch, capsys) == []


# Metrics


def test_the_figures_are_those_of_the_policy_of_the_days_before(
    figures: HeldOutFigures, earlier_policy: RankingPolicy
) -> None:
    """They are what `tips evaluate` says about a policy that was trained without the newest days."""
    newest = LOG[N_EARLIER:]
    assert figures.decisions == HELD_OUT_DAYS * 400 == len(newest)
    report = evaluate(newest, RankingTarget(LearnedPolicy(earlier_policy)))
    gain = metrics_of(figures)["gain"]
    assert report.gain is not None
    assert (gain.value, gain.low, gain.high) == pytest.approx(
        (report.gain.estimate, report.gain.low, report.gain.high), abs=1e-6
    )
    sample_size = metrics_of(figures)["effective_sample_size"].value
    assert sample_size == pytest.approx(report.best.effective_sample_size, abs=1e-6)
    errors = (predict(LearnedPolicy(earlier_policy), newest) - [one.reward for one in newest]) ** 2
    assert metrics_of(figures)["squared_error"].value == pytest.approx(errors.mean(), abs=1e-6)


def test_the_intervals_contain_the_true_values(figures: HeldOutFigures) -> None:
    metrics = metrics_of(figures)
    reward, gain, error = metrics["logged_reward"], metrics["gain"], metrics["squared_error"]
    assert reward.low is not None
    assert reward.high is not None
    assert reward.low < 0.35 < reward.high
    assert gain.low is not None
    assert gain.high is not None
    assert 0 < gain.low < 0.15 < gain.high  # the better version at nearly every decision, instead of half of them
    assert error.low is not None
    assert error.high is not None
    assert error.low < 0.5 * (0.5 * 0.5 + 0.2 * 0.8) < error.high
    assert {metric.source for metric in figures.metrics} == {"tips train, held-out days 1970-01-07 to 1970-01-09 (UTC)"}


def test_predictions_are_those_of_the_policy(earlier_policy: RankingPolicy) -> None:
    ranker = LearnedPolicy(earlier_policy)
    for decision, predicted in zip(LOG[:20], predict(ranker, LOG[:20]), strict=True):
        shown = decision.candidates[decision.chosen]
        scores = ranker.rank(decision.signals, [{"prompt_version": shown.prompt_version, "tip": shown.tip}]).scores
        assert predicted == pytest.approx(scores[0], abs=1e-6)


def test_without_draws_for_each_decision_there_is_no_gain_and_the_card_is_incomplete() -> None:
    per_user = days_of(5, 60, better_by_mood, per_user=True)
    trained = RankingPolicy.from_bytes(train(InMemoryDecisionLog(per_user)))
    assert trained.card.held_out is not None
    assert metrics_of(trained.card.held_out).keys() == {
        "contrast_error",
        "squared_error",
        "calibration_error",
        "logged_reward",
    }
    assert missing(ranking_card(trained.card, trained.version, contact="us")) == (
        "slices: run `tips train` on tips of more than 3 days",
    )


def test_the_sizes_of_the_chunks_do_not_change_the_figures(
    figures: HeldOutFigures, earlier_policy: RankingPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def figures_in_chunks(size: int) -> HeldOutFigures:
        log = InMemoryDecisionLog(LOG, size)
        return held_out_figures(earlier_policy, log, since=6 * DAY, until=9 * DAY, contrast_error=0.2)

    whole = figures_in_chunks(len(LOG))
    assert figures_in_chunks(70) == whole
    assert whole.metrics[1:] == figures.metrics[1:]
    assert (whole.calibration, whole.slices) == (figures.calibration, figures.slices)
    # The same with a sample of the earlier predictions.
    monkeypatch.setattr(held_out, "EARLIER_PREDICTIONS", 2)
    sampled = figures_in_chunks(len(LOG))
    assert figures_in_chunks(70) == sampled
    assert [each.name for each in sampled.slices] == [each.name for each in whole.slices]
    assert sum(each.n for each in sampled.calibration) == whole.decisions
    assert len(sampled.calibration) < len(whole.calibration)


def test_without_tips_in_the_days_before_there_is_one_bin_and_no_slice_is_tested(earlier_policy: RankingPolicy) -> None:
    later = [replace(one, at=one.at + 40 * DAY) for one in LOG[N_EARLIER:]]
    log = InMemoryDecisionLog([*LOG[:N_EARLIER], *later])
    sparse = held_out_figures(earlier_policy, log, since=46 * DAY, until=49 * DAY, contrast_error=0.2)
    assert [each.n for each in sparse.calibration] == [len(later)]
    assert {each.status for each in sparse.slices} == {"unknown"}


# Calibration


def test_the_bins_contain_all_decisions_and_the_true_rates(figures: HeldOutFigures) -> None:
    assert 4 <= len(figures.calibration) <= 10
    assert sum(each.n for each in figures.calibration) == figures.decisions
    predictions = [each.predicted for each in figures.calibration]
    assert predictions == sorted(predictions)
    for each in figures.calibration:
        true_rate = min((0.2, 0.5), key=lambda rate: abs(rate - each.predicted))
        assert each.low <= true_rate <= each.high
        assert each.low <= each.observed <= each.high


def test_a_policy_whose_world_has_changed_is_not_calibrated() -> None:
    def falls(day: int, version: str, mood: str) -> float:
        return better_by_mood(day, version, mood) + (0.4 if day < 4 else 0.0)

    changed = figures_of(days_of(7, 400, falls))
    assert all(each.high < each.predicted for each in changed.calibration)
    assert metrics_of(changed)["calibration_error"].value > 0.2


# Slices


def test_every_segment_has_a_slice_and_a_small_one_is_unknown() -> None:
    log = days_of(8, 300, better_by_mood, moods={"great": 0.5, "low": 0.49, "awful": 0.01})
    slices = slices_of(figures_of(log))
    assert slices.keys() == {"mood:great", "mood:low", "mood:awful"}
    small = slices["mood:awful"]
    assert (small.status, small.value, small.low, small.high) == ("unknown", None, None, None)
    assert sum(each.n for each in slices.values()) == 3 * 300


def test_stored_segments_are_used_so_that_new_users_have_a_slice() -> None:
    log = days_of(5, 60, better_by_mood)
    stored = [
        replace(decision, segments=("mood:low", "visits:new" if number % 3 else "visits:returning"))
        for number, decision in enumerate(log)
    ]
    slices = slices_of(figures_of(stored))
    assert {name: each.n for name, each in slices.items()} == {
        "mood:low": 180,
        "visits:new": 120,
        "visits:returning": 60,
    }


def test_a_slice_that_a_policy_harms_is_found_and_the_others_are_not_harmed() -> None:
    def turns_for_low(day: int, version: str, mood: str) -> float:
        return better_by_mood(day, version, "great" if mood == "low" and day >= 5 else mood)

    slices = slices_of(figures_of(days_of(8, 500, turns_for_low)))
    assert {name: each.status for name, each in slices.items()} == {"mood:low": "harmed", "mood:great": "not harmed"}
    assert slices["mood:low"].high is not None
    assert slices["mood:low"].high < 0


def test_limits_of_slices_hold_for_all_of_them(figures: HeldOutFigures, earlier_policy: RankingPolicy) -> None:
    """With two slices each has half of the error probability, so it is wider than alone."""
    in_low_mood = [one for one in LOG[N_EARLIER:] if one.signals["mood"] == "low"]
    alone = evaluate(in_low_mood, RankingTarget(LearnedPolicy(earlier_policy))).gain
    together = slices_of(figures)["mood:low"]
    assert alone is not None
    assert together.low is not None
    assert together.high is not None
    assert together.high - together.low > alone.high - alone.low
    assert ALPHA == 0.05


# Too few days, and files of earlier releases


@pytest.mark.parametrize("days", [1, 3])
def test_with_too_few_days_there_are_no_figures(days: int) -> None:
    trained = RankingPolicy.from_bytes(train(InMemoryDecisionLog(days_of(days, 50, better_by_mood))))
    assert trained.card.held_out is None
    assert [each.partition(":")[0] for each in missing(ranking_card(trained.card, trained.version, contact="us"))] == [
        "metrics",
        "calibration",
        "slices",
    ]


def test_with_one_earlier_day_the_card_is_complete() -> None:
    trained = RankingPolicy.from_bytes(train(InMemoryDecisionLog(days_of(4, 50, better_by_mood))))
    assert missing(ranking_card(trained.card, trained.version, contact="us")) == ()


def test_a_file_of_an_earlier_release_is_loaded_without_figures() -> None:
    card = json.loads(RankingPolicy.from_bytes(policy()).card.model_dump_json())
    earlier = {name: value for name, value in card.items() if name not in {"training", "held_out"}}
    assert card.keys() - earlier.keys() == {"training", "held_out"}
    loaded = RankingPolicy.from_bytes(with_card(training=None, held_out=None))
    assert (loaded.card.training, loaded.card.held_out) == (None, None)
    assert type(loaded.card).model_validate_json(json.dumps(earlier)).held_out is None


@pytest.mark.parametrize(
    ("days", "fields", "sentence"),
    [
        (3, {}, "figures on the 3 newest days need tips of earlier days too"),
        (4, {"per_user": True}, "the gain on the 3 newest days cannot be estimated"),
        (4, {}, None),
    ],
)
def test_the_command_says_why_a_card_is_incomplete(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    days: int,
    fields: dict[str, Any],
    sentence: str | None,
) -> None:
    reasons = command_output(days_of(days, 40, better_by_mood, **fields), tmp_path, monkeypatch, capsys)
    assert reasons == ([f"The policy's model card is incomplete, since {sentence}."] if sentence else [])
