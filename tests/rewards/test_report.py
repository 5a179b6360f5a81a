"""Which version helps: rates, verdicts, alarms, and how often they are wrong."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta

import httpx
import numpy as np
import pytest

from ml.rewards.report import MAX_IMBALANCE, MIN_TIPS, ReportWindow, RewardReport, build_report
from ml.store.rollup import ALL_TIPS, EVERYONE, DayCounts
from tests.example_tips import SetClock
from tests.fake_serving import FakeServing
from tests.fixtures import ON_SQLITE, StartRecommender


def day(
    version: str,
    tips: int,
    helpful: int,
    *,
    digest: str = "a" * 64,
    number: int = 20_000,
    mature: bool = True,
    dependent: int = 0,
) -> Iterator[DayCounts]:
    """One day of one version: so many tips, and so many of them found helpful."""
    for reaction, n, reward in ((ALL_TIPS, tips, 0), ("helpful", helpful, helpful)):
        sums = (n, reward, reward, 50 * n, 10 * n, 900 * n, 0, 0 if reaction else dependent)
        yield DayCounts(number, version, digest, False, False, reaction, mature, *sums)


def of(*counts: Iterator[DayCounts], **options: object) -> RewardReport:
    return build_report(ReportWindow(), [one for each in counts for one in each], {}, **options)  # type: ignore[arg-type]


def verdicts(found: RewardReport) -> dict[str, str]:
    return {one.label: one.comparison.verdict for one in found.variants if one.comparison}


def test_an_empty_database_gives_an_empty_report() -> None:
    found = of()
    assert (found.baseline, found.variants, found.sample_ratio.alarm) == (None, (), False)


def test_tokens_and_time_are_means_of_a_tip() -> None:
    (variant,) = of(day("v1", 40, 10)).variants
    assert (variant.input_tokens, variant.output_tokens, variant.ms) == (50, 10, 900)
    assert (variant.tips, variant.reacted, variant.counted, variant.reward.estimate) == (40, 10, 40, 0.25)
    assert variant.comparison is None
    assert variant.reward.low < 0.25 < variant.reward.high


def test_young_tips_count_only_with_a_reaction() -> None:
    (variant,) = of(day("v1", 40, 10), day("v1", 40, 10, mature=False, number=20_001)).variants
    assert (variant.tips, variant.counted, variant.reward.estimate) == (80, 50, 0.4)
    assert [(one.counted, one.reward) for one in variant.days] == [(40, 0.25), (10, 1.0)]
    assert [one.day for one in variant.days] == [date(1970, 1, 1) + timedelta(days=n) for n in (20_000, 20_001)]


@pytest.mark.parametrize(
    ("asked", "preferred", "baseline"),
    [(None, (), "v1"), (None, ("v3", "v2"), "v3"), (None, ("v9", "v2"), "v2"), ("v2", ("v3",), "v2")],
)
def test_the_baseline_is_the_one_asked_for_else_the_operator_s_first_else_the_alphabet_s(
    asked: str | None, preferred: Sequence[str], baseline: str
) -> None:
    found = of(*(day(version, 10, 1) for version in ("v3", "v1", "v2")), baseline=asked, preferred=preferred)
    assert found.baseline == baseline
    assert found.variants[0].label == baseline
    assert [one.comparison is None for one in found.variants] == [True, False, False]


@pytest.mark.parametrize(
    ("tips", "helpful", "verdict"),
    [
        ((2000, 2000), (200, 600), "helps more"),
        ((2000, 2000), (600, 200), "helps less"),
        ((2000, 2000), (400, 402), "not yet known"),
        ((MIN_TIPS - 1, 2000), (0, 2000), "not yet known"),
        ((MIN_TIPS, MIN_TIPS * MAX_IMBALANCE), (0, MIN_TIPS * MAX_IMBALANCE), "helps more"),
        ((MIN_TIPS, MIN_TIPS * MAX_IMBALANCE + 1), (0, MIN_TIPS * MAX_IMBALANCE), "not yet known"),
    ],
)
def test_a_verdict_needs_enough_tips_not_too_unequal_and_a_clear_difference(
    tips: tuple[int, int], helpful: tuple[int, int], verdict: str
) -> None:
    found = of(day("v1", tips[0], helpful[0]), day("v2", tips[1], helpful[1]))
    assert verdicts(found) == {"v2": verdict}
    comparison = found.variants[1].comparison
    assert comparison
    if verdict == "not yet known":
        assert comparison.words.startswith("not yet known: ")
    else:
        assert comparison.words.startswith(f"v2 {verdict} than v1: ")
        assert comparison.more_tips is None


@pytest.mark.parametrize("dependent", [(1, 0), (0, 1_999), (2_000, 2_000)])
def test_there_is_no_verdict_on_tips_that_a_policy_has_ranked_or_that_stick(dependent: tuple[int, int]) -> None:
    found = of(*(day(f"v{place + 1}", 2_000, 400 + 200 * place, dependent=n) for place, n in enumerate(dependent)))
    assert (found.dependent, tuple(one.dependent for one in found.variants)) == (sum(dependent), dependent)
    comparison = found.variants[1].comparison
    assert comparison
    assert (comparison.verdict, comparison.more_tips) == ("not yet known", None)
    assert comparison.words == (
        f"not yet known: {sum(dependent):,} tips were chosen by a ranking policy, or are sticky; "
        "only tips evaluate compares versions then"
    )
    assert comparison.difference.low > 0
    # A third that has none of these has no verdict beside these, but one beside another such.
    beside = of(*(day(f"v{n}", 2_000, 200 * n, dependent=5 * (n == 2)) for n in (1, 2, 3)))
    assert verdicts(beside) == {"v2": "not yet known", "v3": "helps more"}


def test_two_that_are_equal_are_told_to_be() -> None:
    comparison = of(day("v1", 2000, 400), day("v2", 2000, 400)).variants[1].comparison
    assert comparison
    assert "about equally" in comparison.words
    assert comparison.more_tips is None


def test_two_digests_of_one_version_are_shown_apart_and_the_one_shown_last_is_the_baseline() -> None:
    found = of(
        day("v1", 500, 50, digest="a" * 64, number=20_000),
        day("v1", 10, 5, digest="b" * 64, number=20_001),
        day("v2", 10, 5, digest="c" * 64),
    )
    assert [one.label for one in found.variants] == ["v1 (bbbbbbbb)", "v1 (aaaaaaaa)", "v2"]
    assert found.baseline == "v1 (bbbbbbbb)"


def test_versions_that_were_not_shown_as_often_as_drawn_raise_an_alarm() -> None:
    def of_assignments(assigned: Mapping[str, tuple[int, float]]) -> bool:
        return build_report(ReportWindow(), [], assigned).sample_ratio.alarm

    assert not of_assignments({"v1": (510, 500.0), "v2": (490, 500.0)})
    assert of_assignments({"v1": (700, 500.0), "v2": (300, 500.0)})
    assert not of_assignments({"v1": (5, 5.0)})


def days_of(rng: np.random.Generator, rates: Sequence[float], days: int, tips: int) -> list[list[DayCounts]]:
    drawn = rng.binomial(tips, rates, size=(days, len(rates)))
    return [
        [one for arm, helpful in enumerate(row) for one in day(f"v{arm}", tips, int(helpful), number=20_000 + number)]
        for number, row in enumerate(drawn)
    ]


def ever_known(days: list[list[DayCounts]]) -> bool:
    """Whether any daily look gives a verdict; days are added up so that a look is cheap."""
    sums: dict[tuple[str, str], DayCounts] = {}
    for counts in days:
        for one in counts:
            old = sums.get((one.prompt_version, one.reaction))
            tips = one.tips + (old.tips if old else 0)
            helpful = tips if one.reaction else 0
            sums[one.prompt_version, one.reaction] = next(
                added for added in day(one.prompt_version, tips, helpful) if added.reaction == one.reaction
            )
        found = build_report(ReportWindow(segment=EVERYONE), [*sums.values()], {})
        if any(one.comparison and one.comparison.verdict != "not yet known" for one in found.variants):
            return True
    return False


RUNS = 500


@pytest.mark.parametrize("versions", [2, 3])
def test_of_equal_versions_looked_at_every_day_few_ever_get_a_verdict(versions: int) -> None:
    rng = np.random.default_rng(versions)
    wrong = sum(ever_known(days_of(rng, [0.3] * versions, days=30, tips=60)) for _ in range(RUNS))
    assert wrong <= 0.05 * RUNS


def test_a_difference_of_ten_points_is_found_mostly() -> None:
    rng = np.random.default_rng(9)
    found = sum(ever_known(days_of(rng, [0.3, 0.4], days=30, tips=60)) for _ in range(50))
    assert found > 40


@ON_SQLITE
def test_rewards_over_http(start_recommender: StartRecommender, fake_serving: FakeServing, clock: SetClock) -> None:
    http: httpx.Client = start_recommender(tip_prompt_version="v2-mentor,v1")
    assert http.get("/rewards").json()["variants"] == []
    for version, mood in (("v1", "low"), ("v2-mentor", "low"), ("v1", "great")):
        fake_serving.writes(prompt_version=version)
        tip = http.post("/tips", json={"user_id": "u-1", "signals": {"mood": mood}}).json()
        http.post("/reactions", json={"tip_id": tip["tip_id"], "reaction": "helpful"})
        clock.go(days=1)
    body = http.get("/rewards").json()
    assert body["baseline"] == "v2-mentor"
    assert {one["label"]: one["tips"] for one in body["variants"]} == {"v2-mentor": 1, "v1": 2}
    low = http.get("/rewards", params={"segment": "mood:low", "from": "", "baseline": ""}).json()
    assert {one["label"]: one["tips"] for one in low["variants"]} == {"v2-mentor": 1, "v1": 1}
    assert http.get("/rewards", params={"segment": "mood:none"}).json()["variants"] == []
    first = http.get("/rewards", params={"from": "2026-01-31", "to": "2026-01-31"}).json()
    assert {one["label"]: one["tips"] for one in first["variants"]} == {"v1": 1}
    backwards = http.get("/rewards", params={"from": "2026-02-02", "to": "2026-02-01"})
    assert (backwards.status_code, backwards.json()["errors"][0]["pointer"]) == (422, "#/to")
    unknown = http.get("/rewards", params={"baseline": "v9"})
    assert (unknown.status_code, unknown.json()["errors"][0]["allowed"]) == (422, ["v1", "v2-mentor"])
    for wrong in ({"from": "soon"}, {"to": "2026-02-30"}, {"segment": "x" * 65}, {"from": "\x00"}):
        assert http.get("/rewards", params=wrong).status_code == 422
    everything = http.get("/rewards", params={"from": "0001-01-01", "to": "9999-12-31"})
    assert len(everything.json()["variants"]) == 2
