"""What another policy would have earned: the truth is known by simulation, and found."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.experiments.decisions import LoggedCandidate, LoggedDecision
from ml.experiments.statistics import Sample
from ml.experiments.thompson import ThompsonSampling as Sampling
from ml.pipelines.evaluation import EvaluationReport, NothingToEvaluate, evaluate
from ml.pipelines.targets import PromptPolicyTarget, RankingTarget, Target, VersionTarget, parse_target
from ml.pipelines.training import train
from ml.platform.settings import ConfigurationError
from tests.pipelines.logs import ALIKE, APART, DAY, HOUR, VERSIONS, decision, log_of, ranked_log_of

MEANS = ALIKE["low"]


def target(policy: str, window: float = DAY) -> Target:
    return parse_target(policy, reaction_window=timedelta(seconds=window), tracking_uri="sqlite:///nowhere.db")


def learned(decisions: Sequence[LoggedDecision], folder: Path) -> Target:
    """A policy that was trained on these decisions, from a file."""
    file = folder / "policy.npz"
    file.write_bytes(train(decisions, name="learner"))
    return target(str(file))


def finds(report: EvaluationReport, truth: float) -> bool:
    """Tell whether every estimate's interval holds the truth."""
    return all(one.low <= truth <= one.high and one.refusal is None for one in report.estimates.values())


# Versions


def test_the_best_of_three_versions_is_found_to_earn_what_it_does_and_more_than_the_log() -> None:
    report = evaluate(log_of(6_000), target("v3"))
    assert (report.policy, report.decisions, report.users, report.left_out) == ("v3", 6_000, 300, ())
    assert [*report.estimates] == ["sndr", "snips", "dr", "ips", "dm"]
    assert report.earned.low < 0.3 < report.earned.high
    assert finds(report, MEANS["v3"])
    for estimate in report.estimates.values():
        assert estimate.is_significant
        assert 0 < estimate.gain.low < 0.1 < estimate.gain.high
        assert estimate.effective_sample_size == pytest.approx(2_000, rel=0.1)
        assert estimate.largest_weight == pytest.approx(3)
    assert report.verdict.startswith(f"The log earned {100 * report.earned.value:.1f}% (")
    assert f" v3 would have earned {100 * report.best.value:.1f}% (" in report.verdict
    assert f"): +{100 * report.best.gain.estimate:.1f} points (+" in report.verdict
    assert report.verdict.endswith("), which can be trusted.")


def test_a_worse_version_is_found_to_lose() -> None:
    report = evaluate(log_of(6_000), target("v1"))
    assert finds(report, MEANS["v1"])
    assert report.best.is_significant
    assert report.best.gain.high < 0
    assert f"): {100 * report.best.gain.estimate:.1f} points (-" in report.verdict


def test_what_the_log_did_anyway_is_not_told_apart_from_it() -> None:
    for policy in ("uniform", "v1,v2,v3", "v1=5,v2=5,v3=5"):
        report = evaluate(log_of(1_000), target(policy))
        assert report.estimates["snips"].value == pytest.approx(report.earned.value)
        assert report.best.value == pytest.approx(report.earned.value, abs=0.01)
        assert not any(estimate.is_significant for estimate in report.estimates.values())
        assert report.verdict.endswith("), which may be chance.")


def test_weights_are_those_of_the_setting() -> None:
    report = evaluate(log_of(6_000), target("v1=90,v3=10"))
    assert finds(report, 0.9 * MEANS["v1"] + 0.1 * MEANS["v3"])
    assert report.policy == "v1=90,v3=10"


def test_a_version_that_the_log_hardly_took_is_refused_in_words() -> None:
    report = evaluate(log_of(2_000, shares={"v1": 0.49, "v2": 0.49, "v3": 0.02}), target("v3"))
    assert "The log tells no more than" in (report.best.refusal or "")
    assert not report.best.is_significant
    assert " What v3 would have earned cannot be told from it: the log tells no more than " in report.verdict


def test_a_version_that_the_log_never_had_is_one_sentence_that_names_those_it_has() -> None:
    with pytest.raises(NothingToEvaluate) as refusal:
        evaluate(log_of(50), target("v1=1,v8=1,v9=2"))
    assert str(refusal.value) == (
        "There is nothing to evaluate: the log never had the choice of v8 or v9; the versions in it are v1, v2, v3."
    )


