"""The limits of the request body: slow clients hold no slot of a route, and are refused."""

from contextlib import ExitStack

import pytest
from fastapi import APIRouter

from tests.conftest import Serve
from tests.platform.small_service import small_service
from tests.raw_http import connected, head, incomplete_request, read_to_end, status
from tests.server import running


@pytest.mark.parametrize(("path", "body"), [("/generate", {}), ("/score", {"candidates": [{"id": "a"}]})])
def test_clients_that_do_not_send_their_body_do_not_keep_others_waiting(
    serve: Serve, path: str, body: dict[str, object]
) -> None:
    http = serve(max_in_flight=1)
    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(connected(str(http.base_url), incomplete_request(path)))
        assert [http.post(path, json=body).status_code for _ in range(20)] == [200] * 20


def test_a_body_that_does_not_arrive_in_time_is_a_408_and_the_connection_is_closed() -> None:
    with running(small_service(body_timeout=0.2)) as url, connected(url, incomplete_request("/work")) as connection:
        response = read_to_end(connection)
    assert status(response) == 408
    assert b"application/problem+json" in response
    assert b"urn:tips:problem:request-timeout" in response
    assert b"The request body was not complete after 0.2 seconds." in response


def test_a_body_in_pieces_is_complete_for_the_handler() -> None:
    router = APIRouter()
    router.post("/echo")(_echo)
    request = head("/echo", "content-type: application/json", "content-length: 9", "connection: close")
    with running(small_service(router)) as url, connected(url, request + b'\r\n{"a"') as connection:
        connection.sendall(b": 12}")
        assert read_to_end(connection).endswith(b'{"a":12}')


async def _echo(body: dict[str, int]) -> dict[str, int]:
    return body
