"""The scenarios, and how they change the visits of simulated users."""

from collections import Counter
from statistics import fmean

import pytest

from ml.experiments.policies import POLICIES
from ml.simulation.people import LISTED_VERSIONS, visits
from ml.simulation.scenarios import SCENARIOS, Scenario


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=[*SCENARIOS])
def test_each_scenario_has_a_known_policy_and_days_for_all_its_changes(scenario: Scenario) -> None:
    assert scenario.policy is None or POLICIES[scenario.policy].selectable
    assert scenario.min_days <= scenario.days
    assert sum(len(days) for days, _ in scenario.periods(scenario.days)) == scenario.days


def test_periods_begin_where_the_weights_change() -> None:
    assert [*SCENARIOS["changed-shares"].periods(40)] == [(range(30), (9, 1)), (range(30, 40), (1, 1))]
    assert [*SCENARIOS["plain"].periods(3)] == [(range(3), ())]


def test_a_season_and_a_rise_change_the_probability_that_a_tip_helps() -> None:
    season, rise = SCENARIOS["season"], SCENARIOS["late-version-in-drift"]
    assert [season.reward_probability(0.2, day) for day in (0, 15, 45)] == pytest.approx([0.2, 0.3, 0.1])
    assert [rise.reward_probability(0.2, day) for day in (0, 30, 60, 90)] == pytest.approx([0.2, 0.225, 0.25, 0.25])


def test_few_heavy_users_have_most_visits() -> None:
    scenario = SCENARIOS["heavy-users"]
    counts = Counter(visit.user_id for day in range(20) for visit in visits(200, day, 1, scenario))
    assert sum(n for _, n in counts.most_common(20)) > 0.5 * counts.total()
    ids = [visit.id for visit in visits(200, 0, 1, scenario)]
    assert len({*ids}) == len(ids)


def test_preferences_change_on_their_day() -> None:
    scenario = SCENARIOS["changed-preferences"]

    def best(day: int) -> dict[str, str]:
        return {
            visit.persona.name: max(LISTED_VERSIONS, key=visit.persona.preference)
            for visit in visits(200, day, 1, scenario)
        }

    assert best(29) == {"planning": "v1", "stressed": "v2-mentor", "moving": "v3-few-shot"}
    assert best(30) == {"planning": "v2-mentor", "stressed": "v3-few-shot", "moving": "v1"}


def test_a_share_of_the_tips_is_not_seen() -> None:
    some = [visit for day in range(20) for visit in visits(200, day, 1)]
    assert all(visit.is_seen(0.0) for visit in some)
    assert fmean(visit.is_seen(0.3) for visit in some) == pytest.approx(0.7, abs=0.03)
