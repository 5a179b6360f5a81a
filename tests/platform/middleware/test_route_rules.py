"""The rules of routes: keys, limits and labels hold under any root path, in a mounted application and by any name."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp

from ml.platform.middleware.route_rules import InFlightLimit
from tests.conftest import Serve
from tests.platform.small_service import small_service
from tests.raw_http import connected, head
from tests.server import running

Place = Callable[[ASGIApp], tuple[ASGIApp, dict[str, Any], str]]
"""From a service to the application to run, options of the server, and the start of the service's address."""


def at_the_root(app: ASGIApp) -> tuple[ASGIApp, dict[str, Any], str]:
    return app, {}, ""


def under_a_root_path(app: ASGIApp) -> tuple[ASGIApp, dict[str, Any], str]:
    return app, {"root_path": "/tips"}, ""  # uvicorn puts it before each path: a proxy has removed it


def mounted(app: ASGIApp) -> tuple[ASGIApp, dict[str, Any], str]:
    return Starlette(routes=[Mount("/tips", app)]), {}, "/tips"


places = pytest.mark.parametrize("place", [at_the_root, under_a_root_path, mounted])

KEY = {"authorization": "Bearer first-key"}


@contextmanager
def placed(place: Place, **options: Any) -> Iterator[str]:
    router = APIRouter()
    router.post("/work")(_work)
    app, server_options, prefix = place(small_service(router, api_keys=["first-key"], **options))
    with running(app, **server_options) as url:
        yield url + prefix


async def _work() -> None: ...


@places
def test_only_open_routes_need_no_key(place: Place) -> None:
    with placed(place) as url:
        for path in ("/health/live", "/metrics", "/docs", "/docs/static/swagger-ui.css", "/openapi.json"):
            assert httpx.get(url + path).status_code == 200
        for path in ("/work", "/nothing", "/metricsx", "/health", "/docs/static/../../work"):
            assert httpx.post(url + path).status_code == 401
        assert httpx.post(f"{url}/work", headers=KEY).status_code == 200


@places
def test_the_limit_of_a_route_holds(place: Place) -> None:
    with placed(place, limits={_work: InFlightLimit(max_requests=0)}) as url:
        assert httpx.post(f"{url}/work", headers=KEY).status_code == 503


@places
def test_a_body_that_is_too_long_is_a_413(place: Place) -> None:
    with placed(place) as url:
        assert httpx.post(f"{url}/work", headers=KEY, content=b"x" * 100_000).status_code == 413


@places
def test_refused_requests_are_counted_under_their_route(place: Place) -> None:
    with placed(place, limits={_work: InFlightLimit(max_requests=0)}, body_timeout=0.2) as url:
        refused = [
            httpx.post(f"{url}/work"),
            httpx.post(f"{url}/work", headers=KEY),
            httpx.post(f"{url}/work", headers=KEY, content=b"x" * 100_000),
            httpx.get(f"{url}/work", headers=KEY),
            httpx.post(f"{url}/work", headers=KEY | {f"x-{number}": "" for number in range(101)}),
        ]
        path = httpx.URL(f"{url}/work").path
        slow = head(path, "authorization: Bearer first-key", "content-length: 10") + b"\r\n{"
        with connected(url, slow) as connection:
            assert b" 408 " in connection.recv(65_536)
        assert [response.status_code for response in refused] == [401, 503, 413, 405, 431]
        metrics = httpx.get(f"{url}/metrics").text
    for method, status in (("POST", 401), ("POST", 503), ("POST", 413), ("GET", 405), ("POST", 431), ("POST", 408)):
        assert f'http_request_seconds_count{{method="{method}",route="/work",status="{status}"}} 1.0' in metrics


def test_a_path_that_no_route_has_is_not_a_label() -> None:
    with placed(at_the_root) as url:
        httpx.post(f"{url}/nothing", headers=KEY)
        assert 'route="unmatched",status="404"' in httpx.get(f"{url}/metrics").text


def test_every_route_of_serving_but_the_open_ones_needs_a_key(serve: Serve) -> None:
    http = serve(api_keys=("first-key",))
    document = http.get("/openapi.json").json()
    is_open = {
        path: http.request(method, path).status_code != 401
        for path, operations in document["paths"].items()
        for method in operations
    }
    declared_open = {
        path: "security" not in operation
        for path, operations in document["paths"].items()
        for operation in operations.values()
    }
    assert is_open == declared_open
    assert {path for path, value in is_open.items() if value} == {"/health/live", "/health/ready", "/metrics"}