def test_decisions_from_before_a_version_came_are_left_out_and_counted() -> None:
    before = log_of(1_500, shares={"v1": 0.5, "v2": 0.5}, seed=1)
    after = log_of(4_000, shares={"v1": 0.3, "v2": 0.3, "v3": 0.4}, start=before[-1].at + HOUR, seed=2)
    report = evaluate([*before, *after], target("v3"))
    assert finds(report, MEANS["v3"])
    assert report.decisions == 4_000
    assert report.left_out == ("1,500 of 5,500 decisions are left out, because v3 could not be taken there.",)
    assert report.earned.low < 0.31 < report.earned.high
    both = evaluate([*before, *after], target("v1,v3"))
    assert both.decisions == 4_000
    assert evaluate([*before, *after], target("v1")).decisions == 5_500
    # The log had both, but never in one decision.
    apart = [decision(candidates=(LoggedCandidate(version, 1.0),)) for version in ("v1", "v2")]
    with pytest.raises(
        NothingToEvaluate, match=r"^There is nothing to evaluate\. 2 of 2 decisions are left out, becau"
    ):
        evaluate(apart, target("v1,v2"))


def test_decisions_without_a_choice_are_left_out_where_another_would_have_been_taken() -> None:
    outage = (LoggedCandidate("v1", 1.0, "One."), LoggedCandidate("v3", 0.0, "Two."))
    mixed = [
        replace(one, candidates=outage, chosen=0, ranked=True) if index % 10 == 0 else one
        for index, one in enumerate(log_of(6_000))
    ]
    report = evaluate(mixed, target("v3"))
    assert finds(report, MEANS["v3"])
    assert report.left_out == (
        "600 of 6,000 decisions are left out, because the live policy could not take there what v3 takes.",
    )


# Tips that were ranked


def test_a_version_is_judged_by_decisions_among_tips_of_which_one_is_its() -> None:
    log = ranked_log_of(6_000)
    report = evaluate(log, target("v3"))
    there = sum(any(one.prompt_version == "v3" for one in each.candidates) for each in log)
    assert 0 < report.decisions == there < 6_000
    assert finds(report, 0.5)
    assert report.best.is_significant
    assert finds(evaluate(log, target("uniform")), 0.4)


def test_versions_share_their_weight_among_their_tips_and_absent_ones_leave_theirs_to_the_others() -> None:
    three = decision(
        candidates=tuple(LoggedCandidate(version, 0.25, "Rest.") for version in ("v1", "v3", "v1", "v2")), ranked=True
    )
    two = replace(three, candidates=(LoggedCandidate("v3", 0.5, "Rest."), LoggedCandidate("v2", 0.5, "Walk.")))
    none = replace(three, candidates=(LoggedCandidate("v2", 1.0, "Walk."),))
    spread = [*target("v1=60,v3=40").distributions([three, two, none])]
    assert [None if one is None else one.tolist() for one in spread] == [
        pytest.approx([0.3, 0.4, 0.3, 0]),
        pytest.approx([1, 0]),
        None,
    ]


# Thompson sampling


def test_thompson_sampling_is_found_to_earn_more_once_it_has_learned() -> None:
    report = evaluate(log_of(6_000), target("thompson"))
    assert report.best.is_significant
    assert report.best.low > MEANS["v2"]
    assert report.best.high < MEANS["v3"] + 0.05


def by_hand(decisions: Sequence[LoggedDecision], window: float) -> list[list[float]]:
    """What it would have done, had it looked before each decision."""
    found = []
    for one in decisions:
        earned = {candidate.prompt_version: Sample() for candidate in one.candidates}
        for past in decisions:
            version = past.candidates[past.chosen].prompt_version
            if past.at + window < one.at and version in earned:
                earned[version] += Sample(1, past.reward, past.reward**2)
        found.append([*Sampling().distribution(earned).values()])
    return found


def test_it_knows_of_rewards_when_they_are_in_and_not_before() -> None:
    # Two hours apart, in 16 days: it looks before each of them.
    log = [replace(one, at=2 * HOUR * index) for index, one in enumerate(log_of(190))]
    log[100:] = [replace(one, candidates=one.candidates[:2], chosen=one.chosen % 2) for one in log[100:]]
    for window in (0.0, DAY):
        found = [
            [] if one is None else one.tolist() for one in PromptPolicyTarget("thompson", window).distributions(log)
        ]
        assert found == [pytest.approx(each) for each in by_hand(log, window)]


