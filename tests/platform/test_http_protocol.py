"""The limits of the server for headers, connections and slow clients, on a running server."""

import asyncio
import socket
import threading
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
from tests.raw_http import connected, head, incomplete_request, read_to_end, status
from tests.server import running

LIVE = head("/health/live", method="GET")
SLOW_BODY = incomplete_request("/health/live")


class Impatient(LimitedHttpProtocol):
    """The protocol with short deadlines."""

    read_timeout = 0.2
    write_timeout = 0.2


class Strict(LimitedHttpProtocol):
    """The protocol that at the limit closes any connection that waits for its client."""

    min_silence = 0


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


@pytest.mark.parametrize("sent", [b"", LIVE, SLOW_BODY], ids=["nothing", "a part of the headers", "a part of the body"])
def test_clients_that_send_nothing_do_not_keep_others_out(sent: bytes) -> None:
    with service(http=Strict, limit_concurrency=5) as url, ExitStack() as stack:
        silent = [stack.enter_context(connected(url, sent)) for _ in range(20)]
        assert [httpx.get(f"{url}/health/live").status_code for _ in range(10)] == [200] * 10
        assert eventually(lambda: sum(is_closed(connection) for connection in silent) >= 15)


def test_far_above_the_limit_connections_are_closed_at_once() -> None:
    with service(limit_concurrency=4) as url, ExitStack() as stack:
        silent = [stack.enter_context(connected(url)) for _ in range(20)]
        assert eventually(lambda: sum(is_closed(connection) for connection in silent) == 14)


def is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_above_the_limit_of_busy_connections_a_request_is_a_503() -> None:
    router = APIRouter()
    router.get("/waits")(_wait)
    with running(small_service(router), limit_concurrency=5) as url, ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(connected(url, head("/waits", method="GET") + b"\r\n"))
        assert eventually(lambda: httpx.get(f"{url}/health/live").status_code == 503)
        refused = httpx.get(f"{url}/health/live")
    assert refused.json()["type"] == "urn:tips:problem:busy"
    assert refused.json()["detail"] == "The service is at its limit of connections."
    assert (refused.headers["retry-after"], refused.headers["connection"]) == ("1", "close")


async def _wait() -> None:
    await asyncio.Event().wait()


def test_no_request_is_lost_to_make_room() -> None:
    """A server that is busy has not read the requests of connections that seem idle to it."""
    is_blocked, released = threading.Event(), threading.Event()
    router = APIRouter()

    @router.get("/block")
    async def block() -> None:
        is_blocked.set()
        released.wait(60)

    with running(small_service(router), http=Strict, limit_concurrency=5) as url, ExitStack() as stack:
        used = [stack.enter_context(connected(url, LIVE + b"\r\n")) for _ in range(4)]
        assert [status(connection.recv(65_536)) for connection in used] == [200] * 4
        stack.enter_context(connected(url, head("/block", method="GET") + b"\r\n"))
        assert is_blocked.wait(60)
        for connection in used:
            connection.sendall(LIVE + b"\r\n")
        new = [stack.enter_context(connected(url, LIVE + b"\r\n")) for _ in range(2)]
        released.set()
        assert {status(connection.recv(65_536)) for connection in [*used, *new]} <= {200, 503}


def test_pipelined_requests_are_answered_in_order() -> None:
    last = head("/metrics", "connection: close", method="GET") + b"\r\n"
    with service() as url, connected(url, (LIVE + b"\r\n") * 20 + last) as connection:
        response = read_to_end(connection)
    assert response.count(b'{"status":"live"}') == 20
    assert response.count(b"HTTP/1.1 200") == 21
