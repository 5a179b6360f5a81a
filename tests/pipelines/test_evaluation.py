"""Off-policy evaluation on simulated logs, for which the true mean rewards are known."""

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

from ml.experiments.decisions import InMemoryDecisionLog, LoggedCandidate, LoggedDecision
from ml.experiments.statistics import Interval, Sample
from ml.experiments.thompson import RewardHistory, thompson_distribution
from ml.pipelines import evaluation
from ml.pipelines.evaluated_decisions import NothingToEvaluate
from ml.pipelines.evaluation_report import EvaluationReport
from ml.pipelines.targets import PromptPolicyTarget, RankingTarget, Target, VersionTarget, parse_target
from ml.pipelines.training import train
from ml.platform.settings import ConfigurationError
from tests.pipelines.logs import (
    ALIKE,
    APART,
    DAY,
    HOUR,
    VERSIONS,
    decision,
    distributions_of,
    evaluate,
    log_of,
    ranked_log_of,
)

MEANS = ALIKE["low"]


def target(policy: str, window: float = DAY) -> Target:
    return parse_target(policy, reaction_window=timedelta(seconds=window), tracking_uri="sqlite:///missing.db")


def trained_target(decisions: Sequence[LoggedDecision], folder: Path) -> Target:
    """Return a policy that was trained on these decisions, loaded from a file."""
    file = folder / "policy.npz"
    file.write_bytes(train(InMemoryDecisionLog(decisions), name="learner"))
    return target(str(file))


def contains_in_all_intervals(report: EvaluationReport, truth: float) -> bool:
    """Return whether the interval of every estimate contains the true mean, without a refusal."""
    return all(one.low <= truth <= one.high and one.refusal is None for one in report.estimates.values())


# Versions


def test_the_estimates_for_the_best_version_contain_its_mean_reward_and_a_significant_gain() -> None:
    report = evaluate(log_of(6_000), target("v3"))
    assert (report.policy, report.decisions, report.users, report.left_out) == ("v3", 6_000, 300, ())
    assert [*report.estimates] == ["sndr", "snips", "dr", "ips", "dm"]
    assert report.earned.low < 0.3 < report.earned.high
    assert contains_in_all_intervals(report, MEANS["v3"])
    for estimate in report.estimates.values():
        assert estimate.gain_excludes_zero
        assert 0 < estimate.gain.low < 0.1 < estimate.gain.high
        assert estimate.effective_sample_size == pytest.approx(2_000, rel=0.1)
        assert estimate.largest_weight == pytest.approx(3)
    assert report.gain
    assert 0 < report.gain.low < 0.1 < report.gain.high
    assert report.verdict == (
        f"The log earned {100 * report.earned.value:.1f}%. v3 is better in this traffic: "
        f"+{100 * report.gain.estimate:.1f} points (+{100 * report.gain.low:.1f} to +{100 * report.gain.high:.1f}). "
        "This 95% interval holds at every look."
    )


def test_a_worse_version_has_a_significant_loss() -> None:
    report = evaluate(log_of(6_000), target("v1"))
    assert contains_in_all_intervals(report, MEANS["v1"])
    assert report.best.gain_excludes_zero
    assert report.best.gain.high < 0
    assert "v1 is worse in this traffic: -" in report.verdict


def test_the_live_policy_itself_has_no_significant_gain() -> None:
    for policy in ("uniform", "v1,v2,v3", "v1=5,v2=5,v3=5"):
        report = evaluate(log_of(1_000), target(policy))
        assert report.estimates["snips"].value == pytest.approx(report.earned.value)
        assert report.best.value == pytest.approx(report.earned.value, abs=0.01)
        assert not any(estimate.gain_excludes_zero for estimate in report.estimates.values())
        assert report.gain == Interval(0.0, 0.0, 0.0)
        assert f"{policy} and the log are identical" in report.verdict


def test_weights_have_the_format_of_the_setting() -> None:
    report = evaluate(log_of(6_000), target("v1=90,v3=10"))
    assert contains_in_all_intervals(report, 0.9 * MEANS["v1"] + 0.1 * MEANS["v3"])
    assert report.policy == "v1=90,v3=10"