@given(st.integers(0, 2**32 - 1), st.floats(0, 3 * DAY))
def test_it_never_sees_what_it_is_judged_on(seed: int, window: float) -> None:
    log = log_of(120, seed=seed)
    luckier = [replace(one, reward=1.0) if one.at + window >= log[-1].at else one for one in log]
    before, after = (
        [[] if one is None else one.tolist() for one in PromptPolicyTarget("thompson", window).distributions(each)]
        for each in (log, luckier)
    )
    assert before == after


def test_it_starts_from_equal_chances() -> None:
    first = next(iter(PromptPolicyTarget("thompson", 0.0).distributions(log_of(3))))
    assert first is not None
    assert first.tolist() == pytest.approx([1 / 3] * 3, abs=1e-6)
    assert [*PromptPolicyTarget("thompson", 0.0).distributions([])] == []


# Policies that were learned


def test_a_learned_policy_is_judged_by_what_it_has_not_seen_and_found_to_be_better(tmp_path: Path) -> None:
    log = log_of(8_000, rates=APART)
    policy = learned(log[:4_000], tmp_path)
    report = evaluate(log, policy)
    assert report.policy.startswith("learner ")
    assert report.decisions == 4_000
    (sentence,) = report.left_out
    assert sentence == (
        "4,000 of 8,000 decisions are left out, because learner has learned from decisions up to 1970-01-28 18:30 UTC."
    )
    taken = [one for one in policy.distributions(log) if one is not None]
    rates = [[APART[one.signals["mood"]][version] for version in VERSIONS] for one in log[4_000:]]
    truth = float((np.array(taken) * rates).sum(axis=1).mean())
    assert truth > 0.55
    assert finds(report, truth)
    assert report.best.is_significant
    assert report.best.gain.low > 0.1
    # No version is as good for all as the right one is for each.
    assert evaluate(log[4_000:], target("v3")).best.high < report.best.low


def test_a_learned_policy_is_judged_by_the_tips_that_it_ranks(tmp_path: Path) -> None:
    log = ranked_log_of(8_000)
    report = evaluate(log, learned(log[:4_000], tmp_path))
    assert report.best.is_significant
    assert report.best.gain.low > 0.05


def test_of_a_policy_that_has_learned_from_all_of_the_log_nothing_can_be_said(tmp_path: Path) -> None:
    log = log_of(100)
    with pytest.raises(NothingToEvaluate) as refusal:
        evaluate(log, learned(log, tmp_path))
    assert str(refusal.value) == (
        "There is nothing to evaluate. 100 of 100 decisions are left out, "
        "because learner has learned from decisions up to 1970-01-01 16:30 UTC."
    )


def test_the_text_of_the_one_tip_that_was_written_tells_nothing(tmp_path: Path) -> None:
    policy = learned(ranked_log_of(500), tmp_path)
    log = log_of(500, start=400 * DAY)
    told = [
        replace(
            one,
            candidates=tuple(
                replace(each, tip="Go to sleep." if index == one.chosen else None)
                for index, each in enumerate(one.candidates)
            ),
        )
        for one in log
    ]
    assert evaluate(told, policy) == evaluate(log, policy)


# What goes into the model of the reward


def test_groups_that_like_other_versions_make_estimates_more_precise() -> None:
    log = log_of(6_000, rates=APART)
    report = evaluate(log, target("v3"))
    widths = {name: one.high - one.low for name, one in report.estimates.items()}
    assert widths["sndr"] < 0.95 * widths["snips"]
    # Without a signal there is one group.
    unknown = evaluate([replace(one, signals={}) for one in log], target("v3"))
    assert unknown.estimates["snips"] == report.estimates["snips"]
    assert unknown.best.high - unknown.best.low > 1.03 * widths["sndr"]


# What there may be little of


def test_no_decisions_are_one_sentence() -> None:
    for policy in (
        PromptPolicyTarget("uniform", DAY),
        PromptPolicyTarget("thompson", DAY),
        VersionTarget("v1", {"v1": 1.0}),
    ):
        with pytest.raises(NothingToEvaluate, match=r"^There is nothing to evaluate: the log holds no decision that"):
            evaluate([], policy)


