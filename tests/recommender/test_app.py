"""The lifespan of the recommender: everything that was opened is closed, even if the start fails."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from ml.platform.errors import StorageUnavailable
from ml.platform.telemetry import Telemetry
from ml.recommender.app import create_app, open_state
from ml.recommender.selection import PromptSelector
from ml.recommender.settings import RecommenderSettings
from ml.serving.settings import ServingSettings
from ml.standalone.app import create_app as create_both
from ml.store.database import Database as Store
from ml.store.tips import TipStore
from tests.conftest import eventually
from tests.databases import Database
from tests.example_tips import SetClock
from tests.fake_serving import FakeServing
from tests.fixtures import ON_SQLITE, StartRecommender
from tests.policies import policy

UNREACHABLE = "postgresql+asyncpg://tips@127.0.0.1:1/tips"


class RecordingTransport(httpx.AsyncHTTPTransport):
    """A transport that records in `events` when it is opened and closed."""

    events: list[str]

    async def __aenter__(self) -> "RecordingTransport":
        self.events.append("HTTP client opened")
        await super().__aenter__()
        return self

    async def __aexit__(self, *exception: Any) -> None:
        self.events.append("HTTP client closed")
        await super().__aexit__(*exception)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The resources that are opened and closed, in order."""
    recorded: list[str] = []
    prepare, close = Store.prepare, Store.close

    async def recording_prepare(store: Store) -> None:
        recorded.append("database opened")
        await prepare(store)

    async def recording_close(store: Store) -> None:
        recorded.append("database closed")
        await close(store)

    monkeypatch.setattr(RecordingTransport, "events", recorded, raising=False)
    monkeypatch.setattr(httpx, "AsyncHTTPTransport", RecordingTransport)
    monkeypatch.setattr(Store, "prepare", recording_prepare)
    monkeypatch.setattr(Store, "close", recording_close)
    return recorded


async def start_and_stop(settings: RecommenderSettings, events: list[str]) -> None:
    events.clear()  # other fixtures open databases too
    app = create_app(settings)
    try:
        async with app.router.lifespan_context(app):
            pass
    finally:
        assert asyncio.all_tasks() == {asyncio.current_task()}


OPENED_AND_CLOSED = ["HTTP client opened", "database opened", "database closed", "HTTP client closed"]


def test_an_unreachable_database_fails_the_start_and_everything_opened_is_closed(events: list[str]) -> None:
    settings = RecommenderSettings(serving_url="http://127.0.0.1:1", database_url=UNREACHABLE)
    with pytest.raises(StorageUnavailable):
        asyncio.run(start_and_stop(settings, events))
    assert events == OPENED_AND_CLOSED


@ON_SQLITE
def test_rewards_that_cannot_be_read_fail_the_start_and_everything_opened_is_closed(
    events: list[str], database: Database, fake_serving: FakeServing
) -> None:
    database.rows("DROP TABLE reward_hours")
    settings = RecommenderSettings(
        serving_url=fake_serving.url,
        database_url=database.url,
        tip_prompt_version="v1,v2-mentor",
        tip_prompt_policy="thompson",
    )
    with pytest.raises(StorageUnavailable):
        asyncio.run(start_and_stop(settings, events))
    assert events == OPENED_AND_CLOSED


def test_everything_opened_is_closed_at_the_end(
    events: list[str], database: Database, fake_serving: FakeServing
) -> None:
    settings = RecommenderSettings(
        serving_url=fake_serving.url,
        database_url=database.url,
        tip_prompt_version="v1,v2-mentor",
        tip_prompt_policy="thompson",
    )
    asyncio.run(start_and_stop(settings, events))
    assert events == OPENED_AND_CLOSED


