"""The reward page: it displays the figures of GET /rewards, is accessible, and escapes all values."""

import asyncio
import csv
import io
import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from playwright.sync_api import Browser, Page

from ml.recommender.app import create_app
from ml.recommender.settings import RecommenderSettings
from ml.rewards.pages import _cell
from ml.store.reactions import Reaction
from ml.store.tip_records import TipRecord
from ml.store.tips import open_tip_store
from tests.browser import serious_problems
from tests.server import running

NOW = datetime(2026, 3, 20, 12, 30, tzinfo=UTC)
HELPFUL_RATES = {"v1": 0.2, "v2-mentor": 0.6, "v3-coach": 0.22}
HOSTILE = "<script>$x$ &amp;"
HOSTILE_VERSIONS = {"=v1": 0.5, HOSTILE: 0.5}
FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\x00=1", "\x1f+1", " \x0b-1", "\u00a0=1", "＝1")


def tip(version: str, **fields: Any) -> TipRecord:
    defaults: dict[str, Any] = {
        "tip_id": uuid4(),
        "user_id": "u",
        "created_at": NOW - timedelta(days=2),
        "policy": "uniform",
        "policy_version": "1",
        "options": {version: 1.0},
        "probability": 1.0,
        "prompt_version_asked": version,
        "generation_id": "g",
        "prompt_version": version,
        "prompt_digest": "a1" * 32,
        "model": "m/x",
        "fallback": False,
        "signals": {},
        "segments": (),
        "tip": "Drink some water.",
        "input_tokens": 400,
        "output_tokens": 30,
        "ms": 900,
    }
    return TipRecord(**defaults | fields)


def many_tips() -> list[tuple[TipRecord, str | None]]:
    """Return tips with reactions: twenty days of three versions, one of which has two digests."""
    rng = random.Random(7)
    rows = []
    for index in range(1500):
        version = [*HELPFUL_RATES][index % 3]
        day = rng.randrange(20)
        helpful = rng.random() < HELPFUL_RATES[version]
        row = tip(
            version,
            created_at=NOW - timedelta(days=day),
            options=dict.fromkeys(HELPFUL_RATES, 1 / 3),
            probability=1 / 3,
            user_id=f"u{rng.randrange(60)}",
            prompt_digest=("c3" if version == "v3-coach" and day < 6 else "a1") * 32,
            segments=("mood:low" if rng.random() < 0.4 else "mood:good",),
            simulated=index < 400,
            fallback=index % 50 == 0,
            shown=index % 75 != 1,
            score_policy="linear" if index % 30 == 4 else None,
        )
        rows.append((row, "helpful" if helpful else rng.choice(["dismissed", None])))
    return rows


def hostile_tips() -> list[tuple[TipRecord, str | None]]:
    """Return tips with reactions: two versions with hostile names, drawn equally often, but one is mostly lost."""
    return [
        (tip(version, options=HOSTILE_VERSIONS, probability=0.5), "helpful" if index % 3 else None)
        for version, tips in (("=v1", 80), (HOSTILE, 8))
        for index in range(tips)
    ]


async def fill(url: str, rows: list[tuple[TipRecord, str | None]]) -> None:
    now = [NOW]
    async with open_tip_store(url, lambda: now[0], reaction_window=timedelta(hours=24)) as store:
        for at in sorted({row.created_at for row, _ in rows}):
            now[0] = at
            of_day = [(row, kind) for row, kind in rows if row.created_at == at]
            await asyncio.gather(*(store.add(row) for row, _ in of_day))
            await store.react([Reaction(row.tip_id, kind, at) for row, kind in of_day if kind])


