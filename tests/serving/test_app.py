"""The application of serving: the resources that its lifespan opens and closes."""

import asyncio
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import pytest

from ml.features.online_store import OnlineStore, OnlineStoreUnavailable, open_online_store, replace_all
from ml.platform.background import BackgroundTasks
from ml.platform.telemetry import Telemetry
from ml.serving import app as app_module
from ml.serving.app import create_app, load_policies, open_state
from ml.serving.gateway import Gateway
from ml.serving.policies import ActivePolicies
from ml.serving.settings import ServingSettings
from tests.conftest import eventually, of_model
from tests.policies import TIPS, policy
from tests.server import TestClient
from tests.upstream import TIP, Upstream

AGGREGATES = {"tips_7d": 3.0}
SCORE_REQUEST = {
    "user_id": "u-1",
    "signals": {"mood": "low"},
    "candidates": [{"id": version, "prompt_version": version, "tip": tip} for version, tip in TIPS.items()],
}


@pytest.fixture
def store_file(tmp_path: Path) -> Path:
    """The file of an online store with one user."""
    file = tmp_path / "features.db"
    replace_all(f"sqlite:///{file}", [("u-1", AGGREGATES)], datetime.now(UTC))
    return file


@pytest.fixture
def settings(upstream: Upstream, store_file: Path, tmp_path: Path) -> ServingSettings:
    """Settings with a model, two policies, and an online store."""
    for name, seed in (("live", 1), ("other", 3)):
        (tmp_path / name).write_bytes(policy(name, seed=seed))
    return of_model(
        upstream,
        "good",
        score_policy=str(tmp_path / "live"),
        score_policies=(str(tmp_path / "other"),),
        online_store_url=f"sqlite:///{store_file}",
    )


def test_the_lifespan_of_one_application_can_run_twice(settings: ServingSettings) -> None:
    app = create_app(settings)
    for _ in range(2):
        with TestClient(app) as client:
            assert client.post("/generate", json={}).json()["tip"] == TIP
            answer = client.post("/score", json=SCORE_REQUEST).json()
            assert (answer["policy"]["name"], answer["aggregates"]) == ("live", AGGREGATES)
            assert eventually(lambda: client.get("/health/ready").status_code == 200)
            assert len(client.get("/policies").json()["policies"]) == 3


def test_a_failing_start_up_step_closes_the_resources_opened_before(
    settings: ServingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    reload_on_hangup = app_module._reload_on_hangup

    @asynccontextmanager
    async def recorded_store(url: str) -> AsyncIterator[OnlineStore]:
        async with AsyncExitStack() as stack:
            stack.callback(events.append, "close store")
            store = await stack.enter_async_context(open_online_store(url))
            events.append("open store")
            yield store

    @contextmanager
    def recorded_reload(policies: ActivePolicies) -> Iterator[None]:
        with ExitStack() as stack:
            stack.callback(events.append, "close reload")
            stack.enter_context(reload_on_hangup(policies))
            events.append("open reload")
            yield

    def fail(_: BackgroundTasks, __: str, work: Coroutine[Any, Any, None], **___: Any) -> NoReturn:
        work.close()
        raise OSError("the last step fails")

    monkeypatch.setattr(app_module, "open_online_store", recorded_store)
    monkeypatch.setattr(app_module, "_reload_on_hangup", recorded_reload)
    monkeypatch.setattr(BackgroundTasks, "run", fail)
    assert asyncio.run(tasks_after_failed_start(settings, OSError)) == set()
    assert events == ["open store", "open reload", "close reload", "close store"]
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_an_online_store_that_disappears_before_the_start_leaves_no_task_of_the_gateway(
    settings: ServingSettings, store_file: Path
) -> None:
    app = create_app(settings)
    content = store_file.read_bytes()
    store_file.unlink()
    assert asyncio.run(tasks_after_failed_start(settings, OnlineStoreUnavailable)) == set()
    with pytest.raises(OnlineStoreUnavailable), TestClient(app):
        pass
    store_file.write_bytes(content)
    with TestClient(app) as client:
        assert client.post("/score", json=SCORE_REQUEST).json()["aggregates"] == AGGREGATES


def test_a_warm_up_that_fails_is_not_ready(monkeypatch: pytest.MonkeyPatch, settings: ServingSettings) -> None:
    async def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Gateway, "warm_up", fail)
    with TestClient(create_app(settings)) as client:

        def has_failed() -> bool:
            return "warm-up (ZeroDivisionError)" in client.get("/health/ready").text

        assert eventually(has_failed)
        assert client.get("/health/ready").status_code == 503
        assert 'tips_background_task_failures_total{task="warm-up"} 1.0' in client.get("/metrics").text


async def tasks_after_failed_start(settings: ServingSettings, error: type[Exception]) -> set[asyncio.Task[Any]]:
    """Start serving, which raises `error`, and return the tasks that are left, such as one that imports LiteLLM."""
    with pytest.raises(error):
        async with open_state(settings, Telemetry(), load_policies(settings)):
            raise AssertionError("the start should have failed")
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
