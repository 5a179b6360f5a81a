"""The figures of the reward page: deterministic, safe in a page, and usable with few and many variants."""

import re
from dataclasses import replace
from datetime import date, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.experiments.confidence_sequence import rate
from ml.experiments.statistics import Interval, Sample
from ml.rewards.plots import _percent_limits, _running_mean, draw_plots
from ml.rewards.variants import DayReward, Variant

DAY = date(2026, 3, 1)


def variant(label: str, *days: DayReward) -> Variant:
    counted = sum(day.counted for day in days)
    reward = Interval(0.3, 0.2, 0.4) if counted else None
    return Variant(label, "a" * 64, label, 10, 0, counted, 0, 0, 0, 0, {}, reward, None, 1, 1, 1, days)


def test_figures_are_deterministic_and_share_no_id() -> None:
    variants = [variant(name, DayReward(DAY, 40, 0.3)) for name in ("v1", "v2")]
    plots = draw_plots(variants)
    assert draw_plots(variants) == plots
    ids = re.findall(r' id="([^"]+)"', plots.intervals + plots.over_time)
    assert ids
    assert len(ids) == len(set(ids))
    assert {*re.findall(r'(?:href="|url\()#([^")]+)', plots.intervals + plots.over_time)} <= {*ids}


def test_all_colours_are_those_of_the_page() -> None:
    plots = draw_plots([variant(f"v{index}", DayReward(DAY, 40, index / 30)) for index in range(20)])
    colours = re.findall(r"(?:fill|stroke): ([^;\"]+)", plots.intervals + plots.over_time)
    assert {colour for colour in colours if not colour.startswith("var(--")} <= {"none"}


def test_a_variant_may_have_one_day_or_none() -> None:
    for days in ([], [DayReward(DAY, 1, 1.0)]):
        plots = draw_plots([variant("v1", *days)])
        assert "v1" in plots.intervals
        assert ("v1" in plots.over_time) == bool(days)


def test_labels_are_escaped_and_shortened() -> None:
    plots = draw_plots([variant("$<b>&amp;$", DayReward(DAY, 40, 0.3)), replace(variant("v" * 90), prompt_version="v")])
    assert "$&lt;b&gt;&amp;amp;$" in plots.intervals
    assert "v" * 41 not in plots.intervals


def test_a_line_ends_at_the_mean_of_all_days_and_starts_when_there_are_enough_tips() -> None:
    days = [DayReward(DAY + timedelta(days=index), n, 0.1 * index) for index, n in enumerate([10, 10, 20, 60])]
    means = _running_mean(variant("v1", *days))
    assert means == {DAY + timedelta(days=2): pytest.approx(12.5), DAY + timedelta(days=3): pytest.approx(23)}
    assert [*_running_mean(variant("v1", *days[:1])).values()] == [0]


@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0, 1)), min_size=1, max_size=5))
@settings(max_examples=15)
def test_no_axis_exceeds_the_range_of_a_rate(counts: list[tuple[int, float]]) -> None:
    variants = [variant(f"v{n}", DayReward(DAY, counted, reward)) for n, (counted, reward) in enumerate(counts)]
    for index, (n, reward) in enumerate(counts):
        interval = rate({0: Sample(n, n * reward, n * reward**2)}, alpha=0.05)
        variants[index] = replace(variants[index], reward=interval)
    plots = draw_plots(variants)
    percents = [
        float(text) for text in re.findall(r">(-?[0-9.]+)%<", (plots.intervals + plots.over_time).replace("−", "-"))
    ]
    assert percents
    assert all(0 <= percent <= 100 for percent in percents)


@given(st.floats(-20, 100), st.floats(0, 60))
def test_the_limits_of_an_axis_are_within_0_and_100_percent(start: float, span: float) -> None:
    low, high = _percent_limits(start, min(start + span, 120))
    assert -1e-9 <= low <= max(start, 0)
    assert min(start + span, 100) - 1e-9 <= high <= 100 + 1e-9
    assert high - low >= 10 - 1e-9
