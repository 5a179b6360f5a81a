"""Complete model cards: their figures are those of the store, and their pages show and escape all of them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser

from ml.experiments.comparison import difference, sum_pair
from ml.registry.cards import ModelCard
from ml.rollouts.cards import CardStore
from ml.store.hours import hour_of
from ml.store.rollup import EVERYONE
from ml.store.strata import DigestedVersion, strata_of
from tests.browser import serious_problems
from tests.example_tips import WINDOW, SetClock
from tests.rollouts.example_rollouts import HOSTILE, PASSWORD, fill, running_app
from tests.rollouts.scenario import DIGESTS, LEARNED, Scenario

ADA = ("ada", PASSWORD.get_secret_value())


@dataclass(frozen=True)
class Service:
    """A running service, its database and its clock."""

    address: str
    database: str
    clock: SetClock


@pytest.fixture(scope="module")
def service(filled: tuple[bytes, SetClock], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    content, clock = filled
    file = tmp_path_factory.mktemp("cards") / "tips.db"
    file.write_bytes(content)
    database = f"sqlite+aiosqlite:///{file}"
    with running_app(database, clock) as address:
        yield Service(address, database, clock)


def card_of(service: Service, name: str) -> ModelCard:
    answer = httpx.get(f"{service.address}/admin/cards/{name}", params={"format": "json"}, auth=ADA)
    assert answer.status_code == 200
    return ModelCard.model_validate_json(answer.text)


def test_the_live_figures_of_a_prompt_version_are_those_of_the_store(service: Service) -> None:
    found: dict[str, Any] = {}

    async def compute(scenario: Scenario) -> None:
        mature_before = hour_of(scenario.clock() - WINDOW)
        draws = await scenario.store.counts.draws(EVERYONE, range(2**31 - 1), mature_before)
        pair = [DigestedVersion(version, DIGESTS[version]) for version in ("v1", "v2-mentor")]
        sums = sum_pair(strata_of(draws, *pair), "v1", "v2-mentor")
        found["difference"] = difference(sums, alpha=0.05)
        found["tips"] = [draw for draw in draws if draw.prompt_version == "v2-mentor" and draw.mature]
        card = next(card for card in scenario.cards if card.version == "v2-mentor")
        store = CardStore(scenario.store.database, WINDOW, exposure_reported=True)
        found["unseen"] = await store.complete(card, scenario.clock())

    fill(service.database, service.clock, compute)
    card = card_of(service, "v2-mentor")
    assert card.live
    metrics = {metric.name: metric for metric in card.live.metrics}
    assert all(metric.source for metric in metrics.values())
    reward, compared = metrics["live_reward"], metrics["live_reward_difference"]
    assert reward.n == sum(draw.tips for draw in found["tips"]) == 60
    assert reward.value == pytest.approx(sum(draw.reward for draw in found["tips"]) / 60) == pytest.approx(0.4)
    assert (compared.value, compared.low, compared.high) == pytest.approx(
        (found["difference"].estimate, found["difference"].low, found["difference"].high), abs=1e-6
    )
    assert "v1 (11111111)" in compared.source
    assert (metrics["shadow_unusable"].n, metrics["shadow_excess_tokens"].n) == (80, 80)
    assert {each.name for each in card.live.slices} >= {"locale:de", "activity:working"}
    assert [(entry.from_stage, entry.to_stage, entry.actor) for entry in card.rollouts] == [
        *(("registered", "shadow", "ada"), ("shadow", "canary", "ada")),
    ]
    unseen = found["unseen"].live
    assert {metric.name for metric in unseen.metrics} == {"shadow_unusable", "shadow_slow", "shadow_excess_tokens"}


def test_the_calibration_of_a_policy_is_from_the_decisions_that_it_ranked_in_shadow(service: Service) -> None:
    card = card_of(service, LEARNED)
    assert card.live
    (in_shadow,) = card.live.calibration
    assert (in_shadow.predicted, in_shadow.observed, in_shadow.n) == (0.5, 0.5, 30)
    assert in_shadow.low <= 0.5 <= in_shadow.high
    assert [source.partition(":")[0] for source in card.live.sources] == ["Calibration"]
    assert {metric.name: metric.n for metric in card.live.metrics} == {"shadow_gain": 30, "shadow_agreement": 30}
    assert card.calibration  # those of the training stay


def test_a_language_model_has_no_live_figures_and_an_unknown_card_is_a_404(service: Service) -> None:
    assert card_of(service, "openai/good").live is None
    assert httpx.get(f"{service.address}/admin/cards/v8", auth=ADA).status_code == 404
    assert httpx.get(f"{service.address}/admin/cards/v1", params={"format": "exe"}, auth=ADA).status_code == 422
    for path in ("/admin/cards", "/admin/cards/v1"):
        assert httpx.get(f"{service.address}{path}").status_code == 401


def test_a_card_can_be_downloaded_as_markdown(service: Service) -> None:
    answer = httpx.get(f"{service.address}/admin/cards/v2-mentor", params={"format": "markdown"}, auth=ADA)
    assert answer.headers["content-type"].startswith("text/markdown")
    assert answer.headers["content-disposition"] == 'attachment; filename="prompt-v2-mentor.md"'
    for text in ("## Live metrics", r"live\_reward\_difference", "## Rollout history", "Warmer words."):
        assert text in answer.text
    assert json.loads(httpx.get(answer.url.copy_set_param("format", "json"), auth=ADA).text)["live"]["slices"]


def test_the_pages_are_accessible_and_escape_all_words(browser: Browser, service: Service) -> None:
    credentials: Any = {"username": ADA[0], "password": ADA[1]}
    page = browser.new_context(http_credentials=credentials, color_scheme="light").new_page()
    page.goto(f"{service.address}/admin/cards")
    assert page.locator(".complete").count() == page.locator(".cards li").count() == 6
    assert serious_problems(page) == []
    page.get_by_role("link", name=HOSTILE).click()
    assert page.locator("h1").inner_text() == HOSTILE
    assert page.get_by_text(HOSTILE, exact=True).count() >= 4
    assert page.get_by_text("There are no mature tips of this version yet.").is_visible()
    page.context.close()
    phone: Any = {"width": 390, "height": 844}
    context = browser.new_context(http_credentials=credentials, color_scheme="dark", viewport=phone)
    page = context.new_page()
    page.goto(f"{service.address}/admin/cards/{LEARNED}")
    assert serious_problems(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()
