"""The reward report: rates, verdicts, the sample-ratio alarm, and how often verdicts are wrong."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta

import httpx
import numpy as np
import pytest

from ml.rewards.comparison import MAX_IMBALANCE, MIN_TIPS
from ml.rewards.report import ReportWindow, RewardReport, build_report
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
    dependent: bool = False,
) -> Iterator[DayCounts]:
    """Yield the counts of one day of one version: `tips` tips, of which `helpful` have the reaction helpful."""
    for reaction, n, reward in ((ALL_TIPS, tips, 0), ("helpful", helpful, helpful)):
        sums = (n, reward, reward, 50 * n, 10 * n, 900 * n, 0)
        yield DayCounts(number, version, digest, False, True, dependent, False, reaction, mature, *sums)


def report_on(*days: Iterator[DayCounts], **options: object) -> RewardReport:
    return build_report(ReportWindow(), [count for counts in days for count in counts], {}, **options)  # type: ignore[arg-type]


def verdicts(report: RewardReport) -> dict[str, str]:
    return {variant.label: variant.comparison.verdict for variant in report.variants if variant.comparison}


def test_an_empty_database_gives_an_empty_report() -> None:
    report = report_on()
    assert (report.baseline, report.variants, report.sample_ratio.alarm) == (None, (), False)


def test_tokens_and_milliseconds_are_means_per_tip() -> None:
    (variant,) = report_on(day("v1", 40, 10)).variants
    assert (variant.input_tokens, variant.output_tokens, variant.ms) == (50, 10, 900)
    assert variant.reward
    assert (variant.tips, variant.reacted, variant.counted, variant.reward.estimate) == (40, 10, 40, 0.25)
    assert variant.comparison is None
    assert variant.reward.low < 0.25 < variant.reward.high


def test_young_tips_count_only_with_a_reaction() -> None:
    (variant,) = report_on(day("v1", 40, 10), day("v1", 40, 10, mature=False, number=20_001)).variants
    assert variant.reward
    assert (variant.tips, variant.counted, variant.waiting, variant.reward.estimate) == (80, 50, 30, 0.4)
    assert [(day_.counted, day_.reward) for day_ in variant.days] == [(40, 0.25), (10, 1.0)]
    assert [day_.day for day_ in variant.days] == [date(1970, 1, 1) + timedelta(days=n) for n in (20_000, 20_001)]


@pytest.mark.parametrize(
    ("requested", "preferred", "baseline"),
    [(None, (), "v1"), (None, ("v3", "v2"), "v3"), (None, ("v9", "v2"), "v2"), ("v2", ("v3",), "v2")],
)
def test_the_baseline_is_the_requested_one_else_the_first_preferred_one_else_the_first_in_the_alphabet(
    requested: str | None, preferred: Sequence[str], baseline: str
) -> None:
    days = [day(version, 10, 1) for version in ("v3", "v1", "v2")]
    report = report_on(*days, baseline=requested, preferred=preferred)
    assert report.baseline == baseline
    assert report.variants[0].label == baseline
    assert [variant.comparison is None for variant in report.variants] == [True, False, False]


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
def test_a_verdict_needs_enough_tips_a_limited_imbalance_and_a_clear_difference(
    tips: tuple[int, int], helpful: tuple[int, int], verdict: str
) -> None:
    report = report_on(day("v1", tips[0], helpful[0]), day("v2", tips[1], helpful[1]))
    assert verdicts(report) == {"v2": verdict}
    comparison = report.variants[1].comparison
    assert comparison
    if verdict == "not yet known":
        assert comparison.words.startswith("It is not yet known whether v2 helps more than v1: ")
    else:
        assert comparison.words.startswith(f"v2 {verdict} than v1: ")
        assert comparison.more_tips is None


def test_one_dependent_tip_is_excluded_and_keeps_the_verdict_of_the_others() -> None:
    independent = [*day("v1", 260, 40), *day("v2", 257, 120)]
    report = report_on(iter(independent), day("v2", 1, 1, dependent=True))
    assert (report.tips, report.counted, report.dependent) == (518, 517, 1)
    comparison, expected = report.variants[1].comparison, report_on(iter(independent)).variants[1].comparison
    assert comparison
    assert expected
    assert (comparison.verdict, comparison.difference) == ("helps more", expected.difference)
    assert comparison.words == expected.words.removesuffix(".") + " (1 tip excluded)."


def test_dependent_tips_are_in_the_totals_but_in_no_rate() -> None:
    report = report_on(
        day("v1", 2_000, 400),
        day("v2", 2_000, 600),
        day("v2", 700, 700, dependent=True),
        day("v2", 30, 10, dependent=True, mature=False, number=20_001),
    )
    without = report_on(day("v1", 2_000, 400), day("v2", 2_000, 600)).variants[1]
    variant = report.variants[1]
    assert (variant.tips, variant.reacted, variant.counted, variant.waiting, variant.dependent) == (
        *(2_730, 1_310, 2_000, 0, 730),
    )
    assert variant.reactions["helpful"] == 1_310
    assert (variant.reward, variant.probability_best, variant.days) == (
        *(without.reward, without.probability_best, without.days),
    )
    assert verdicts(report) == {"v2": "helps more"}


def test_versions_with_dependent_tips_only_have_no_rate_and_no_difference() -> None:
    report = report_on(day("v1", 2_000, 400), day("v2", 40, 20, dependent=True), day("v3", 9, 0, mature=False))
    assert [(variant.counted, variant.waiting, variant.dependent) for variant in report.variants] == [
        *((2_000, 0, 0), (0, 0, 40), (0, 9, 0)),
    ]
    assert [variant.reward is None for variant in report.variants] == [False, True, True]
    assert [variant.probability_best for variant in report.variants] == [1, None, None]
    comparisons = [variant.comparison for variant in report.variants[1:]]
    assert all(comparison and comparison.difference is None for comparison in comparisons)
    assert [comparison.words for comparison in comparisons if comparison] == [
        "It is not yet known whether v2 helps more than v1: each version needs 100 counted tips, so at least "
        "100 more tips (40 tips excluded).",
        "It is not yet known whether v3 helps more than v1: each version needs 100 counted tips, so at least "
        "100 more tips.",
    ]


def test_a_version_with_too_many_tips_names_the_one_that_needs_more() -> None:
    comparison = report_on(day("v1", 4_001, 400), day("v2", 150, 20)).variants[1].comparison
    assert comparison
    assert (comparison.more_tips, comparison.words) == (
        51,
        "It is not yet known whether v2 helps more than v1: v1 has more than 20 times as many counted tips as v2, "
        "which needs at least 51 more tips.",
    )


def test_equal_rates_are_reported_as_about_equal() -> None:
    comparison = report_on(day("v1", 2000, 400), day("v2", 2000, 400)).variants[1].comparison
    assert comparison
    assert comparison.words == (
        "It is not yet known whether v2 helps more than v1: their rates are about equal so far, and a verdict would "
        "need more than a million tips."
    )
    assert comparison.more_tips is None


def test_two_digests_of_one_version_are_two_variants_and_the_newest_one_is_the_baseline() -> None:
    report = report_on(
        day("v1", 500, 50, digest="a" * 64, number=20_000),
        day("v1", 10, 5, digest="b" * 64, number=20_001),
        day("v2", 10, 5, digest="c" * 64),
    )
    assert [variant.label for variant in report.variants] == ["v1 (bbbbbbbb)", "v1 (aaaaaaaa)", "v2"]
    assert report.baseline == "v1 (bbbbbbbb)"


def test_verdicts_are_per_version_and_digest() -> None:
    report = report_on(
        day("v1", 2000, 400, digest="a" * 64),
        day("v2", 2000, 200, digest="b" * 64),
        day("v2", 2000, 800, digest="c" * 64, number=20_001),
    )
    assert [(variant.prompt_version, variant.prompt_digest[0], variant.tips) for variant in report.variants] == [
        ("v1", "a", 2000),
        ("v2", "b", 2000),
        ("v2", "c", 2000),
    ]
    assert verdicts(report) == {"v2 (bbbbbbbb)": "helps less", "v2 (cccccccc)": "helps more"}


def test_versions_that_were_not_stored_as_often_as_drawn_raise_an_alarm() -> None:
    def raises_alarm(assignments: Mapping[str, tuple[int, float]]) -> bool:
        return build_report(ReportWindow(), [], assignments).sample_ratio.alarm

    assert not raises_alarm({"v1": (510, 500.0), "v2": (490, 500.0)})
    assert raises_alarm({"v1": (700, 500.0), "v2": (300, 500.0)})
    assert not raises_alarm({"v1": (5, 5.0)})


def simulate_days(rng: np.random.Generator, rates: Sequence[float], days: int, tips: int) -> list[list[DayCounts]]:
    drawn = rng.binomial(tips, rates, size=(days, len(rates)))
    return [
        [
            count
            for arm, helpful in enumerate(row)
            for count in day(f"v{arm}", tips, int(helpful), number=20_000 + number)
        ]
        for number, row in enumerate(drawn)
    ]


def has_a_verdict_on_any_day(days: list[list[DayCounts]]) -> bool:
    """Return whether a report on any day gives a verdict; the days are summed, so that a report is cheap."""
    sums: dict[tuple[str, str], DayCounts] = {}
    for counts in days:
        for count in counts:
            previous = sums.get((count.prompt_version, count.reaction))
            tips = count.tips + (previous.tips if previous else 0)
            helpful = tips if count.reaction else 0
            sums[count.prompt_version, count.reaction] = next(
                total for total in day(count.prompt_version, tips, helpful) if total.reaction == count.reaction
            )
        report = build_report(ReportWindow(segment=EVERYONE), [*sums.values()], {})
        if any(verdict != "not yet known" for verdict in verdicts(report).values()):
            return True
    return False


RUNS = 500


@pytest.mark.parametrize("versions", [2, 3])
def test_few_equal_versions_ever_get_a_verdict_in_daily_reports(versions: int) -> None:
    rng = np.random.default_rng(versions)
    wrong = sum(has_a_verdict_on_any_day(simulate_days(rng, [0.3] * versions, days=30, tips=60)) for _ in range(RUNS))
    assert wrong <= 0.05 * RUNS


def test_a_difference_of_ten_points_is_mostly_found() -> None:
    rng = np.random.default_rng(9)
    found = sum(has_a_verdict_on_any_day(simulate_days(rng, [0.3, 0.4], days=30, tips=60)) for _ in range(50))
    assert found > 40


@ON_SQLITE
def test_rewards_over_http(start_recommender: StartRecommender, fake_serving: FakeServing, clock: SetClock) -> None:
    http: httpx.Client = start_recommender(tip_prompt_version="v2-mentor,v1")
    assert http.get("/rewards").json()["variants"] == []
    for version, mood in (("v1", "low"), ("v2-mentor", "low"), ("v1", "great")):
        fake_serving.respond_with_tip(prompt_version=version)
        tip = http.post("/tips", json={"user_id": "u-1", "signals": {"mood": mood}}).json()
        http.post("/reactions", json={"tip_id": tip["tip_id"], "reaction": "helpful"})
        clock.go(days=1)
    body = http.get("/rewards").json()
    assert body["baseline"] == "v2-mentor"
    assert {variant["label"]: variant["tips"] for variant in body["variants"]} == {"v2-mentor": 1, "v1": 2}
    low = http.get("/rewards", params={"segment": "mood:low", "from": "", "baseline": ""}).json()
    assert {variant["label"]: variant["tips"] for variant in low["variants"]} == {"v2-mentor": 1, "v1": 1}
    assert http.get("/rewards", params={"segment": "mood:none"}).json()["variants"] == []
    first = http.get("/rewards", params={"from": "2026-01-31", "to": "2026-01-31"}).json()
    assert {variant["label"]: variant["tips"] for variant in first["variants"]} == {"v1": 1}
    backwards = http.get("/rewards", params={"from": "2026-02-02", "to": "2026-02-01"})
    assert (backwards.status_code, backwards.json()["errors"][0]["pointer"]) == (422, "#/to")
    unknown = http.get("/rewards", params={"baseline": "v9"})
    assert (unknown.status_code, unknown.json()["errors"][0]["allowed"]) == (422, ["v1", "v2-mentor"])
    for invalid in (
        {"from": "soon"},
        {"to": "2026-02-30"},
        {"segment": "x" * 65},
        {"segment": "mood:é"},
        {"from": "\x00"},
    ):
        assert http.get("/rewards", params=invalid).status_code == 422
    everything = http.get("/rewards", params={"from": "0001-01-01", "to": "9999-12-31"})
    assert len(everything.json()["variants"]) == 2
