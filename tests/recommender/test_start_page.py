"""The start page of a recommender that runs alone: it links to the other pages, and its requests work."""

import json
import re
import shlex

import httpx
import pytest
from playwright.sync_api import Browser

from tests.browser import serious_problems
from tests.fixtures import ON_SQLITE, StartRecommender


def shown_request(text: str) -> tuple[str, dict[str, object]]:
    """Return the address and the body of a request that the page shows as a curl command."""
    words = shlex.split(text)
    return words[3], json.loads(words[words.index("-d") + 1])


@ON_SQLITE
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_links_to_the_other_pages_and_its_requests_work(
    start_recommender: StartRecommender, browser: Browser, width: int
) -> None:
    http: httpx.Client = start_recommender()
    page = browser.new_context(viewport={"width": width, "height": 800}).new_page()
    page.goto(str(http.base_url))
    assert serious_problems(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    tip_request, reaction_request = page.locator("pre").all_inner_texts()
    url, body = shown_request(tip_request)
    tip = httpx.post(url, json=body)
    assert tip.status_code == 200
    url, body = shown_request(reaction_request)
    assert httpx.post(url, json=body | {"tip_id": tip.json()["tip_id"]}).json()["outcome"] == "recorded"
    for href in page.eval_on_selector_all("main a", "links => links.map(link => link.href)"):
        assert httpx.get(href).status_code in {200, 503}  # not ready without a serving
    page.get_by_role("navigation").get_by_role("link", name="Rewards").click()
    assert page.title() == "Rewards by prompt version · Tips"
    page.get_by_role("navigation").get_by_role("link", name="Start").click()
    assert page.title() == "Tips: recommender"
    page.context.close()


@ON_SQLITE
def test_the_page_needs_the_password_or_a_browser_on_this_machine_but_no_key(
    start_recommender: StartRecommender,
) -> None:
    http = start_recommender(api_keys=("key",))
    assert http.get("/").status_code == 200
    assert http.get("/", headers={"host": "tips.example.org"}).status_code == 403
    guarded = start_recommender(admin_password="open sesame")
    assert guarded.get("/").status_code == 401
    page = guarded.get("/", auth=("me", "open sesame"))
    assert page.headers["content-security-policy"].startswith("default-src 'none'; ")
    assert not re.search(r"(?:src|href)=\"?(?:https?:)?//", page.text)
