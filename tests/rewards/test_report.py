"""The reward report: mean rewards, comparisons by draws, verdicts, and the funnel."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from ml.rewards.funnel import PeriodCounts
from ml.rewards.report import ReportWindow, RewardReport, build_report
from ml.store.day_counts import DayCounts, DrawCounts
from ml.store.rollup import ALL_TIPS
from tests.example_tips import SetClock
from tests.fake_serving import FakeServing
from tests.fixtures import ON_SQLITE, StartRecommender

EVEN = {"v1": 0.5, "v2": 0.5}
DAY = 20_000


def tips(
    version: str,
    n: int,
    helpful: int,
    *,
    digest: str = "a" * 64,
    day: int = DAY,
    mature: bool = True,
    dependent: bool = False,
    seen: bool = False,
) -> Iterator[DayCounts]:
    """Yield the counts of one day of one version: `n` tips, of which `helpful` have the reaction helpful."""
    for reaction, count, reward in ((ALL_TIPS, n, 0), ("helpful", helpful, helpful)):
        per_tip = (50 * n, 10 * n, 900 * n, 0) if reaction == ALL_TIPS else (0, 0, 0, 0)
        key = (day, version, digest, False, True, dependent, seen, reaction, mature)
        yield DayCounts(*key, count, reward, reward, *per_tip)


def draws(
    version: str,
    n: int,
    helpful: int = 0,
    *,
    options: Mapping[str, float] = EVEN,
    digest: str = "a" * 64,
    day: int = DAY,
    mature: bool = True,
    outcome: Any = "comparable",
    seen: bool = False,
) -> DrawCounts:
    return DrawCounts(day, options, version, digest, outcome, seen, mature, n, helpful, helpful)


def period(*versions: tuple[str, int, int], **fields: Any) -> PeriodCounts:
    """Return the tips of some versions with their draws."""
    of_tips = {name: value for name, value in fields.items() if name != "options"}
    counts = [count for version in versions for count in tips(*version, **of_tips)]
    return PeriodCounts(counts, [draws(*version, **fields) for version in versions])


def join(*periods: PeriodCounts) -> PeriodCounts:
    return PeriodCounts([c for p in periods for c in p.tips], [d for p in periods for d in p.draws])


def report_on(*periods: PeriodCounts, known: PeriodCounts | None = None, **options: Any) -> RewardReport:
    window = options.pop("window", ReportWindow())
    return build_report(window, join(*periods), known or PeriodCounts(), exposures=known is not None, **options)


def verdicts(report: RewardReport) -> dict[str, str]:
    return {variant.label: variant.comparison.verdict for variant in report.variants if variant.comparison}


def words(report: RewardReport) -> str:
    (comparison,) = [variant.comparison for variant in report.variants if variant.comparison]
    return comparison.words


def test_an_empty_database_gives_an_empty_report() -> None:
    report = report_on()
    assert (report.baseline, report.variants, report.funnel.rows, report.funnel.alarm) == (None, (), (), False)


def test_tokens_and_milliseconds_are_means_per_tip() -> None:
    (variant,) = report_on(period(("v1", 40, 10))).variants
    assert (variant.input_tokens, variant.output_tokens, variant.ms) == (50, 10, 900)
    assert variant.reward
    assert (variant.tips, variant.reacted, variant.counted, variant.reward.estimate) == (40, 10, 40, 0.25)
    assert variant.comparison is None
    assert variant.reward.low < 0.25 < variant.reward.high


def test_young_tips_are_in_no_rate_and_no_comparison_even_with_a_reaction() -> None:
    mature = [period(("v1", 400, 100), ("v2", 400, 110), day=DAY - 1)]
    young = period(("v1", 40, 0), ("v2", 40, 40), mature=False)
    report = report_on(*mature, young)
    assert [(v.tips, v.counted, v.young) for v in report.variants] == [(440, 400, 40)] * 2
    before = report_on(*mature)
    assert [v.reward for v in report.variants] == [v.reward for v in before.variants]
    assert [v.comparison for v in report.variants] == [v.comparison for v in before.variants]


@pytest.mark.parametrize(
    ("options", "baseline"),
    [
        ({"baseline": "v2"}, "v2"),
        ({"preferred": ("v9", "v3", "v2")}, "v3"),
        ({"preferred": ("v9",)}, "v1"),
        ({}, "v1"),
    ],
)
def test_the_baseline_is_the_requested_one_else_the_first_preferred_one_else_the_first_in_the_alphabet(
    options: dict[str, Any], baseline: str
) -> None:
    report = report_on(period(("v2", 9, 1), ("v1", 9, 1), ("v3", 9, 1)), **options)
    assert report.baseline == report.variants[0].label == baseline
    assert report.exploratory is ("baseline" in options)


def test_a_clear_difference_has_a_verdict_and_a_small_one_names_the_tips_it_needs() -> None:
    clear = report_on(period(("v1", 2_000, 400), ("v2", 2_000, 800)))
    assert words(clear).startswith("v2 helps more than v1 in this traffic: +")
    swapped = report_on(period(("v1", 2_000, 800), ("v2", 2_000, 400)))
    assert verdicts(swapped) == {"v2": "helps less"}
    small = report_on(period(("v1", 2_000, 400), ("v2", 2_000, 440)))
    assert words(small).startswith("It is not yet known whether v2 helps more than v1 in this traffic: +")
    assert "a verdict needs about" in words(small)
    (comparison,) = [variant.comparison for variant in small.variants if variant.comparison]
    assert comparison.tips == 4_000
    assert comparison.more_tips


def test_versions_that_could_not_be_drawn_together_have_no_difference_however_far_they_are_apart() -> None:
    alone = [
        period((version, 5_000, helpful), options={version: 1.0}) for version, helpful in (("v1", 0), ("v2", 5_000))
    ]
    report = report_on(*alone)
    (comparison,) = [variant.comparison for variant in report.variants if variant.comparison]
    assert (comparison.difference, comparison.verdict, comparison.tips) == (None, "not yet known", 0)
    assert "no mature tip for which both could have been drawn" in comparison.words


def test_a_change_of_shares_with_a_change_of_the_rate_gives_no_verdict() -> None:
    first = [
        period((version, n, n // 5), options={"v1": 0.9, "v2": 0.1}) for version, n in (("v1", 9_000), ("v2", 1_000))
    ]
    second = [period((version, 5_000, 2_500), options=EVEN, day=DAY + 1) for version in ("v1", "v2")]
    report = report_on(*first, *second)
    v1, v2 = report.variants
    assert v1.reward
    assert v2.reward
    assert v2.reward.estimate - v1.reward.estimate > 0.1  # pooled
    assert verdicts(report) == {"v2": "not yet known"}


@pytest.mark.parametrize(
    "options",
    [{"window": ReportWindow(segment="mood:low")}, {"baseline": "v2"}, {"window": ReportWindow(first=None, last=None)}],
)
def test_other_windows_segments_and_baselines_are_exploratory(options: dict[str, Any]) -> None:
    report = report_on(period(("v1", 2_000, 400), ("v2", 2_000, 800)), **options)
    default = options == {"window": ReportWindow()}
    assert report.exploratory is not default
    assert [*verdicts(report).values()] == ["helps more" if default else "exploratory"]


def test_each_of_several_verdicts_has_its_part_of_the_error_probability() -> None:
    options = dict.fromkeys(("v1", "v2", "v3"), 1 / 3)
    two = report_on(period(("v1", 900, 300), ("v2", 900, 330)))
    three = report_on(period(("v1", 900, 300), ("v2", 900, 330), ("v3", 900, 300), options=options))
    assert (two.verdict_alpha, three.verdict_alpha) == (0.05, 0.025)


def test_dependent_tips_are_counted_and_named_but_in_no_rate() -> None:
    ranked = PeriodCounts([*tips("v2", 50, 50, dependent=True)], [draws("v2", 50, 50, outcome="ranked")])
    base = period(("v1", 400, 100), ("v2", 400, 110))
    report = report_on(base, ranked)
    assert [(v.tips, v.counted, v.dependent) for v in report.variants] == [(400, 400, 0), (450, 400, 50)]
    assert [v.reward for v in report.variants] == [v.reward for v in report_on(base).variants]
    assert words(report).endswith("(50 tips excluded).")


def test_days_on_which_a_version_had_another_digest_are_left_out_of_its_comparison() -> None:
    def day(number: int, digest: str, helpful: int) -> PeriodCounts:
        return join(period(("v1", 500, 100), day=number), period(("v2", 500, helpful), day=number, digest=digest))

    old, new = "a" * 64, "b" * 64
    changed = period(("v2", 500, 500), day=DAY + 1, digest=new)
    report = report_on(day(DAY, old, 100), day(DAY + 1, old, 100), changed, day(DAY + 2, new, 400))
    found = {v.prompt_digest[0]: v.comparison for v in report.variants if v.comparison}
    assert {digest: comparison.tips for digest, comparison in found.items()} == {"a": 1_000, "b": 1_000}
    assert found["a"].verdict == "not yet known"
    assert found["b"].verdict == "helps more"
    assert {v.label for v in report.variants} == {"v1", "v2 (aaaaaaaa)", "v2 (bbbbbbbb)"}


def test_a_day_without_tips_of_a_version_counts_with_its_known_digest() -> None:
    report = report_on(
        period(("v1", 500, 100), day=DAY - 1),
        period(("v1", 500, 100), ("v2", 500, 100)),
        period(("v1", 500, 100), day=DAY + 1),
    )
    (comparison,) = [variant.comparison for variant in report.variants if variant.comparison]
    assert comparison.tips == 2_000


def test_with_reported_exposures_only_seen_tips_count() -> None:
    before = period(("v1", 100, 100), ("v2", 100, 0), day=DAY - 1)
    known = join(
        period(("v1", 400, 100), ("v2", 400, 120), seen=True), period(("v1", 50, 1), ("v2", 50, 50), seen=False)
    )
    report = report_on(before, known=known, exposure_reported=True)
    assert [(v.counted, v.unseen, v.exposure_unknown) for v in report.variants] == [(400, 150, 100)] * 2
    assert [v.reward and v.reward.estimate for v in report.variants] == [0.25, 0.3]
    (comparison,) = [variant.comparison for variant in report.variants if variant.comparison]
    assert comparison.tips == 800
    assert (report.funnel.reactions, report.funnel.unseen_reactions) == (271, 51)
    assert report.funnel.exposures_missing
    assumed = report_on(before, known=known)
    assert [v.counted for v in assumed.variants] == [550, 550]


def test_the_funnel_counts_each_step_of_the_drawn_version() -> None:
    before = period(("v1", 10, 4), day=DAY - 1)
    known = PeriodCounts(
        [*tips("v1", 30, 12, seen=True), *tips("v1", 20, 1)],
        [
            draws("v1", 30, 12, seen=True),
            draws("v1", 20, 1),
            draws("v1", 7, outcome="not_shown"),
            draws("v1", 5, outcome="fallback"),
            draws("v1", 3, outcome="failed", digest=""),
            draws("v1", 99, mature=False),
        ],
    )
    (row,) = report_on(before, known=known).funnel.rows
    assert (row.drawn, row.failed, row.fallback, row.written, row.shown) == (75, 3, 5, 67, 60)
    assert (row.unknown, row.seen, row.reacted) == (10, 30, 17)


@pytest.mark.parametrize(
    ("lost", "alarms"),
    [
        ([draws("v1", 5_000), draws("v2", 4_000)], ["drawn", "written"]),
        ([draws("v1", 5_000), draws("v2", 4_000), draws("v2", 1_000, outcome="failed", digest="")], ["written"]),
        ([draws("v1", 5_000), draws("v2", 4_000), draws("v2", 1_000, outcome="fallback")], ["written"]),
        ([draws("v1", 5_000), draws("v2", 5_000)], []),
        ([draws("v1", 5_000), draws("v2", 4_000), draws("v2", 1_000, outcome="per_user")], ["drawn", "written"]),
    ],
    ids=["lost", "failed", "fallback", "none", "per user"],
)
def test_a_step_in_which_versions_differ_raises_an_alarm(lost: list[DrawCounts], alarms: list[str]) -> None:
    funnel = report_on(PeriodCounts([], lost)).funnel
    assert [test.step for test in funnel.tests if test.alarm] == alarms
    assert funnel.alarm is bool(alarms)
    assert [test.step for test in funnel.tests] == ["drawn", "written"]


def test_versions_that_are_seen_differently_raise_an_alarm() -> None:
    known = PeriodCounts(
        [],
        [draws("v1", 5_000, seen=True), draws("v2", 4_500, seen=True), draws("v2", 500), draws("v2", 9, mature=False)],
    )
    funnel = report_on(known=known).funnel
    assert [test.step for test in funnel.tests if test.alarm] == ["seen"]
    assert funnel.tests[-1].observed == {"v1": 5_000, "v2": 4_500}


def simulated_reports(
    rng: np.random.Generator, rates: Sequence[float], days: int, daily: int
) -> Iterator[RewardReport]:
    versions = [f"v{index + 1}" for index in range(len(rates))]
    options = dict.fromkeys(versions, 1 / len(versions))
    periods = []
    for day in range(days):
        drawn = rng.multinomial(daily, [*options.values()])
        helpful = rng.binomial(drawn, rates).tolist()
        counts = [*zip(versions, drawn.tolist(), helpful, strict=True)]
        periods.append(period(*counts, day=DAY + day, options=options))
        yield report_on(*periods)


@pytest.mark.parametrize("versions", [2, 3])
def test_few_equal_versions_ever_get_a_verdict_in_daily_reports(versions: int) -> None:
    rng = np.random.default_rng(versions)
    runs = 60
    wrong = sum(
        any(
            {*verdicts(report).values()} != {"not yet known"}
            for report in simulated_reports(rng, [0.3] * versions, 10, 300)
        )
        for _ in range(runs)
    )
    assert wrong <= 0.05 * runs


def test_a_difference_of_ten_points_is_mostly_found() -> None:
    rng = np.random.default_rng(9)
    found = [[*simulated_reports(rng, [0.3, 0.4], 8, 300)][-1] for _ in range(20)]
    assert sum(verdicts(report) == {"v2": "helps more"} for report in found) >= 16


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
    assert http.get("/rewards", params={"segment": "mood:awful"}).json()["variants"] == []
    assert len(http.get("/rewards", params={"segment": "visits:returning"}).json()["variants"]) == 2
    first = http.get("/rewards", params={"from": "2026-01-31", "to": "2026-01-31"}).json()
    assert {variant["label"]: variant["tips"] for variant in first["variants"]} == {"v1": 1}
    backwards = http.get("/rewards", params={"from": "2026-02-02", "to": "2026-02-01"})
    assert (backwards.status_code, backwards.json()["errors"][0]["pointer"]) == (422, "#/to")
    unknown = http.get("/rewards", params={"baseline": "v9"})
    assert (unknown.status_code, unknown.json()["errors"][0]["allowed"]) == (422, ["v1", "v2-mentor"])
    assert unknown.json()["detail"].startswith("The baseline 'v9' has no tips in this window; it should be one of v1, ")
    no_day = http.get("/rewards", params={"to": "2026-02-30"}).json()
    assert no_day["errors"] == [{"pointer": "#/to", "detail": "should be a day, as 2026-01-31"}]
    for invalid in (
        {"from": "soon"},
        {"segment": "x" * 65},
        {"segment": "mood:é"},
        {"segment": "moood:low"},
        {"segment": "visits:often"},
        {"from": "\x00"},
    ):
        assert http.get("/rewards", params=invalid).status_code == 422
    everything = http.get("/rewards", params={"from": "0001-01-01", "to": "9999-12-31"})
    assert len(everything.json()["variants"]) == 2
