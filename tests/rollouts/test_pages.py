"""The page of rollouts: what it shows, its forms, and whose forms it accepts."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page

from ml.store.proposals import Proposal, Proposals
from tests.browser import serious_problems
from tests.databases import Database
from tests.example_tips import SetClock
from tests.rollouts.example_rollouts import HOSTILE, PASSWORD, fill, running_app
from tests.rollouts.scenario import LEARNED, Scenario

ADA = ("ada", PASSWORD.get_secret_value())
SAME_SITE = {"sec-fetch-site": "same-origin"}
PAUSE = {"action": "pause", "rollout": "4", "expected": "8", "reason": "Wait."}


@dataclass(frozen=True)
class Service:
    """A running service and its database."""

    url: str
    database: Database

    def last_event(self) -> dict[str, Any]:
        return self.database.rows("SELECT * FROM rollout_events ORDER BY id DESC LIMIT 1")[0]


@pytest.fixture(scope="module")
def shown(filled: tuple[bytes, SetClock], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose rollouts no test changes."""
    yield from service(filled, tmp_path_factory)


@pytest.fixture
def changing(filled: tuple[bytes, SetClock], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with rollouts that a test changes."""
    yield from service(filled, tmp_path_factory)


def service(
    filled: tuple[bytes, SetClock], tmp_path_factory: pytest.TempPathFactory, **options: Any
) -> Iterator[Service]:
    content, clock = filled
    file = tmp_path_factory.mktemp("copy") / "tips.db"
    file.write_bytes(content)
    database = Database(f"sqlite+aiosqlite:///{file}")
    with running_app(database.url, SetClock(clock.now), **options) as url:
        yield Service(url, database)


def open_page(browser: Browser, url: str, **context: Any) -> Page:
    credentials: Any = {"username": ADA[0], "password": ADA[1]}
    page = browser.new_context(http_credentials=credentials, **context).new_page()
    answer = page.goto(f"{url}/admin/rollouts")
    assert answer
    assert answer.status == 200
    return page


def post(url: str, form: dict[str, str], headers: dict[str, str] = SAME_SITE, **options: Any) -> httpx.Response:
    return httpx.post(f"{url}/admin/rollouts", data=form, headers=headers, **{"auth": ADA, **options})


@pytest.mark.parametrize(
    "context",
    [{"color_scheme": "light"}, {"color_scheme": "dark", "viewport": {"width": 390, "height": 844}}],
    ids=["light", "dark-phone"],
)
def test_the_page_is_accessible_also_with_all_its_forms_open(
    browser: Browser, shown: Service, context: dict[str, Any]
) -> None:
    page = open_page(browser, shown.url, **context)
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert serious_problems(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.context.close()


def test_the_page_shows_stages_gates_slices_and_events_and_escapes_all_words(browser: Browser, shown: Service) -> None:
    page = open_page(browser, shown.url, java_script_enabled=False)
    assert [stage.inner_text() for stage in page.locator("[aria-current=step] .stage").all()] == [
        *("canary", "shadow", "shadow"),
    ]
    canary = page.locator("#rollout-4")
    assert canary.get_by_text("25 % of tips", exact=True).is_visible()
    answer = httpx.get(f"{shown.url}/rollouts/4").json()
    gates = answer["gates"]
    for row, gate in zip(canary.locator("table.gates tbody tr").all(), gates, strict=True):
        cells = row.inner_text()
        assert gate["figure"] in cells
        assert gate["bound"] in cells
        assert ("passed" if gate["passed"] else "failed") in cells
    assert canary.get_by_text("a drop of the mean reward from").first.is_visible()
    canary.get_by_text("Slices of the traffic: 0 harmed").click()
    assert canary.locator("table.slices tbody tr").count() == len(answer["slices"]) > 0
    hostile = page.locator("#rollout-6")
    assert hostile.locator("table.gates .result.unknown").count() == 3
    assert HOSTILE in hostile.locator("h3").inner_text()
    newest = page.locator(".events.card, .card > .events").first.locator("> li")
    texts = [item.inner_text() for item in newest.all()]
    assert f"{LEARNED} started: registered → shadow" in texts[0]
    assert "gates passed" in texts[0]
    assert "not gated" in texts[1]
    assert texts[2].count(HOSTILE) == 3  # version, actor and reason
    assert page.locator("b b, script").count() == 0
    assert page.get_by_text("Rollout 2: v3-few-shot rolled back").is_visible()
    page.context.close()


def test_a_form_needs_a_reason_and_its_event_names_the_user(browser: Browser, changing: Service) -> None:
    page = open_page(browser, changing.url, java_script_enabled=False)
    canary = page.locator("#rollout-4")
    canary.get_by_text("Promote to canary, with 50 % of all tips").click()
    canary.get_by_role("button", name="Promote").click()
    assert page.url.endswith("/admin/rollouts")  # the browser asks for the reason
    canary.locator("textarea:visible").fill("It  helps,\nas the gates say.")
    canary.get_by_role("button", name="Promote").click()
    assert page.url.endswith("/admin/rollouts?event=9#rollout-4")
    done = "Recorded as event 9: v2-mentor given a larger share: canary with 50 % of tips."
    assert page.get_by_role("status").inner_text() == done
    event = changing.last_event()
    assert (event["action"], event["share"], event["gated"]) == ("ramp", 0.5, 1)
    assert (event["actor"], event["reason"]) == ("ada", "It helps, as the gates say.")
    page.context.close()


def test_a_refusal_and_a_conflict_show_the_page_again_with_their_sentence(browser: Browser, changing: Service) -> None:
    first, second = (open_page(browser, changing.url, java_script_enabled=False) for _ in range(2))
    policy = first.locator("#rollout-8")
    policy.get_by_text("Promote to canary, with 1 % of all tips").click()
    policy.locator("textarea:visible").fill("Soon.")
    with first.expect_response("**/admin/rollouts") as refused:
        policy.get_by_role("button", name="Promote").click()
    assert refused.value.status == 409
    alert = first.get_by_role("alert").inner_text()
    assert "The gate shadow_decisions fails." in alert
    assert "Your reason was: Soon." in alert
    policy.get_by_text("Promote to canary, with 1 % of all tips").click()
    policy.locator("textarea:visible").fill("Now.")
    policy.get_by_label("Force").check()
    policy.get_by_role("button", name="Promote").click()
    assert first.get_by_role("status").is_visible()
    assert not changing.last_event()["gated"]
    assert first.locator(".badge.forced:visible").count() == 1
    canary = second.locator("#rollout-4")
    canary.get_by_text("Pause …").click()
    canary.locator("textarea:visible").fill("Wait.")
    with second.expect_response("**/admin/rollouts") as conflict:
        canary.get_by_role("button", name="Pause").click()
    assert conflict.value.status == 409
    assert "Somebody else has changed a rollout since" in second.get_by_role("alert").inner_text()
    assert changing.last_event()["id"] == 9
    first.context.close()
    second.context.close()


def test_a_rollout_can_be_paused_resumed_rolled_back_and_started(changing: Service) -> None:
    moves = [
        *({"action": action, "rollout": "4"} for action in ("pause", "resume", "rollback")),
        {"action": "start", "kind": "prompt", "version": "v3-few-shot", "segment": " locale:de "},
    ]
    for number, move in enumerate(moves, 8):
        answer = post(changing.url, {**move, "expected": str(number), "reason": "Test."})
        assert answer.status_code == 303, answer.text
        assert changing.last_event()["action"] == move["action"]
    assert changing.last_event()["segment"] == "locale:de"


def test_a_wrong_form_changes_nothing(shown: Service) -> None:
    for change, status in (
        ({"reason": " \n "}, 422),
        ({"reason": "\u202e\x00"}, 422),
        ({"action": "promote", "rollout": "99"}, 404),
        ({"action": "start", "version": "v3-few-shot", "segment": "<i>"}, 422),
        ({"expected": "-1", "extra": "1"}, 422),
    ):
        answer = post(shown.url, PAUSE | change)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8"), change
        assert "Nothing was changed." in answer.text
        assert "<i>" not in answer.text
    assert shown.last_event()["id"] == 8


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://tips.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1"},
    ],
    ids=str,
)
def test_a_form_of_another_site_or_without_a_site_is_refused(shown: Service, headers: dict[str, str]) -> None:
    assert post(shown.url, PAUSE, headers).status_code == 403
    assert shown.last_event()["id"] == 8


def test_a_form_needs_the_password_a_name_and_the_type_of_forms(shown: Service) -> None:
    password = ADA[1]
    assert post(shown.url, PAUSE, auth=None).status_code == 401
    assert post(shown.url, PAUSE, auth=("ada", "open")).status_code == 401
    for name in ("", "  ", "a\x07", "a" * 129):
        answer = post(shown.url, PAUSE, auth=(name, password))
        assert answer.status_code == 401, name
        assert answer.headers["www-authenticate"].startswith("Basic ")
    as_json = httpx.post(f"{shown.url}/admin/rollouts", json=PAUSE, headers=SAME_SITE, auth=ADA)
    assert as_json.status_code == 415
    broken = {"content-type": "application/x-www-form-urlencoded", **SAME_SITE}
    for body in (b"reason=%ff", b"\xff", b"&".join([b"a=1"] * 21)):
        answer = httpx.post(f"{shown.url}/admin/rollouts", content=body, headers=broken, auth=ADA)
        assert answer.status_code == 400
    assert httpx.get(f"{shown.url}/admin/rollouts").status_code == 401
    assert httpx.put(f"{shown.url}/admin/rollouts", auth=ADA).status_code == 405
    assert shown.last_event()["id"] == 8


def test_without_a_password_the_page_is_read_only(
    browser: Browser, filled: tuple[bytes, SetClock], tmp_path_factory: pytest.TempPathFactory
) -> None:
    for running in service(filled, tmp_path_factory, password=None, serving_answers=False):
        url = running.url
        page = open_page(browser, url)
        assert page.locator("button, form, textarea").count() == 0
        assert page.get_by_text("This page is read-only").is_visible()
        assert page.get_by_text("Serving does not answer").is_visible()
        page.context.close()
        assert post(url, PAUSE).status_code == 403
        assert httpx.get(f"{url}/admin/rollouts", headers={"host": "tips.example"}).status_code == 403


def test_without_rollouts_the_page_says_what_is_not_gated_and_what_could_start(
    browser: Browser, sqlite_database: Database
) -> None:
    with running_app(sqlite_database.url, SetClock()) as url:
        page = open_page(browser, url)
        assert page.get_by_text("Prompt versions are not gated before the first rollout of one.").is_visible()
        assert page.get_by_text("Ranking policies are not gated").is_visible()
        prompts = page.locator("#prompt")
        assert page.locator("#policy option").all_text_contents() == [LEARNED]
        prompts.get_by_text("Start a rollout …").click()
        prompts.get_by_label("Version").select_option("v2-mentor")
        prompts.locator("textarea").fill("The first one.")
        prompts.get_by_role("button", name="Start").click()
        assert page.url.endswith("/admin/rollouts?event=2#rollout-2")
        assert page.locator("#prompt .champion").inner_text().split()[:2] == ["champion", "v1"]
        page.context.close()


async def _propose(scenario: Scenario) -> None:
    evidence = {"held_out": {"gain": {"value": 0.12, "low": 0.04, "high": 0.2}}, "day": HOSTILE}
    proposal = Proposal("policy", LEARNED, scenario.clock(), "models:/tips/3", evidence)
    await Proposals(scenario.store.database).put(proposal)


def test_a_proposal_is_shown_with_its_gates_and_evidence_and_started_by_its_form(
    browser: Browser, sqlite_database: Database
) -> None:
    clock = SetClock()
    fill(sqlite_database.url, clock, _propose)
    with running_app(sqlite_database.url, clock) as url:
        page = open_page(browser, url, java_script_enabled=False, viewport={"width": 390, "height": 844})
        proposal = page.get_by_role("article").filter(has_text="models:/tips/3")
        assert proposal.get_by_role("heading").inner_text().split() == [LEARNED, "proposed"]
        (gates,) = [each["gates"] for each in httpx.get(f"{url}/rollouts").json()["proposals"]]
        assert proposal.locator("table.gates tbody tr").count() == len(gates) > 0
        proposal.get_by_text("Evidence of the proposal").click()
        assert '"low": 0.04' in proposal.locator("pre").inner_text()
        assert HOSTILE in proposal.locator("pre").inner_text()
        proposal.get_by_text("Start the rollout").click()
        proposal.locator("textarea:visible").fill("The nightly policy.")
        proposal.get_by_role("button", name="Start").click()
        assert page.get_by_role("status").inner_text().startswith("Recorded as event 2")
        assert page.get_by_text("models:/tips/3").count() == 0  # its rollout has begun
        assert page.locator("#rollout-2").get_by_text("shadow", exact=True).first.is_visible()
        page.context.close()
    (event,) = sqlite_database.rows("SELECT * FROM rollout_events WHERE id = 2")
    assert (event["kind"], event["version"], event["action"], event["actor"]) == ("policy", LEARNED, "start", "ada")
    assert json.loads(event["evidence"])["proposal"]["day"] == HOSTILE


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_with_a_proposal_is_accessible(browser: Browser, sqlite_database: Database, width: int) -> None:
    clock = SetClock()
    fill(sqlite_database.url, clock, _propose)
    with running_app(sqlite_database.url, clock) as url:
        page = open_page(browser, url, viewport={"width": width, "height": 844})
        page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        assert serious_problems(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.context.close()


def test_the_champion_can_be_rolled_back_to_the_one_before(sqlite_database: Database) -> None:
    async def promote(scenario: Scenario) -> None:
        rollouts = scenario.rollouts
        who: dict[str, Any] = {"actor": "ada", "reason": "Test.", "force": True}
        event = await rollouts.start("prompt", "v2-mentor", **who)
        await rollouts.promote(event.rollout, **who)
        await rollouts.promote(event.rollout, share=1.0, **who)

    clock = SetClock()
    fill(sqlite_database.url, clock, promote)
    with running_app(sqlite_database.url, clock) as url:
        page = httpx.get(f"{url}/admin/rollouts", auth=ADA).text
        assert "The previous champion, v1, gets all tips again." in page
        answer = post(url, {"action": "rollback", "rollout": "2", "expected": "4", "reason": "Complaints."})
        assert answer.status_code == 303
        (champion,) = httpx.get(f"{url}/rollouts").json()["champions"]
        assert (champion["version"], champion["rollout"]) == ("v1", 1)