def run_recommender(folder: Path, rows: list[tuple[TipRecord, str | None]], **fields: Any) -> Iterator[str]:
    database = f"sqlite+aiosqlite:///{folder / 'tips.db'}"
    with ThreadPoolExecutor(1) as thread:  # Playwright runs an event loop in this thread
        thread.submit(lambda: asyncio.run(fill(database, rows))).result()
    settings = RecommenderSettings(serving_url="http://127.0.0.1:9", database_url=database, **fields)
    with running(create_app(settings, clock=lambda: NOW)) as url:
        yield url


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a recommender with many tips."""
    yield from run_recommender(tmp_path_factory.mktemp("full"), many_tips())


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a recommender with hostile version names."""
    yield from run_recommender(tmp_path_factory.mktemp("hostile"), hostile_tips())


@pytest.fixture(scope="module")
def young(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a recommender with a version without counted tips, and one whose tips are all dependent."""
    rows: list[tuple[TipRecord, str | None]] = [(tip("v1"), "helpful" if index % 2 else None) for index in range(40)]
    rows += [(tip("v2-mentor", created_at=NOW), None) for _ in range(3)]
    rows += [(tip("v3-coach", policy="sticky"), "helpful") for _ in range(2)]
    yield from run_recommender(tmp_path_factory.mktemp("young"), rows)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a recommender with an admin password and without tips."""
    yield from run_recommender(tmp_path_factory.mktemp("guarded"), [], admin_password="open sesame")


def open_page(browser: Browser, url: str, **context: Any) -> Page:
    page = browser.new_context(**context).new_page()
    answer = page.goto(url)
    assert answer is not None
    assert answer.status == 200
    return page


@pytest.mark.parametrize(
    "context",
    [
        {"color_scheme": "light"},
        {"color_scheme": "dark"},
        {"color_scheme": "light", "viewport": {"width": 390, "height": 844}},
    ],
    ids=["light", "dark", "phone"],
)
def test_the_page_is_accessible(browser: Browser, full: str, hostile: str, young: str, context: dict[str, Any]) -> None:
    for url in (full, hostile, young):
        page = open_page(browser, f"{url}/admin/rewards", **context)
        assert serious_problems(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.context.close()


def test_the_page_needs_no_script_except_for_the_figures_per_user_and_no_other_host(
    browser: Browser, full: str
) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(f"{full}/admin/rewards")
    assert page.locator("figure svg").count() == 2
    assert [url for url in requested if not url.startswith((full, "data:"))] == []
    headers = httpx.get(f"{full}/admin/rewards").headers
    assert headers["content-security-policy"].startswith("default-src 'none'; ")
    assert re.search("script-src 'nonce-[^']+'", headers["content-security-policy"])
    page.get_by_role("link", name="Compute the figures").click()
    assert page.get_by_text("v2-mentor compared with v1 per user").is_visible()
    assert (headers["cache-control"], headers["referrer-policy"]) == ("no-store", "no-referrer")
    assert headers["x-content-type-options"] == "nosniff"
    context.close()


def test_the_page_displays_the_figures_of_get_rewards(browser: Browser, full: str) -> None:
    report = httpx.get(f"{full}/rewards").json()
    page = open_page(browser, f"{full}/admin/rewards")
    verdicts = page.locator(".verdicts li").all_inner_texts()
    words = [variant["comparison"]["words"] for variant in report["variants"] if variant["comparison"]]
    assert len(verdicts) == len(words) == 3
    assert all(any(verdict.endswith(sentence) for verdict in verdicts) for sentence in words)
    assert verdicts[0].startswith("v2-mentor helps more than v1 in this traffic: ")
    for variant, row in zip(report["variants"], page.locator("#rates-table tbody tr").all(), strict=True):
        cells = row.inner_text()
        assert variant["prompt_version"] in cells
        assert variant["prompt_digest"] == row.locator(".digest").get_attribute("title")
        assert f"{variant['counted']:,}" in cells
        assert f"{100 * variant['reward']['estimate']:.1f}%" in cells
        assert variant["comparison"] is None or variant["comparison"]["verdict"] in cells
    counts = numbers_of(page, "#counts-table tbody tr")
    for variant, numbers in zip(report["variants"], counts, strict=True):
        kinds = variant["reactions"].values()
        names = ("tips", "counted", "young", "dependent", "reacted")
        assert numbers[: 5 + len(kinds)] == [*(variant[name] for name in names), *kinds]
    page.context.close()


def test_the_figures_per_user_are_loaded_after_the_page(browser: Browser, full: str) -> None:
    page = open_page(browser, f"{full}/admin/rewards")
    page.locator("#per-user li").first.wait_for()
    shown = page.locator("#per-user li").all_inner_texts()
    comparisons = httpx.get(f"{full}/rewards/users").json()["comparisons"]
    assert shown == [comparison["words"] for comparison in comparisons]
    (mentor,) = [comparison for comparison in comparisons if comparison["label"] == "v2-mentor"]
    assert mentor["users"] == 60
    assert 0.2 < mentor["difference"]["low"] < mentor["difference"]["estimate"] < mentor["difference"]["high"] < 0.6
    assert serious_problems(page) == []
    page.context.close()


def test_the_totals_of_the_page_agree(browser: Browser, full: str) -> None:
    report = httpx.get(f"{full}/rewards").json()
    page = open_page(browser, f"{full}/admin/rewards")
    rows = numbers_of(page, "#counts-table tbody tr")
    (total,) = numbers_of(page, "#counts-table tfoot tr")
    assert total[:-3] == [sum(column) for column in zip(*rows, strict=True)][:-3]  # the last three are means
    for tips, counted, young, excluded, reacted, *reactions_and_means in (*rows, total):
        assert tips == counted + young + excluded
        assert reacted == sum(reactions_and_means[:-3])
    assert total[:4] == [report[name] for name in ("tips", "counted", "young", "dependent")]
    sentence = page.locator("text=Rates and verdicts count").inner_text()
    left_out = [int(re.match("[0-9]+", item)[0]) for item in page.locator(".left-out li").all_inner_texts()]  # type: ignore[index]
    assert sentence == f"Rates and verdicts count {1500 - sum(left_out):,} of the 1,500 tips; left out:"
    assert left_out == [report[name] for name in ("young", "dependent", "fallback", "not_shown")]
    assert sum(day["counted"] for variant in report["variants"] for day in variant["days"]) == report["counted"]
    page.context.close()


def test_no_column_is_cut_off_at_1280_pixels(browser: Browser, full: str, hostile: str, young: str) -> None:
    for url in (full, hostile, young):
        page = open_page(browser, f"{url}/admin/rewards", viewport={"width": 1280, "height": 900})
        hidden = page.eval_on_selector_all(".scroll", "all => all.map(each => each.scrollWidth - each.clientWidth)")
        assert hidden == [0, 0, 0]
        page.context.close()


def test_versions_without_counted_tips_have_a_dash_instead_of_a_rate(browser: Browser, young: str) -> None:
    page = open_page(browser, f"{young}/admin/rewards")
    cells = [row.locator("td").all_inner_texts() for row in page.locator("#rates-table tbody tr").all()]
    assert cells[1:] == [["0", "–", "–", "not yet known"]] * 2
    assert page.get_by_text("2 tips excluded, because a learned policy ranked them").is_visible()
    assert page.get_by_text("3 tips of the last 24 hours, which may still get a reaction").is_visible()
    plot = page.locator("figure svg").first.text_content()
    assert plot
    assert plot.count("no counted tips") == 2
    percents = [float(number) for number in re.findall(r"([0-9.]+)%", plot)]
    assert percents
    assert max(percents) <= 100
    row = list(csv.DictReader(io.StringIO(httpx.get(f"{young}/admin/rewards.csv").text)))[1]
    assert (row["prompt_version"], row["counted"], row["reward.estimate"], row["comparison.difference.low"]) == (
        *("v2-mentor", "0", "", ""),
    )
    page.context.close()


def test_without_counted_tips_the_page_has_tables_but_no_figures(browser: Browser, young: str) -> None:
    page = open_page(browser, f"{young}/admin/rewards?from=2026-03-20")
    assert page.locator("figure").count() == 0
    assert page.locator("#counts-table tbody tr").count() == 1
    page.context.close()


def test_a_version_with_two_digests_has_a_row_and_a_verdict_for_each(browser: Browser, full: str) -> None:
    page = open_page(browser, f"{full}/admin/rewards")
    rows = page.locator("#rates-table tbody tr", has_text="v3-coach")
    assert {row.locator(".digest").inner_text() for row in rows.all()} == {"a1a1a1a1", "c3c3c3c3"}
    verdicts = page.locator(".verdicts li", has_text="v3-coach").all_inner_texts()
    assert sorted(label for verdict in verdicts for label in re.findall(r"v3-coach \((\w+)\)", verdict)) == [
        *("a1a1a1a1", "c3c3c3c3"),
    ]
    page.context.close()


def test_the_numbers_of_simulated_and_excluded_tips_are_displayed(full: str) -> None:
    report = httpx.get(f"{full}/rewards").json()
    text = " ".join(httpx.get(f"{full}/admin/rewards").text.split())
    assert (report["simulated"], report["fallback"], report["not_shown"]) == (400, 30, 20)
    assert "Simulated data: 400 of the 1,500 tips were written for simulated users." in text
    assert "30 tips that a fallback model wrote" in text
    assert "20 candidates that were not shown" in text


def test_the_form_filters_and_its_empty_fields_are_unset(browser: Browser, full: str) -> None:
    page = open_page(browser, f"{full}/admin/rewards")
    page.get_by_role("button", name="Show").click()
    assert page.url.endswith("?from=&to=&segment=&baseline=")
    assert page.locator("#rates-table tbody tr").count() == 4
    page.get_by_label("From").fill("2026-03-10")
    page.get_by_label("Segment of users").fill("mood:low")
    page.get_by_label("Compare with").select_option("v2-mentor")
    page.get_by_role("button", name="Show").click()
    report = httpx.get(f"{full}/rewards?from=2026-03-10&segment=mood:low&baseline=v2-mentor").json()
    summary = page.locator("h1 + p").inner_text()
    stored = report["tips"] + report["fallback"] + report["not_shown"]
    assert summary.startswith(f"{stored} tips since 10 March 2026 (UTC), ")
    assert summary.endswith("for users in the segment mood:low; each version is compared with v2-mentor.")
    assert page.get_by_label("Segment of users").input_value() == "mood:low"
    assert page.get_by_label("Compare with").input_value() == "v2-mentor"
    with page.expect_download() as download:
        page.get_by_text("CSV").click()
    assert download.value.url.endswith("?from=2026-03-10&segment=mood%3Alow&baseline=v2-mentor")
    page.context.close()


def test_an_invalid_query_is_a_problem_document(full: str) -> None:
    for query in ("from=tomorrow", "baseline=v9", "from=2026-03-02&to=2026-03-01"):
        answer = httpx.get(f"{full}/admin/rewards?{query}")
        assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")


def test_version_names_and_queries_are_escaped(browser: Browser, hostile: str) -> None:
    page = open_page(browser, f"{hostile}/admin/rewards")
    assert page.locator("script:not([nonce])").count() == 0
    page.get_by_text("per user").wait_for()
    assert [HOSTILE in text for text in page.locator("figure svg").all_text_contents()] == [True, True]
    assert all(HOSTILE in body for body in page.locator("tbody").all_inner_texts())
    page.goto(f"{hostile}/admin/rewards?segment=mood:awful")
    assert page.get_by_label("Segment of users").input_value() == "mood:awful"
    assert page.get_by_text("No tips here").is_visible()
    refused = httpx.get(f"{hostile}/admin/rewards?segment=%22%3E%3Cscript%3E")
    assert (refused.status_code, refused.headers["content-type"]) == (422, "application/problem+json")
    assert "<script>" not in refused.text
    page.context.close()


def test_versions_that_were_not_stored_as_often_as_drawn_raise_an_alarm(
    browser: Browser, full: str, hostile: str
) -> None:
    page = open_page(browser, f"{hostile}/admin/rewards")
    alarm = page.get_by_role("alert").inner_text()
    assert alarm.startswith("These comparisons are not valid.")
    assert "=v1 80 instead of 44" in alarm
    page.goto(f"{full}/admin/rewards")
    assert page.get_by_role("alert").count() == 0
    page.context.close()


def test_the_csv_has_the_figures_of_get_rewards(full: str) -> None:
    answer = httpx.get(f"{full}/admin/rewards.csv?segment=mood:good")
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.headers["content-disposition"] == 'attachment; filename="rewards.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    variants = httpx.get(f"{full}/rewards?segment=mood:good").json()["variants"]
    for row, variant in zip(rows, variants, strict=True):
        del variant["days"]
        expected = flat(variant)
        if variant["comparison"] is None:
            expected |= {name: "" for name in row if name.startswith("comparison.")}
            del expected["comparison"]
        assert {name: value for name, value in row.items() if name != "comparison.words"} == {
            name: str(value) if value is not None else "" for name, value in expected.items() if "words" not in name
        }
        assert row["comparison.words"] == (variant["comparison"] or {"words": ""})["words"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_in_a_cell_is_quoted_also_behind_control_characters(text: str) -> None:
    assert _cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["v1", "v2-mentor", "1 - 1", "", -0.25, None])
def test_other_cells_are_unchanged(value: object) -> None:
    assert _cell(value) is value


def test_no_cell_of_the_csv_is_a_formula(hostile: str) -> None:
    rows = list(csv.DictReader(io.StringIO(httpx.get(f"{hostile}/admin/rewards.csv").text)))
    assert [row["prompt_version"] for row in rows] == [HOSTILE, "'=v1"]
    assert not any(cell.startswith(("=", "+", "@")) for row in rows for cell in row.values())


def test_without_tips_the_page_explains_how_to_request_them(browser: Browser, guarded: str) -> None:
    password = {"username": "me", "password": "open sesame"}
    page = open_page(browser, f"{guarded}/admin/rewards", http_credentials=password)
    assert page.get_by_text("POST /tips").is_visible()
    assert page.locator("svg, table").count() == 0
    assert serious_problems(page) == []
    page.context.close()
    rows = httpx.get(f"{guarded}/admin/rewards.csv", auth=("me", "open sesame")).text.splitlines()
    assert [row.split(",")[0] for row in rows] == ["prompt_version"]


def test_the_page_needs_the_password_or_a_browser_on_this_machine(full: str, guarded: str) -> None:
    for path in ("/admin/rewards", "/admin/rewards.csv", "/admin/rewards/users"):
        assert httpx.get(f"{full}{path}").status_code == 200
        assert httpx.get(f"{full}{path}", headers={"host": "tips.example.org"}).status_code == 403
        refused = httpx.get(f"{guarded}{path}", auth=("me", "open"))
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Basic ")
        assert httpx.get(f"{guarded}{path}").status_code == 401
        assert httpx.get(f"{guarded}{path}", auth=("me", "open sesame")).status_code == 200


def numbers_of(page: Page, selector: str) -> list[list[int]]:
    """Return the whole numbers in the cells of table rows."""
    rows = page.locator(selector).all()
    return [[int(cell.replace(",", "")) for cell in row.locator("td").all_inner_texts()] for row in rows]


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return all values of a JSON object by path."""
    if not isinstance(value, dict):
        return {name: value}
    return {
        path: inner
        for key, member in value.items()
        for path, inner in flat(member, f"{name}.{key}" if name else key).items()
    }
