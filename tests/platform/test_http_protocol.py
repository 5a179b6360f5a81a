"""The limits of the server for headers, connections and slow clients, on a running server."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from starlette.responses import StreamingResponse

from ml.platform.http_protocol import LimitedHttpProtocol
from ml.platform.middleware.route_rules import InFlightLimit
from tests.conftest import eventually
from tests.platform.small_service import small_service
from tests.raw_http import connected, head, read_to_end, status
from tests.server import running

LIVE = head("/health/live", method="GET")


class Impatient(LimitedHttpProtocol):
    """The protocol with short deadlines."""

    read_timeout = 0.2
    write_timeout = 0.2


@contextmanager
def service(**options: Any) -> Iterator[str]:
    """Run a service that has only the routes that every service has; yield its address."""
    with running(small_service(), **options) as url:
        yield url


def many_headers(count: int) -> dict[str, str]:
    return {f"x-{number}": "" for number in range(count)}


def test_more_than_100_headers_are_a_431() -> None:
    with service() as url:
        assert httpx.get(f"{url}/health/live", headers=many_headers(90)).status_code == 200
        refused = httpx.get(f"{url}/health/live", headers=many_headers(101))
    assert (refused.status_code, refused.json()["type"]) == (431, "urn:tips:problem:headers-too-large")
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["connection"] == "close"


def test_headers_above_64_kib_are_a_431() -> None:
    with service() as url:
        assert httpx.get(f"{url}/health/live", headers={"x": "y" * 60_000}).status_code == 200
        assert httpx.get(f"{url}/health/live", headers={"x": "y" * 65_536}).status_code == 431


@pytest.mark.parametrize("unfinished", [b"a:\r\n" * 101, b"a: " + b"x" * 1_000_000], ids=["number", "size"])
def test_headers_are_refused_before_they_are_complete_and_counted_under_their_route(unfinished: bytes) -> None:
    with service() as url:
        with connected(url, LIVE + unfinished) as connection:
            assert status(connection.recv(65_536)) == 431
        metrics = httpx.get(f"{url}/metrics").text
    assert 'http_request_seconds_count{method="GET",route="/health/live",status="431"} 1.0' in metrics


@pytest.mark.parametrize(
    ("start", "repeated"),
    [
        (LIVE, b"a:\r\n"),
        (LIVE, b"x"),
        (b"GET /", b"x"),
        (b"GET ", b"x"),
        (b"", b"\r\n"),
        (head("/metrics", "transfer-encoding: chunked") + b"\r\n0\r\n", b"a:\r\n"),
        (head("/metrics", "transfer-encoding: chunked") + b"\r\n0\r\n", b"x"),
        (head("/metrics", "transfer-encoding: chunked") + b"\r\n1", b";x"),
        (b"", LIVE + b"\r\n"),
    ],
    ids=[
        "headers",
        "header",
        "address",
        "malformed address",
        "empty lines",
        "trailers",
        "trailer",
        "chunk extension",
        "pipeline",
    ],
)
def test_a_request_without_an_end_is_not_read_on(start: bytes, repeated: bytes) -> None:
    with service() as url, connected(url, start) as connection, pytest.raises(ConnectionError):  # noqa: PT012
        for _ in range(20):
            connection.sendall(repeated * (1_000_000 // len(repeated)))


@pytest.mark.parametrize("start", [b"", LIVE, b"\r\n"], ids=["nothing", "a part", "an empty line"])
def test_a_client_that_does_not_complete_its_headers_is_disconnected(start: bytes) -> None:
    with service(http=Impatient) as url, connected(url, start) as connection:
        assert read_to_end(connection) == b""


@pytest.mark.parametrize("start", [LIVE, b"\r\n"], ids=["a part", "an empty line"])
def test_a_client_that_does_not_complete_the_headers_of_its_next_request_is_disconnected(start: bytes) -> None:
    with service(http=Impatient, timeout_keep_alive=60) as url, connected(url, LIVE + b"\r\n") as connection:
        assert status(connection.recv(65_536)) == 200
        connection.sendall(start)
        assert read_to_end(connection) == b""


def test_a_client_that_goes_on_sending_a_refused_body_is_disconnected() -> None:
    request = head("/health/live", "content-length: 1000000") + b"\r\n" + b"x" * 100_000
    with service(http=Impatient, timeout_keep_alive=60) as url, connected(url, request) as connection:
        assert status(connection.recv(65_536)) == 413
        connection.sendall(b"x")
        assert b"HTTP" not in read_to_end(connection)


def test_a_client_that_does_not_read_its_response_loses_its_slot() -> None:
    router, limit = APIRouter(), InFlightLimit(max_requests=1)
    router.get("/endless")(_endless)
    router.get("/work")(_work)
    app = small_service(router, limits={_endless: limit, _work: limit})
    with running(app, http=Impatient) as url, connected(url, head("/endless", method="GET") + b"\r\n"):
        assert eventually(lambda: httpx.get(f"{url}/work").status_code == 503)
        assert eventually(lambda: httpx.get(f"{url}/work").status_code == 200)


async def _endless() -> StreamingResponse:
    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65_536
            await asyncio.sleep(0)

    return StreamingResponse(pieces())


async def _work() -> None: ...


def test_idle_connections_do_not_keep_others_out() -> None:
    with service(limit_concurrency=5) as url, ExitStack() as stack:
        idle = [stack.enter_context(connected(url)) for _ in range(20)]
        assert httpx.get(f"{url}/health/live").status_code == 200
        closed = [read_to_end(connection) for connection in idle[:1]]
        assert closed == [b""]


def test_above_the_limit_of_busy_connections_a_request_is_a_503() -> None:
    waits = head("/health/live", "content-length: 10") + b"\r\n"
    with service(limit_concurrency=5) as url, ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(connected(url, waits))
        assert eventually(lambda: httpx.get(f"{url}/health/live").status_code == 503)
        refused = httpx.get(f"{url}/health/live")
    assert refused.json()["type"] == "urn:tips:problem:busy"
    assert refused.headers["retry-after"] == "1"


def test_pipelined_requests_are_answered_in_order() -> None:
    last = head("/metrics", "connection: close", method="GET") + b"\r\n"
    with service() as url, connected(url, (LIVE + b"\r\n") * 20 + last) as connection:
        response = read_to_end(connection)
    assert response.count(b'{"status":"live"}') == 20
    assert response.count(b"HTTP/1.1 200") == 21