@pytest.mark.parametrize("policy", ["v1", "uniform", "thompson"])
def test_a_log_of_one_version_tells_what_it_earned(policy: str) -> None:
    report = evaluate(log_of(500, shares={"v1": 1.0}), target(policy))
    assert report.best.value == pytest.approx(report.earned.value)
    assert report.best.refusal is None
    assert not report.best.is_significant


def test_where_nobody_ever_reacted_nothing_is_known() -> None:
    report = evaluate([replace(one, reward=0.0) for one in log_of(2_000)], target("v3"))
    assert (report.best.refusal or "").startswith("Every decision earned the same reward")


def test_few_people_are_refused_however_often_they_came() -> None:
    report = evaluate(log_of(3_000, users=10), target("v3"))
    assert report.users == 10
    assert report.best.refusal == "The log tells no more than the target would for 9 people, and 20 are the least."


def test_one_decision_of_one_person_is_refused_too() -> None:
    report = evaluate([decision(reward=1.0)], target("v1"))
    assert (report.best.low, report.best.high) == (0, 1)
    assert report.best.refusal


def test_the_order_in_which_decisions_come_does_not_matter() -> None:
    log = log_of(1_000)
    for policy in ("v3", "thompson"):
        assert evaluate(log[::-1], target(policy)) == evaluate(log, target(policy))


@st.composite
def small_logs(draw: st.DrawFn) -> list[LoggedDecision]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    log = []
    for index in range(draw(st.integers(1, 25))):
        size = int(rng.integers(1, 5))
        ranked = bool(rng.integers(2))
        names = rng.choice(["v1", "v2", "v3", "v4"], size=size, replace=ranked)
        probabilities = rng.dirichlet(np.ones(size)) * 0.9 + 0.1 / size
        log.append(
            decision(
                id=str(index),
                user_id=f"u-{rng.integers(4)}",
                at=float(rng.integers(5) * DAY),
                signals=[{}, {"mood": "low"}, {"locale": "de-DE"}][rng.integers(3)],
                aggregates=[{}, {"tips_7d": 3.0}][rng.integers(2)],
                candidates=tuple(
                    LoggedCandidate(str(name), float(p), "Rest." if ranked else None)
                    for name, p in zip(names, probabilities, strict=True)
                ),
                chosen=int(rng.integers(size)),
                reward=float(rng.choice([0, 0.5, 1])),
                ranked=ranked,
            )
        )
    return log


@given(small_logs())
@settings(max_examples=50)
def test_whatever_is_in_the_log_there_are_numbers_or_a_sentence(log: list[LoggedDecision]) -> None:
    for policy in ("v1", "v1=1,v2=3", "uniform", "thompson"):
        with suppress(NothingToEvaluate):
            report = evaluate(log, target(policy))
            assert report.best.refusal  # of four people
            for one in (report.earned, *report.estimates.values()):
                assert one.low <= one.value <= one.high
                assert one.gain.low <= one.gain.estimate <= one.gain.high
                assert all(math.isfinite(each) for each in (one.low, one.high, one.gain.low, one.gain.high))


# Which policy is meant


def test_a_policy_is_meant_by_its_name() -> None:
    assert isinstance(target("uniform"), PromptPolicyTarget)
    assert isinstance(target("thompson"), PromptPolicyTarget)
    several = target("v1=90,v2-mentor=10")
    assert isinstance(several, VersionTarget)
    assert several.weights == {"v1": 90, "v2-mentor": 10}


def test_one_from_a_file_is_one_that_was_learned(tmp_path: Path) -> None:
    assert isinstance(learned(log_of(10), tmp_path), RankingTarget)


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        *(
            (each, "--policy: the value should be one prompt version, or ")
            for each in ("", "v1,,v2", "v1=1,v2", "v1=-1")
        ),
        ("/nowhere/policy.npz", "--policy: the value is neither a file that can be read, nor models:/NAME@ALIAS or "),
        ("models:/tips", "--policy: the value should be models:/NAME@ALIAS, "),
        (__file__, "--policy: the policy is damaged, or is not a policy."),
    ],
)
def test_what_is_no_policy_is_one_plain_sentence(policy: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        target(policy)
    assert str(refusal.value).startswith(sentence)
    assert "\n" not in str(refusal.value)