def test_the_single_look_estimate_of_a_version_that_was_rarely_drawn_is_refused() -> None:
    report = evaluate(log_of(2_000, shares={"v1": 0.49, "v2": 0.49, "v3": 0.02}), target("v3"))
    assert (report.best.refusal or "").startswith("The effective sample size is ")
    assert not report.best.gain_excludes_zero
    # The interval that holds at every look is valid at any size.
    assert "No difference from v3 has been found so far" in report.verdict


def test_an_unknown_version_is_one_sentence_that_names_the_known_versions() -> None:
    with pytest.raises(NothingToEvaluate) as refusal:
        evaluate(log_of(50), target("v1=1,v8=1,v9=2"))
    assert str(refusal.value) == (
        "There is nothing to evaluate: v8 or v9 was never a candidate; the prompt versions in the log are v1, v2, v3."
    )


def test_decisions_without_the_version_among_the_candidates_are_left_out() -> None:
    before = log_of(1_500, shares={"v1": 0.5, "v2": 0.5}, seed=1)
    after = log_of(4_000, shares={"v1": 0.3, "v2": 0.3, "v3": 0.4}, start=before[-1].at + HOUR, seed=2)
    report = evaluate([*before, *after], target("v3"))
    assert contains_in_all_intervals(report, MEANS["v3"])
    assert report.decisions == 4_000
    assert report.left_out == ("1,500 of 5,500 decisions are left out, because v3 was not a candidate.",)
    assert report.earned.low < 0.31 < report.earned.high
    two_versions = evaluate([*before, *after], target("v1,v3"))
    assert two_versions.decisions == 4_000
    assert evaluate([*before, *after], target("v1")).decisions == 5_500
    # Both versions are in the log, but never in the same decision.
    apart = [decision(candidates=(LoggedCandidate(version, 1.0),)) for version in ("v1", "v2")]
    with pytest.raises(
        NothingToEvaluate, match=r"^There is nothing to evaluate\. 2 of 2 decisions are left out, becau"
    ):
        evaluate(apart, target("v1,v2"))


def test_decisions_at_which_the_target_draws_an_unreachable_candidate_are_left_out() -> None:
    outage = (LoggedCandidate("v1", 1.0, "One."), LoggedCandidate("v3", 0.0, "Two."))
    mixed = [
        replace(one, candidates=outage, chosen=0, ranked=True) if index % 10 == 0 else one
        for index, one in enumerate(log_of(6_000))
    ]
    report = evaluate(mixed, target("v3"))
    assert contains_in_all_intervals(report, MEANS["v3"])
    assert report.left_out == (
        "600 of 6,000 decisions are left out, because the live policy could not draw a candidate that v3 can draw.",
    )


# Ranked tips


def test_a_version_is_evaluated_with_ranked_decisions_that_have_it_as_a_candidate() -> None:
    log = ranked_log_of(6_000)
    report = evaluate(log, target("v3"))
    with_v3 = sum(any(one.prompt_version == "v3" for one in each.candidates) for each in log)
    assert 0 < report.decisions == with_v3 < 6_000
    assert contains_in_all_intervals(report, 0.5)
    assert report.best.gain_excludes_zero
    assert contains_in_all_intervals(evaluate(log, target("uniform")), 0.4)


def test_candidates_share_the_weight_of_their_version_and_weights_of_absent_versions_are_left_out() -> None:
    three = decision(
        candidates=tuple(LoggedCandidate(version, 0.25, "Rest.") for version in ("v1", "v3", "v1", "v2")), ranked=True
    )
    two = replace(three, candidates=(LoggedCandidate("v3", 0.5, "Rest."), LoggedCandidate("v2", 0.5, "Walk.")))
    none = replace(three, candidates=(LoggedCandidate("v2", 1.0, "Walk."),))
    spread = distributions_of(target("v1=60,v3=40"), [three, two, none])
    assert [None if one is None else one.tolist() for one in spread] == [
        pytest.approx([0.3, 0.4, 0.3, 0]),
        pytest.approx([1, 0]),
        None,
    ]


# Thompson sampling


def test_thompson_sampling_gains() -> None:
    report = evaluate(log_of(6_000), target("thompson"))
    assert report.best.gain_excludes_zero
    assert report.best.low > MEANS["v2"]
    assert report.best.high < MEANS["v3"] + 0.05


