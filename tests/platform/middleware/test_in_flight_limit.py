"""The limit of concurrent requests to a route: which requests hold a slot, and for how long."""

import asyncio

import httpx
from fastapi import APIRouter
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from ml.platform.middleware.in_flight_limit import InFlightLimitMiddleware
from ml.platform.middleware.route_rules import InFlightLimit, RouteRules, RouteRulesMiddleware
from tests.conftest import Serve
from tests.platform.small_service import small_service


def test_a_sequential_caller_is_never_refused(serve: Serve) -> None:
    http = serve(max_in_flight=1)
    assert [http.post("/generate", json={}).status_code for _ in range(200)] == [200] * 200


def test_a_sequential_caller_of_streams_is_never_refused(serve: Serve) -> None:
    http = serve(max_in_flight=1)
    responses = [http.post("/generate", json={"stream": True}) for _ in range(200)]
    assert [response.status_code for response in responses] == [200] * 200
    assert all("event: done" in response.text for response in responses)


def test_the_slot_is_free_before_the_last_byte_is_sent() -> None:
    limit = InFlightLimit(max_requests=1)
    in_flight: list[tuple[bytes, int]] = []

    async def send(message: Message) -> None:
        in_flight.append((message.get("body", b""), limit.in_flight))

    middleware = RouteRulesMiddleware(
        InFlightLimitMiddleware(_respond_in_two_pieces),
        routes=[Route("/work", _respond_in_two_pieces)],
        rules=lambda _: RouteRules("/work", limit=limit),
    )
    asyncio.run(middleware({"type": "http", "method": "GET", "path": "/work"}, _receive_nothing, send))
    assert in_flight == [(b"", 1), (b"first", 1), (b"last", 0)]
    assert limit.in_flight == 0


def test_requests_in_the_background_take_no_room_from_others() -> None:
    limit = InFlightLimit(max_requests=2)
    for background in (True, True):
        assert limit.admits(background=background)
        limit.count(1, background=background)
    assert not limit.admits(background=True)
    for _ in range(2):
        assert limit.admits(background=False)
        limit.count(1, background=False)
    assert not limit.admits(background=False)
    limit.count(-1, background=True)
    assert not limit.admits(background=True)
    limit.count(-1, background=True)
    limit.count(-1, background=False)
    assert limit.admits(background=True)


def test_the_header_of_a_request_decides_which_room_it_takes() -> None:
    router = APIRouter()
    entered, release = asyncio.Event(), asyncio.Event()

    @router.post("/work")
    async def work() -> str:
        entered.set()
        await release.wait()
        return "done"

    app = small_service(router, limits={work: InFlightLimit(max_requests=1)})

    async def send_one_of_each() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as http:
            background = {"Priority": "u=7"}
            first = asyncio.create_task(http.post("/work", headers=background))
            await entered.wait()
            refused = await http.post("/work", headers=background)
            entered.clear()
            other = asyncio.create_task(http.post("/work"))
            await entered.wait()
            release.set()
            return [(await first).status_code, refused.status_code, (await other).status_code]

    assert asyncio.run(asyncio.wait_for(send_one_of_each(), timeout=60)) == [200, 503, 200]


async def _respond_in_two_pieces(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"first", "more_body": True})
    await send({"type": "http.response.body", "body": b"last"})


async def _receive_nothing() -> Message:
    return {"type": "http.disconnect"}


def test_above_the_limit_requests_are_refused_even_if_no_handler_ever_waits() -> None:
    router = APIRouter()
    router.post("/work")(_answer_at_once)
    app = small_service(router, limits={_answer_at_once: InFlightLimit(max_requests=3)})

    async def send_all_at_once() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as http:
            answers = await asyncio.gather(*(http.post("/work", json={}) for _ in range(10)))
            return sorted(answer.status_code for answer in answers)

    assert asyncio.run(send_all_at_once()) == [200] * 3 + [503] * 7


async def _answer_at_once() -> None: ...
