"""The fixtures of all tests, and helpers to start the services and to wait."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest

from ml.pipelines.settings import PipelineSettings
from ml.recommender.settings import RecommenderSettings
from ml.serving.app import create_app
from ml.serving.litellm_adapter import import_litellm
from ml.serving.providers import KEY_VARIABLES
from ml.serving.settings import ServingSettings
from ml.standalone.app import create_app as create_both
from tests.browser import browser
from tests.fixtures import (
    clock,
    database,
    database_url,
    fake_serving,
    postgres_server,
    postgres_template,
    postgresql_database,
    recommender,
    redis_server,
    redis_url,
    sqlite_database,
    sqlite_template,
    start_recommender,
)
from tests.server import running
from tests.upstream import ADDRESS_VARIABLES, Upstream

__all__ = [
    "browser",
    "clock",
    "database",
    "database_url",
    "fake_serving",
    "postgres_server",
    "postgres_template",
    "postgresql_database",
    "recommender",
    "redis_server",
    "redis_url",
    "sqlite_database",
    "sqlite_template",
    "start_recommender",
]

# No deadline per example: on a busy machine any example can take longer than one.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")

Serve = Callable[..., httpx.Client]


LONGEST_FILES = (
    "tests/test_docs.py",
    "tests/test_new_prompt_version.py",
    "tests/test_rollout_walk.py",
    "tests/standalone/test_rollout_loop.py",
    "tests/store/test_kill.py",
    "tests/serving/test_embedded.py",
    "tests/store/test_storage_failures.py",
    "tests/simulation/test_service.py",
    "tests/deploy/test_topology.py",
    "tests/cli/test_serve.py",
    "tests/cli/test_evaluate.py",
    "tests/cli/test_train.py",
    "tests/cli/test_features.py",
    "tests/simulation/test_truth.py",
)
"""The files whose tests take half a minute or more, in this order before all others."""


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than cores, since tests wait for servers and processes more than a third of their time."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, so that no worker is left with one of them at the end."""
    ranks = {file: rank for rank, file in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: ranks.get(item.nodeid.partition("::")[0], len(ranks)))


def eventually(condition: Callable[[], bool], timeout: float = 60) -> bool:
    """Wait until a condition that another thread or process changes is true; False after `timeout` seconds.

    The timeout only prevents a failing test from hanging.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def becomes_ready(http: httpx.Client) -> bool:
    """Wait until the service is ready, so that the timeout of a request does not include the import of LiteLLM."""
    return eventually(lambda: http.get("/health/ready").status_code == 200)


@pytest.fixture(autouse=True)
def _unset_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ServingSettings.model_fields | RecommenderSettings.model_fields | PipelineSettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for variable in (*chain(*KEY_VARIABLES.values()), *ADDRESS_VARIABLES):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(scope="session")
def litellm_imported() -> None:
    """Import LiteLLM, which on busy cores takes longer than the timeout of a request."""
    import_litellm()


@pytest.fixture
def upstream(litellm_imported: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Upstream]:  # noqa: ARG001
    """A fake model server, which is also at the usual addresses of the providers, for fallback models."""
    upstream = Upstream()
    with running(upstream.app()) as upstream.url:
        for variable, value in upstream.environment().items():
            monkeypatch.setenv(variable, value)
        yield upstream


@contextmanager
def serving_client(settings: ServingSettings) -> Iterator[httpx.Client]:
    """Start serving, and yield a client for it."""
    with running(create_app(settings)) as url, httpx.Client(base_url=url, timeout=60) as http:
        yield http


@pytest.fixture
def serve(upstream: Upstream) -> Iterator[Serve]:
    """Start serving with a model of the fake model server, and return a client for it."""
    with ExitStack() as stack:

        def start(model: str = "good", *fallbacks: str, **settings: Any) -> httpx.Client:
            return stack.enter_context(serving_client(of_model(upstream, model, *fallbacks, **settings)))

        yield start


def of_model(upstream: Upstream, model: str, *fallbacks: str, **settings: Any) -> ServingSettings:
    """Return settings for serving with a model of the fake model server."""
    return ServingSettings(
        **{
            "tip_model": f"openai/{model}",
            "tip_model_fallbacks": tuple(f"openai/{fallback}" for fallback in fallbacks),
            "tip_model_api_base": f"{upstream.url}/v1",
            **settings,
        }
    )


@pytest.fixture
def serve_both(upstream: Upstream, tmp_path: Path) -> Iterator[Serve]:
    """Start both services in one process, each time on a new SQLite file, and return a client for them."""
    started: list[object] = []
    with ExitStack() as stack:

        def start(model: str = "good", *, serving: Mapping[str, Any] | None = None, **settings: Any) -> httpx.Client:
            settings = {"database_url": f"sqlite+aiosqlite:///{tmp_path}/{len(started)}.db", **settings}
            keys = {"api_keys": settings.get("api_keys", ())}
            app = create_both(of_model(upstream, model, **keys, **(serving or {})), RecommenderSettings(**settings))
            started.append(app)
            return stack.enter_context(httpx.Client(base_url=stack.enter_context(running(app)), timeout=60))

        yield start
