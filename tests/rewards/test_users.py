"""The comparison per user: each user counts once."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from ml.experiments.statistics import Sample
from ml.rewards.report import RewardReport
from ml.rewards.users import UserComparison, compare_users
from ml.store.user_draws import UserDraws
from tests.rewards.test_report import EVEN, period, report_on

REPORT = report_on(period(("v1", 2_000, 400), ("v2", 2_000, 400)))


def draws(user: int, version: str, n: int, helpful: int, **fields: bool) -> UserDraws:
    return UserDraws(user, EVEN, version, "a" * 64, fields.get("seen", False), Sample(n, helpful, helpful))


def compare(rows: list[UserDraws], report: RewardReport = REPORT) -> UserComparison:

    (comparison,) = asyncio.run(compare_users(report, _stream(rows)))
    return comparison


def test_a_heavy_user_weighs_as_much_as_a_light_one() -> None:
    light = [row for user in range(40) for row in (draws(user, "v1", 5, user % 2), draws(user, "v2", 5, 2 + user % 3))]
    heavy = [draws(99, "v1", 5_000, 5_000), draws(99, "v2", 5_000, 0)]
    comparison = compare(light + heavy)
    mean_of_light = np.mean([(2 + user % 3 - user % 2) / 5 for user in range(40)])
    assert comparison.difference
    assert comparison.difference.estimate == pytest.approx((40 * mean_of_light - 1) / 41)
    assert comparison.users == 41
    assert comparison.differs  # the traffic's difference is 0
    assert "differs from the comparison of all tips" in comparison.words


def test_its_interval_covers_the_difference_although_tips_of_a_user_are_alike() -> None:
    rng = np.random.default_rng(4)
    missed, runs, users = 0, 300, 60
    for _ in range(runs):
        effects = rng.normal(0.1, 0.15, users)
        sizes = np.minimum(rng.zipf(1.7, users), 200)
        rows = []
        for user, (effect, size) in enumerate(zip(effects, sizes, strict=True)):
            n2 = rng.binomial(size, 0.5)
            for version, n, rate in (("v1", size - n2, 0.4), ("v2", n2, np.clip(0.4 + effect, 0, 1))):
                if n:
                    rows.append(draws(user, version, int(n), int(rng.binomial(n, rate))))
        interval = compare(rows).difference
        assert interval
        missed += not interval.low <= 0.1 <= interval.high
    assert 0.01 * runs <= missed <= 0.08 * runs


def test_too_few_users_or_several_digests_have_no_figure() -> None:
    few = compare([draws(user, version, 9, 3) for user in range(19) for version in ("v1", "v2")])
    assert (few.difference, few.users) == (None, 19)
    two = report_on(period(("v1", 9, 1), ("v2", 9, 1)), period(("v1", 9, 1), digest="b" * 64, day=20_001))
    rows = [draws(user, version, 9, 3) for user in range(30) for version in ("v1", "v2")]
    comparisons = asyncio.run(compare_users(two, _stream(rows)))
    assert [comparison.difference for comparison in comparisons] == [None, None]
    assert all("several digests" in comparison.words for comparison in comparisons)


def test_tips_that_were_not_seen_are_left_out_if_exposures_are_reported() -> None:
    seen = [draws(user, version, 9, 3 + user % 2, seen=True) for user in range(30) for version in ("v1", "v2")]
    unseen = [draws(user, "v2", 9, 9) for user in range(30)]
    report = report_on(known=period(("v1", 9, 1), ("v2", 9, 1), seen=True), exposure_reported=True)
    assert compare(seen + unseen, report) == compare(seen, report)
    assert compare(seen + unseen) != compare(seen)


async def _stream(rows: list[UserDraws]) -> AsyncIterator[UserDraws]:
    for row in rows:
        yield row
