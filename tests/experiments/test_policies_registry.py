"""The registry of prompt policies: to add a policy is to add one entry."""

import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType

import numpy as np
import pytest

from ml.experiments.assignment import Assignment
from ml.experiments.decisions import LoggedCandidate, LoggedDecision
from ml.experiments.policies import POLICIES, PromptPolicy, comparable_policies, selectable_policies
from ml.experiments.thompson import RewardHistory
from ml.pipelines.targets import parse_target
from ml.platform.settings import ConfigurationError
from ml.recommender.selection import PromptSelection, PromptSelector
from ml.recommender.settings import RecommenderSettings
from ml.simulation.regret import compare_policies

NEW_POLICY = "always-first"
SELECTABLE, COMPARABLE = selectable_policies(), comparable_policies()
"""The names before the new policy is added."""

WEIGHTS = (("v2-mentor", 1.0), ("v1", 1.0))


def first_version(weights: Mapping[str, float], history: RewardHistory) -> Mapping[str, float]:  # noqa: ARG001
    """Give all probability to the first version."""
    return {version: float(index == 0) for index, version in enumerate(weights)}


def draw_first(distribution: Mapping[str, float], user_id: str, tip_ids: Sequence[str]) -> list[Assignment]:  # noqa: ARG001
    return [Assignment(next(iter(distribution)), 1.0, distribution) for _ in tip_ids]


@pytest.fixture(autouse=True)
def _new_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add one entry to the registry, in every module that has imported it."""
    entry = PromptPolicy("draws the first version", first_version, draw_first, version="7", needs_versions=2)
    extended = MappingProxyType({**POLICIES, NEW_POLICY: entry})
    for module in [*sys.modules.values()]:
        if getattr(module, "POLICIES", None) is POLICIES:
            monkeypatch.setattr(module, "POLICIES", extended)


def test_the_new_policy_is_selectable() -> None:
    assert selectable_policies() == (*SELECTABLE, NEW_POLICY)
    assert comparable_policies() == (*COMPARABLE, NEW_POLICY)


def test_the_settings_accept_the_new_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIP_PROMPT_POLICY", NEW_POLICY)
    monkeypatch.setenv("TIP_PROMPT_VERSION", "v2-mentor,v1")
    assert RecommenderSettings.from_environment().tip_prompt_policy == NEW_POLICY


def test_the_settings_check_the_requirements_of_the_new_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIP_PROMPT_POLICY", NEW_POLICY)
    monkeypatch.setenv("TIP_PROMPT_VERSION", "v1")
    with pytest.raises(ConfigurationError, match=f"'{NEW_POLICY}' needs at least 2 versions in TIP_PROMPT_VERSION"):
        RecommenderSettings.from_environment()


def test_an_error_about_another_value_names_the_new_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIP_PROMPT_POLICY", "unknown")
    with pytest.raises(ConfigurationError, match=rf"^TIP_PROMPT_POLICY: .* {', '.join(SELECTABLE)}, {NEW_POLICY}\.$"):
        RecommenderSettings.from_environment()


def test_the_selector_draws_with_the_new_policy() -> None:
    selector = PromptSelector(dict(WEIGHTS), NEW_POLICY)
    expected = PromptSelection("v2-mentor", NEW_POLICY, "7", {"v2-mentor": 1.0, "v1": 0.0}, 1.0)
    assert selector.select("user", [str(tip_id) for tip_id in range(20)]) == [expected] * 20


def test_the_new_policy_is_a_target_of_off_policy_evaluation() -> None:
    target = parse_target(NEW_POLICY, reaction_window=timedelta(hours=24), tracking_uri="sqlite:///unused.db")
    assert target.name == NEW_POLICY
    candidates = tuple(LoggedCandidate(version, 0.5, None) for version, _ in WEIGHTS)
    decision = LoggedDecision("d", "user", 0.0, {}, {}, candidates, 1, reward=1.0, reward_in_window=1.0, ranked=False)
    (distribution,) = target.replay(0.0)([decision])
    assert distribution is not None
    np.testing.assert_array_equal(distribution, [1.0, 0.0])


@pytest.mark.parametrize("policy", ["rollout", "holdout", "playground"])
def test_policies_without_versions_to_choose_among_are_no_targets(policy: str) -> None:
    known = ", ".join((*COMPARABLE, NEW_POLICY))
    with pytest.raises(ConfigurationError, match=f"'{policy}' should be one of {known};"):
        parse_target(policy, reaction_window=timedelta(hours=24), tracking_uri="sqlite:///unused.db")


def test_the_simulation_compares_the_new_policy() -> None:
    comparison = compare_policies(["v1", "v2-mentor"], users=20, days=1, seed=1, progress=lambda days: days)
    outcomes = {outcome.policy: outcome for outcome in comparison.policies}
    assert [*outcomes] == [*COMPARABLE, NEW_POLICY, "ranking"]
    assert outcomes[NEW_POLICY].regret.shape == (2,)
