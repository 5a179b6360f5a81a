"""The limit of concurrent requests to a route: who holds a slot, and for how long."""

import asyncio

import httpx
from starlette.types import Message, Receive, Scope, Send

from ml.platform.middleware.in_flight_limit import InFlightLimit, InFlightLimitMiddleware
from tests.conftest import Serve


def test_a_sequential_caller_is_never_refused(serve: Serve) -> None:
    http = serve(max_in_flight=1)
    assert [http.post("/generate", json={}).status_code for _ in range(200)] == [200] * 200


def test_a_sequential_caller_of_streams_is_never_refused(serve: Serve) -> None:
    http = serve(max_in_flight=1)
    responses: list[httpx.Response] = [http.post("/generate", json={"stream": True}) for _ in range(200)]
    assert [response.status_code for response in responses] == [200] * 200
    assert all("event: done" in response.text for response in responses)


def test_the_slot_is_free_before_the_last_byte_is_sent() -> None:
    in_flight: list[tuple[bytes, int]] = []
    middleware = InFlightLimitMiddleware(_respond_in_two_pieces, InFlightLimit(frozenset({"/work"}), max_requests=1))

    async def send(message: Message) -> None:
        in_flight.append((message.get("body", b""), middleware.in_flight))

    asyncio.run(middleware({"type": "http", "path": "/work"}, _receive_nothing, send))
    assert in_flight == [(b"", 1), (b"first", 1), (b"last", 0)]
    assert middleware.in_flight == 0


async def _respond_in_two_pieces(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"first", "more_body": True})
    await send({"type": "http.response.body", "body": b"last"})


async def _receive_nothing() -> Message:
    return {"type": "http.disconnect"}