def test_a_failing_start_leaves_the_http_client_of_the_caller_open(events: list[str]) -> None:
    async def run() -> None:
        settings = RecommenderSettings(database_url=UNREACHABLE)
        async with httpx.AsyncClient(base_url="http://127.0.0.1:1") as http:
            with pytest.raises(StorageUnavailable):
                async with open_state(settings, Telemetry(), http):
                    pass
            assert events == ["database opened", "database closed"]
            assert not http.is_closed

    asyncio.run(run())


def not_ready(http: httpx.Client) -> str:
    """Return the detail of the readiness check; empty when the service is ready."""
    answer = http.get("/health/ready")
    assert answer.status_code in {200, 503}
    return answer.json().get("detail", "") if answer.status_code == 503 else ""


@ON_SQLITE
def test_a_writer_that_dies_is_a_503_everywhere_and_no_caller_waits(
    monkeypatch: pytest.MonkeyPatch, start_recommender: StartRecommender
) -> None:
    http = start_recommender()
    tip_id = http.post("/tips", json={"user_id": "u-1"}).json()["tip_id"]

    async def die(*_: Any) -> Any:
        raise asyncio.CancelledError

    monkeypatch.setattr(TipStore, "_insert", die)
    assert not_ready(http) == ""
    for path, body in (
        ("/tips", {"user_id": "u-1"}),
        ("/tips", {"user_id": "u-1"}),
        ("/reactions", {"tip_id": tip_id, "reaction": "done"}),
    ):
        answer = http.post(path, json=body)
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:tips:problem:storage-unavailable")
    assert not_ready(http).endswith("have ended: writer (cancelled).")
    assert 'tips_background_task_failures_total{task="writer"} 1.0' in http.get("/metrics").text
    assert http.get("/health/live").status_code == 200


@ON_SQLITE
def test_learning_that_dies_is_not_ready(
    monkeypatch: pytest.MonkeyPatch, start_recommender: StartRecommender, clock: SetClock
) -> None:
    http = start_recommender(tip_prompt_version="v1,v2-mentor", tip_prompt_policy="thompson")
    assert 'tips_background_task_failures_total{task="learning"} 0.0' in http.get("/metrics").text

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(PromptSelector, "learn", fail)
    clock.go(hours=1)
    assert eventually(lambda: not_ready(http).endswith("have ended: learning (ZeroDivisionError)."))
    assert http.post("/tips", json={"user_id": "u-1"}).status_code == 200


@pytest.mark.parametrize(
    ("prompt_policy", "candidates", "ranking_policy", "warnings"),
    [
        ("thompson", 3, "linear", ["learning_from_ranked_tips"]),
        ("thompson", 3, "uniform", []),
        ("thompson", 1, "linear", []),
        ("uniform", 3, "linear", []),
    ],
)
def test_a_prompt_policy_that_would_learn_from_ranked_tips_is_a_warning_at_the_start(
    fake_serving: FakeServing, prompt_policy: str, candidates: int, ranking_policy: str, warnings: list[str]
) -> None:
    fake_serving.policy = ranking_policy
    settings = RecommenderSettings(
        serving_url=fake_serving.url,
        tip_prompt_version=(("v1", 1.0), ("v2-mentor", 1.0)),
        tip_prompt_policy=prompt_policy,
        tip_candidates=candidates,
    )
    with capture_logs() as logs:
        create_app(settings)
    assert [line["event"] for line in logs] == warnings
    assert [line["policy"] for line in logs] == ["linear"] * len(warnings)


def test_both_services_in_one_process_give_the_same_warning(tmp_path: Path) -> None:
    (tmp_path / "policy.npz").write_bytes(policy())
    settings = RecommenderSettings(
        tip_prompt_version=(("v1", 1.0), ("v2-mentor", 1.0)), tip_prompt_policy="thompson", tip_candidates=2
    )
    with capture_logs() as logs:
        create_both(ServingSettings(score_policy=str(tmp_path / "policy.npz")), settings)
    assert [(line["event"], line["log_level"]) for line in logs] == [("learning_from_ranked_tips", "warning")]
    assert "best of 2 candidates" in logs[0]["reason"]
