"""The start page, in a browser, on the running service."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from ml.features.definitions import SIGNALS
from ml.features.request_schemas import Signals
from ml.serving.prompts import PROMPTS
from ml.standalone.playground import EXAMPLES, form_field
from tests.browser import serious_problems
from tests.conftest import Serve, eventually
from tests.upstream import TIP, UNUSABLE, Upstream


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(20_000)
    errors: list[object] = []

    def collect(error: object) -> None:
        errors.append(error)

    page.on("pageerror", collect)
    yield page
    context.close()
    assert not errors


def request_tips(page: Page, http: httpx.Client) -> None:
    page.goto(str(http.base_url))
    page.get_by_label("Goal").fill("sleep <3 & better")
    page.get_by_label("Sleep hours").fill("5.5")
    page.get_by_label("Mood").select_option("low")
    page.get_by_role("button", name="Write tips").click()


def test_a_visitor_gets_a_tip_of_every_version_and_reactions_change_the_rewards(
    serve_both: Serve, page: Page, upstream: Upstream
) -> None:
    http = serve_both()
    request_tips(page, http)
    for version in PROMPTS:
        card = page.locator(f"[data-version={version}]")
        expect(card.locator(".text")).to_have_text(TIP)
        expect(card).to_contain_text(PROMPTS[version].digest[:8])
    messages = [body["messages"][-1]["content"] for body in upstream.bodies]
    assert len(messages) == len(PROMPTS)
    assert all("sleep < 3 & better" in message and "5.5 hours" in message for message in messages)
    assert all(body["stream"] for body in upstream.bodies)
    page.locator("[data-version=v1]").get_by_role("button", name="Helps").click()
    expect(page.locator("[data-version=v1] .message")).to_have_text("Reaction stored: Helps.")
    page.locator("[data-version=v2-mentor]").get_by_role("button", name="Helps").click()
    page.locator("[data-version=v2-mentor]").get_by_role("button", name="Does not help").click()
    expect(page.locator("[data-version=v2-mentor] .message")).to_have_text("Reaction stored: Does not help.")
    expect(page.locator("[data-version=v2-mentor] [aria-pressed=true]")).to_have_text("Does not help")
    variants = {variant["label"]: variant for variant in http.get("/rewards").json()["variants"]}
    assert [variants[version]["tips"] for version in PROMPTS] == [1] * len(PROMPTS)
    assert [variants[version]["reacted"] for version in [*PROMPTS][:3]] == [1, 1, 0]
    kinds = [{kind for kind, n in variants[version]["reactions"].items() if n} for version in ("v1", "v2-mentor")]
    assert kinds == [{"helpful"}, {"not_helpful"}]
    page.get_by_role("link", name="Rewards").click()
    expect(page.locator("body")).to_contain_text("v2-mentor")


def test_one_click_fills_in_a_situation_and_replaces_the_previous_one(serve_both: Serve, page: Page) -> None:
    page.goto(str(serve_both().base_url))
    assert page.locator("#examples button").all_inner_texts() == [*EXAMPLES]
    assert len(EXAMPLES) == 6
    for label, signals in EXAMPLES.items():
        button = page.get_by_role("button", name=label)
        button.click()
        values = page.eval_on_selector_all("form [name]", "fields => fields.map(field => [field.name, field.value])")
        assert {name: value for name, value in values if value} == {
            name: value[0] if isinstance(value, list) else str(value) for name, value in signals.items()
        }
        expect(page.locator("#examples [aria-pressed=true]")).to_have_text(label)


def test_the_situation_of_an_example_reaches_every_version(serve_both: Serve, page: Page, upstream: Upstream) -> None:
    page.goto(str(serve_both().base_url))
    page.get_by_role("button", name="Hardly any steps").click()
    page.get_by_role("button", name="Write tips").click()
    expect(page.locator(".reactions:visible")).to_have_count(len(PROMPTS))
    messages = [body["messages"][-1]["content"] for body in upstream.bodies]
    assert len(messages) == len(PROMPTS)
    assert all("900 steps" in message and "Drink a glass of water before" in message for message in messages)


@pytest.mark.parametrize("label", [*EXAMPLES])
def test_every_example_is_a_valid_situation(label: str) -> None:
    signals = Signals.model_validate_json(json.dumps(EXAMPLES[label]))
    assert signals.model_dump(mode="json", exclude_none=True) == EXAMPLES[label]


def test_text_appears_while_the_model_is_still_writing(serve_both: Serve, page: Page) -> None:
    request_tips(page, serve_both("stall"))  # the model writes three pieces and then nothing
    for version in PROMPTS:
        card = page.locator(f"[data-version={version}]")
        expect(card.locator(".text")).to_have_text(re.compile("^Dim the"))
        expect(card).to_have_attribute("aria-busy", "true")


def test_the_pages_link_to_each_other_in_both_directions(serve_both: Serve, page: Page) -> None:
    http = serve_both()
    paths = {
        "Start": "/",
        "Model cards": "/admin/cards",
        "Rewards": "/admin/rewards",
        "Rollouts": "/admin/rollouts",
        "API": "/docs",
    }
    page.goto(str(http.base_url))
    navigation = page.get_by_role("navigation", name="Pages")
    for title, path in paths.items():
        navigation.get_by_role("link", name=title).click()
        page.wait_for_url(str(http.base_url.join(path)))
        assert navigation.locator("[aria-current=page]").inner_text() == title
        links = navigation.get_by_role("link").all()
        addresses = {link.inner_text(): link.evaluate("link => link.href") for link in links}
        assert addresses == {each: str(http.base_url.join(target)) for each, target in paths.items()}


def test_the_page_reports_an_exposure_of_each_tip_that_it_displays(serve_both: Serve, page: Page) -> None:
    http = serve_both()
    sent: list[Any] = []
    page.on(
        "request", lambda request: sent.append(request.post_data_json) if request.url.endswith("/exposures") else None
    )
    displayed = "#tips .tip[data-tip]"
    request_tips(page, http)
    expect(page.locator(displayed)).to_have_count(len(PROMPTS))
    recorded = 'tips_exposures_total{outcome="recorded"} ' + f"{len(PROMPTS):.1f}"
    assert eventually(lambda: recorded in http.get("/metrics").text, 20)
    tips = page.locator(displayed).evaluate_all("cards => cards.map((card) => card.dataset.tip)")
    assert sorted(body["tip_id"] for body in sent) == sorted(tips)


def test_a_tip_that_is_not_displayed_has_no_exposure(serve_both: Serve, page: Page) -> None:
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    request_tips(page, serve_both("says-markup"))
    expect(page.locator("[data-version=v1] .message")).to_contain_text("cannot be shown")
    expect(page.get_by_role("button", name="Write tips")).to_be_enabled()
    assert any(url.endswith("/playground/tips") for url in sent)
    assert not any(url.endswith("/playground/exposures") for url in sent)


def test_tips_of_the_page_are_not_part_of_the_sample_ratio(serve_both: Serve, page: Page) -> None:
    http = serve_both(tip_prompt_version=(("v1", 1.0), ("v2-mentor", 1.0)))
    request_tips(page, http)
    expect(page.locator(".reactions:visible")).to_have_count(len(PROMPTS))
    tests = http.get("/rewards").json()["funnel"]["tests"]
    assert all((test["observed"], test["p_value"]) == ({}, 1) for test in tests)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_accessible_and_fits_a_phone(serve_both: Serve, browser: Browser, scheme: str, width: int) -> None:
    http = serve_both()
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    request_tips(page, http)
    expect(page.locator(".reactions:visible")).to_have_count(len(PROMPTS))
    assert serious_problems(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_the_page_loads_nothing_from_other_hosts(serve_both: Serve, page: Page) -> None:
    http = serve_both()
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    request_tips(page, http)
    expect(page.locator(".reactions:visible")).to_have_count(len(PROMPTS))
    assert all(url.startswith((str(http.base_url), "data:")) for url in urls)


def test_the_page_has_a_field_for_every_signal(serve_both: Serve) -> None:
    text = serve_both().get("/").text
    assert all(f'name="{name}"' in text for name in SIGNALS)
    assert [form_field(name, signal.type).name for name, signal in SIGNALS.items()] == [*SIGNALS]


def test_a_failed_tip_shows_the_reason_and_can_be_requested_again(serve_both: Serve, page: Page) -> None:
    request_tips(page, serve_both("says-markup"))
    cards = page.locator(".tip")
    for index in range(len(PROMPTS)):
        expect(cards.nth(index).locator(".message")).to_contain_text("cannot be shown")
        expect(cards.nth(index).locator(".text")).to_be_empty()
    assert page.locator(".reactions:visible").count() == 0
    assert UNUSABLE["markup"] not in page.content()
    expect(page.get_by_role("button", name="Write tips")).to_be_enabled()


def test_html_from_a_model_is_shown_as_text_even_while_it_streams(serve_both: Serve, page: Page) -> None:
    page.add_init_script(
        "window.images = 0; new MutationObserver(() => window.images += document.images.length)"
        ".observe(document, { childList: true, subtree: true, characterData: true })"
    )
    request_tips(page, serve_both("says-html"))
    expect(page.locator("[data-version=v1] .message")).to_contain_text("markup")
    assert page.evaluate("window.images") == 0


def test_a_busy_service_is_retried_until_every_version_has_a_tip(serve_both: Serve, page: Page) -> None:
    http = serve_both("slow", serving={"max_in_flight": 1})
    request_tips(page, http)
    expect(page.locator(".reactions:visible")).to_have_count(len(PROMPTS), timeout=30_000)


def test_an_invalid_field_shows_the_error_of_the_service(serve_both: Serve, page: Page) -> None:
    http = serve_both()
    page.goto(str(http.base_url))
    page.get_by_label("Locale").fill("tlh-KLINGON")
    page.get_by_role("button", name="Write tips").click()
    expect(page.locator("[data-version=v1] .message")).to_contain_text("#/signals/locale")


def test_the_page_needs_no_key_but_a_configured_password(serve_both: Serve, page: Page, browser: Browser) -> None:
    http = serve_both(api_keys=("key",))
    request_tips(page, http)
    expect(page.locator(".reactions:visible")).to_have_count(len(PROMPTS))
    protected = serve_both(admin_password="open sesame")
    for path in ("/", "/admin/rewards"):
        assert protected.get(path).status_code == 401
    body = {"user_id": "u", "signals": {}, "prompt_version": "v1"}
    assert protected.post("/playground/tips", json=body).status_code == 401
    for path in ("/playground/exposures", "/playground/reactions"):
        assert protected.post(path, json={}).status_code == 401
    context = browser.new_context(http_credentials={"username": "operator", "password": "open sesame"})
    authenticated_page = context.new_page()
    request_tips(authenticated_page, protected)
    expect(authenticated_page.locator(".reactions:visible")).to_have_count(len(PROMPTS))
    context.close()


def test_another_site_cannot_use_the_page_through_a_browser_on_this_machine(serve_both: Serve) -> None:
    http = serve_both()
    assert http.get("/", headers={"host": "evil.example"}).status_code == 403
    body = {"user_id": "u", "signals": {}, "prompt_version": "v1"}
    assert http.post("/playground/tips", json=body, headers={"host": "evil.example"}).status_code == 403
    form = http.post("/playground/tips", content="{}", headers={"content-type": "text/plain"})
    assert form.status_code == 415  # the form of another site could send this content type


def test_an_unknown_prompt_version_is_a_422_that_names_the_known_versions(serve_both: Serve) -> None:
    body = {"user_id": "u", "signals": {}, "prompt_version": "v9"}
    answer = serve_both().post("/playground/tips", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["allowed"] == list(PROMPTS)