def compute_directly(decisions: Sequence[LoggedDecision], window: float) -> list[list[float]]:
    """Return the distributions of Thompson sampling that is updated before each decision."""
    distributions = []
    for one in decisions:
        days: dict[int, dict[str, Sample]] = {}
        for past in decisions:
            version = past.candidates[past.chosen].prompt_version
            if past.at + window < one.at:
                of_day = days.setdefault(int(past.at // DAY), {})
                reward = Sample(1, past.reward_in_window, past.reward_in_window**2)
                of_day[version] = of_day.get(version, Sample()) + reward
        history = RewardHistory(days, today=int((one.at - window) // DAY))
        versions = [candidate.prompt_version for candidate in one.candidates]
        distributions.append([*thompson_distribution(versions, history).values()])
    return distributions


def test_thompson_sampling_learns_from_rewards_only_after_the_reaction_window() -> None:
    # Decisions are two hours apart for 16 days, so that there is an update before each of them.
    log = [replace(one, at=2 * HOUR * index) for index, one in enumerate(log_of(190))]
    log[100:] = [replace(one, candidates=one.candidates[:2], chosen=one.chosen % 2) for one in log[100:]]
    for window in (0.0, DAY):
        distributions = [
            [] if one is None else one.tolist() for one in distributions_of(PromptPolicyTarget("thompson", window), log)
        ]
        assert distributions == [pytest.approx(each) for each in compute_directly(log, window)]


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 3 * DAY))
def test_thompson_sampling_never_uses_rewards_that_were_unknown_at_the_time(seed: int, window: float) -> None:
    log = log_of(120, seed=seed)
    other_rewards = [
        replace(one, reward=1.0, reward_in_window=1.0 if one.at + window >= log[-1].at else one.reward_in_window)
        for one in log
    ]
    before, after = (
        [[] if one is None else one.tolist() for one in distributions_of(PromptPolicyTarget("thompson", window), each)]
        for each in (log, other_rewards)
    )
    assert before == after


def test_thompson_sampling_does_not_use_reactions_that_were_received_after_the_reaction_window() -> None:
    log = log_of(300)
    corrected = [replace(one, reward=1 - one.reward) for one in log]
    before, after = (
        [[] if one is None else one.tolist() for one in distributions_of(PromptPolicyTarget("thompson", 0.0), each)]
        for each in (log, corrected)
    )
    assert before == after
    assert len({tuple(one) for one in before}) > 2


def test_thompson_sampling_forgets_with_the_half_life_that_it_is_given() -> None:
    log = log_of(2_000)
    last = []
    for half_life_days in (1.0, 28.0):
        forgetting = parse_target(
            "thompson", reaction_window=timedelta(0), half_life_days=half_life_days, tracking_uri="sqlite:///missing.db"
        )
        *_, distribution = distributions_of(forgetting, log)
        assert distribution is not None
        last.append(distribution[2])
    # The last version is the best one: the less is forgotten, the more certain is that.
    assert last[0] < last[1]


def test_thompson_sampling_starts_with_equal_probabilities() -> None:
    first = distributions_of(PromptPolicyTarget("thompson", 0.0), log_of(3))[0]
    assert first is not None
    assert first.tolist() == pytest.approx([1 / 3] * 3, abs=0.01)
    assert distributions_of(PromptPolicyTarget("thompson", 0.0), []) == []


# Learned policies


def test_a_learned_policy_is_evaluated_with_later_decisions_and_has_a_significant_gain(tmp_path: Path) -> None:
    log = log_of(8_000, rates=APART)
    policy = trained_target(log[:4_000], tmp_path)
    report = evaluate(log, policy)
    assert report.policy.startswith("learner ")
    assert report.decisions == 4_000
    (sentence,) = report.left_out
    assert sentence == (
        "4,000 of 8,000 decisions are left out, because learner has learned from decisions up to 1970-01-28 18:30 UTC."
    )
    distributions = [one for one in distributions_of(policy, log) if one is not None]
    rates = [[APART[one.signals["mood"]][version] for version in VERSIONS] for one in log[4_000:]]
    truth = float((np.array(distributions) * rates).sum(axis=1).mean())
    assert truth > 0.55
    assert contains_in_all_intervals(report, truth)
    assert report.best.gain_excludes_zero
    assert report.best.gain.low > 0.1
    # The best single version is worse than the best version for each mood.
    assert evaluate(log[4_000:], target("v3")).best.high < report.best.low


def test_a_learned_policy_is_evaluated_with_ranked_decisions(tmp_path: Path) -> None:
    log = ranked_log_of(8_000)
    report = evaluate(log, trained_target(log[:4_000], tmp_path))
    assert report.best.gain_excludes_zero
    assert report.best.gain.low > 0.05


def test_a_policy_trained_on_the_whole_log_cannot_be_evaluated(tmp_path: Path) -> None:
    log = log_of(100)
    with pytest.raises(NothingToEvaluate) as refusal:
        evaluate(log, trained_target(log, tmp_path))
    assert str(refusal.value) == (
        "There is nothing to evaluate. 100 of 100 decisions are left out, "
        "because learner has learned from decisions up to 1970-01-01 16:30 UTC."
    )


def test_the_text_of_the_generated_tip_does_not_influence_a_decision_among_versions(tmp_path: Path) -> None:
    policy = trained_target(ranked_log_of(500), tmp_path)
    log = log_of(500, start=400 * DAY)
    with_texts = [
        replace(
            one,
            candidates=tuple(
                replace(each, tip="Go to sleep." if index == one.chosen else None)
                for index, each in enumerate(one.candidates)
            ),
        )
        for one in log
    ]
    assert evaluate(with_texts, policy) == evaluate(log, policy)


# Changes of a prompt version's content


def with_digests(log: Sequence[LoggedDecision], digest: str) -> list[LoggedDecision]:
    """Return the decisions with the digest of the chosen prompt version."""
    return [
        replace(
            one,
            candidates=tuple(
                replace(candidate, prompt_digest=digest if index == one.chosen else None)
                for index, candidate in enumerate(one.candidates)
            ),
        )
        for one in log
    ]


@pytest.mark.parametrize("policy", ["v3", "v1,v3", "uniform", "thompson"])
def test_rewards_of_an_earlier_digest_are_not_used_and_the_notes_say_so(policy: str) -> None:
    earlier = log_of(2_000, seed=1)
    later = with_digests(log_of(4_000, start=earlier[-1].at + HOUR, seed=2), "new")
    used = later[max(next(n for n, one in enumerate(later) if one.chosen == k) for k in range(len(VERSIONS))) :]
    expected = evaluate(used, target(policy))
    n_left_out = 6_000 - len(used)
    assert 2_000 <= n_left_out < 2_050
    for rewards in (0.0, 1.0):
        changed = with_digests([replace(one, reward=rewards) for one in earlier], "old")
        report = evaluate([*changed, *later], target(policy))
        sentence = (
            f"{n_left_out:,} of 6,000 decisions are left out, because the digest of a prompt version has changed since."
        )
        assert report.notes == (
            f"{len(used):,} decisions, 300 users. The estimates are for a single look, at a policy that was chosen "
            "beforehand; use sndr, and snips as a check.",
            sentence,
        )
        assert replace(report, left_out=()) == expected


# Reward model


def test_segments_with_different_preferences_make_estimates_more_precise() -> None:
    log = log_of(6_000, rates=APART)
    report = evaluate(log, target("v3"))
    widths = {name: one.high - one.low for name, one in report.estimates.items()}
    assert widths["sndr"] < 0.95 * widths["snips"]
    # Without signals there is a single group.
    unknown = evaluate([replace(one, signals={}) for one in log], target("v3"))
    assert unknown.estimates["snips"] == report.estimates["snips"]
    assert unknown.best.high - unknown.best.low > 1.03 * widths["sndr"]


# Small logs


def test_an_empty_log_is_one_sentence() -> None:
    for policy in (
        PromptPolicyTarget("uniform", DAY),
        PromptPolicyTarget("thompson", DAY),
        VersionTarget("v1", {"v1": 1.0}),
    ):
        with pytest.raises(NothingToEvaluate, match=r"^There is nothing to evaluate: the log holds no decision that"):
            evaluate([], policy)


@pytest.mark.parametrize("policy", ["v1", "uniform", "thompson"])
def test_a_log_of_one_version_gives_its_mean_reward(policy: str) -> None:
    report = evaluate(log_of(500, shares={"v1": 1.0}), target(policy))
    assert report.best.value == pytest.approx(report.earned.value)
    assert report.best.refusal is None
    assert not report.best.gain_excludes_zero


def test_a_log_without_rewards_is_refused() -> None:
    report = evaluate([replace(one, reward=0.0) for one in log_of(2_000)], target("v3"))
    assert report.best.refusal == "All decisions have the same reward, so the variance of rewards is unknown."


def test_decisions_of_few_users_are_refused() -> None:
    report = evaluate(log_of(3_000, users=10), target("v3"))
    assert report.users == 10
    assert report.best.refusal == "The effective number of users is 9; at least 40 are needed."


def test_a_single_decision_is_refused() -> None:
    report = evaluate([decision(reward=1.0)], target("v1"))
    assert (report.best.low, report.best.high) == (0, 1)
    assert report.best.refusal


def test_the_order_of_the_decisions_does_not_matter() -> None:
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
@settings(max_examples=50, deadline=None)
def test_any_log_gives_finite_estimates_or_one_sentence(log: list[LoggedDecision]) -> None:
    for policy in ("v1", "v1=1,v2=3", "uniform", "thompson"):
        with suppress(NothingToEvaluate):
            report = evaluate(log, target(policy))
            assert report.best.refusal  # four users are too few
            for one in (report.earned, *report.estimates.values()):
                assert one.low <= one.value <= one.high
                assert one.gain.low <= one.gain.estimate <= one.gain.high
                assert all(math.isfinite(each) for each in (one.low, one.high, one.gain.low, one.gain.high))


# Logs that are larger than memory


def changed_log() -> list[LoggedDecision]:
    """Return decisions of two digests, among versions and among tips, some of whose versions were drawn per user."""
    versions = with_digests(log_of(200, seed=4), "old") + with_digests(log_of(300, start=200 * 600.0, seed=5), "new")
    tips = [replace(one, at=one.at + 500 * 600.0) for one in ranked_log_of(300)]
    return [replace(one, per_user=index % 7 == 0) for index, one in enumerate([*versions, *tips])]


def test_the_sizes_of_the_chunks_do_not_change_a_bit_of_the_report(tmp_path: Path) -> None:
    log = changed_log()
    for policy in (
        *(target(name) for name in ("v3", "v1=90,v3=10", "uniform", "thompson")),
        trained_target(log[:400], tmp_path),
    ):
        report = evaluate(log, policy, chunk_size=len(log))
        assert 0 < report.decisions < len(log)
        assert report.gain
        for chunk_size in (1, 340):
            assert evaluate(log, policy, chunk_size=chunk_size) == report


@given(small_logs(), st.integers(1, 25))
@settings(max_examples=10, deadline=None)
def test_the_sizes_of_the_chunks_change_nothing_in_any_log(log: list[LoggedDecision], chunk_size: int) -> None:
    for policy in ("v1", "uniform", "thompson"):
        with suppress(NothingToEvaluate):
            assert evaluate(log, target(policy), chunk_size=chunk_size) == evaluate(log, target(policy))


def test_a_period_of_a_log_is_evaluated_as_if_it_were_the_whole_log() -> None:
    log = log_of(1_000)
    since, before = log[200].at, log[900].at
    for policy in ("v3", "thompson"):
        report = evaluation.evaluate(InMemoryDecisionLog(log), target(policy), since=since, before=before)
        assert report == evaluate(log[200:900], target(policy))


# Parsing of targets


def test_targets_are_parsed_from_names_and_weights() -> None:
    assert isinstance(target("uniform"), PromptPolicyTarget)
    assert isinstance(target("thompson"), PromptPolicyTarget)
    several = target("v1=90,v2-mentor=10")
    assert isinstance(several, VersionTarget)
    assert several.weights == {"v1": 90, "v2-mentor": 10}


def test_a_file_is_parsed_as_a_learned_policy(tmp_path: Path) -> None:
    assert isinstance(trained_target(log_of(10), tmp_path), RankingTarget)


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        *(
            (each, f"--policy: {each!r} should be one of uniform, sticky, thompson; or prompt versions, such as ")
            for each in ("", "v1,,v2", "v1=1,v2", "v1=-1")
        ),
        ("/nowhere/policy.npz", "--policy: '/nowhere/policy.npz' is neither a file that can be read, nor "),
        ("typo.zip", "--policy: 'typo.zip' is neither a file that can be read, nor "),
        ("models:/tips", "--policy: 'models:/tips' should be models:/NAME@ALIAS, "),
        (__file__, f"--policy: the policy {__file__} is damaged, or is not a policy."),
    ],
)
def test_an_invalid_policy_is_one_sentence(policy: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        target(policy)
    assert str(refusal.value).startswith(sentence)
    assert "\n" not in str(refusal.value)
