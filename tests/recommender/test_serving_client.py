"""The client of serving: a serving that does not answer, versions that it does not know, and its catalogue."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ml.experiments.rollout_state import Catalogue
from ml.platform.errors import DeadlineExceeded, TipsError, UnknownVersion, UpstreamFailed, UpstreamUnreachable
from ml.platform.problem_json import error_from_problem
from ml.platform.settings import ConfigurationError
from ml.recommender.serving_client import ServingClient, check_versions, fetch_catalogue
from ml.registry.artifacts import RankingPolicy
from ml.serving.app import create_app as create_serving
from ml.serving.prompts import PROMPTS
from tests.conftest import of_model
from tests.databases import Database
from tests.fake_serving import DIGEST, POLICY_VERSION, TIP_RESPONSE, FakeServing, hang, ranking
from tests.fixtures import ON_SQLITE, StartRecommender
from tests.policies import policy
from tests.server import running
from tests.upstream import SECRET, Upstream

T = TypeVar("T")

PROBLEM = "urn:tips:problem:"


@ON_SQLITE
def test_an_unreachable_serving_is_a_502(start_recommender: StartRecommender, database: Database) -> None:
    answer = start_recommender(serving_url="http://127.0.0.1:1").post("/tips", json={"user_id": "u-1"})
    assert (answer.status_code, answer.json()["type"]) == (502, f"{PROBLEM}upstream-unreachable")
    assert database.count("tip_scores") == 0


async def _break_off() -> AsyncIterator[bytes]:
    yield b'{"tip'
    raise ConnectionAbortedError


@ON_SQLITE
@pytest.mark.parametrize(("crashes", "expected"), [(1, (200, 2)), (5, (502, 2))])
def test_a_serving_that_ends_during_a_request_is_asked_once_more(
    recommender: httpx.Client, fake_serving: FakeServing, crashes: int, expected: tuple[int, int]
) -> None:
    answers = iter([StreamingResponse(_break_off()) for _ in range(crashes)])
    fake_serving.respond(lambda: next(answers, None) or JSONResponse(TIP_RESPONSE))
    answer = recommender.post("/tips", json={"user_id": "u-1"})
    assert (answer.status_code, len(fake_serving.generate_bodies)) == expected
    assert answer.is_success or answer.json()["type"] == f"{PROBLEM}upstream-unreachable"


@ON_SQLITE
def test_a_request_that_serving_does_not_answer_in_time_is_abandoned(
    start_recommender: StartRecommender, fake_serving: FakeServing, database: Database
) -> None:
    abandoned = threading.Event()

    async def generate(request: Request) -> Response:
        response = await hang(request)
        abandoned.set()
        return response

    fake_serving.generate = generate
    # The operator's timeout is longer than the client's, so only the caller's timeout can end the request.
    recommender = start_recommender(generate_timeout_seconds=600)
    answer = recommender.post("/tips", json={"user_id": "u-1"}, headers={"X-Request-Timeout-Ms": "300"})
    assert (answer.status_code, answer.json()["type"]) == (504, f"{PROBLEM}deadline-exceeded")
    assert abandoned.wait(30)
    assert database.count("tip_scores") == 0


@ON_SQLITE
def test_no_text_of_the_provider_is_answered(
    start_recommender: StartRecommender, upstream: Upstream, database: Database
) -> None:
    for model, status in (("status-401", 502), ("policy", 422), ("nonsense-html", 502), ("says-essay", 502)):
        with running(create_serving(of_model(upstream, model))) as url:
            answer = start_recommender(serving_url=url).post("/tips", json={"user_id": "u-1"})
        assert answer.status_code == status
        assert SECRET not in answer.text
    assert database.count("tip_scores") == 0


def subclasses(root: type[Exception]) -> Iterator[type[Exception]]:
    """Yield the subclasses of an exception in its own library; others derive theirs from it, too."""
    for child in root.__subclasses__():
        if child.__module__ == root.__module__:
            yield child
            yield from subclasses(child)


@pytest.mark.parametrize("error_type", [*subclasses(httpx.HTTPError)])
def test_every_error_of_the_http_client_is_mapped(error_type: type[Exception]) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        if error_type is httpx.HTTPStatusError:
            raise httpx.HTTPStatusError(SECRET, request=request, response=httpx.Response(500))
        raise error_type(SECRET)

    async def ask() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(fail), base_url="http://serving") as http:
            await ServingClient(http, timeout=5).generate({}, None, timeout=5)

    with pytest.raises(TipsError) as raised:
        asyncio.run(ask())
    assert SECRET not in raised.value.detail
    if issubclass(error_type, httpx.TimeoutException):
        assert type(raised.value) is DeadlineExceeded
    elif issubclass(error_type, httpx.TransportError):
        assert type(raised.value) is UpstreamUnreachable
    else:
        assert type(raised.value) is UpstreamFailed


def test_versions_that_serving_does_not_know_are_a_configuration_error(fake_serving: FakeServing) -> None:
    fake_serving.digests = {"v1": DIGEST, "v2-mentor": "b" * 64}
    catalogue = fetch_catalogue(fake_serving.url, None)
    assert catalogue
    known = catalogue.prompts
    assert known == {"v1": DIGEST, "v2-mentor": "b" * 64}
    check_versions(("v1",), known)
    with pytest.raises(ConfigurationError, match="does not know v8, v9; it knows v1, v2-mentor"):
        check_versions(("v8", "v1", "v9"), known)
    assert fetch_catalogue("http://127.0.0.1:1", None) is None
    assert fetch_catalogue(f"{fake_serving.url}/generate", None) is None


def test_prompt_digests_are_those_of_serving_and_any_other_answer_is_an_error(fake_serving: FakeServing) -> None:
    async def prompt_digests(url: str) -> dict[str, str]:
        async with httpx.AsyncClient(base_url=url) as http:
            return await ServingClient(http, timeout=60).prompt_digests()

    assert asyncio.run(prompt_digests(fake_serving.url)) == {"v1": DIGEST, "v2-mentor": DIGEST}
    fake_serving.prompts_fail = True
    with pytest.raises(UpstreamFailed, match="answer to GET /prompts is not valid"):
        asyncio.run(prompt_digests(fake_serving.url))
    with pytest.raises(UpstreamUnreachable):
        asyncio.run(prompt_digests("http://127.0.0.1:1"))


CANDIDATES = [{"id": "a", "prompt_version": "v1", "tip": "Dim."}, {"id": "b", "prompt_version": "v1", "tip": "Walk."}]


def call(url: str, request: Callable[[ServingClient], Awaitable[T]]) -> T:
    async def run() -> T:
        async with httpx.AsyncClient(base_url=url) as http:
            return await request(ServingClient(http, timeout=60))

    return asyncio.run(run())


@pytest.mark.parametrize("background", [False, True])
def test_a_tip_that_nobody_waits_for_is_marked_as_background_work(fake_serving: FakeServing, background: bool) -> None:
    call(fake_serving.url, lambda serving: serving.generate({}, "v1", timeout=60, background=background))
    (headers,) = fake_serving.generate_headers
    assert headers.get("priority") == ("u=7" if background else None)


def test_the_policy_is_sent_and_a_ranking_by_another_one_is_an_error(fake_serving: FakeServing) -> None:
    async def score(serving: ServingClient, policy: str | None) -> str:
        ranking = await serving.score("a", "u-1", {}, CANDIDATES, timeout=60, policy=policy)
        return ranking.policy.version

    assert call(fake_serving.url, lambda serving: score(serving, None)) == POLICY_VERSION
    assert call(fake_serving.url, lambda serving: score(serving, POLICY_VERSION)) == POLICY_VERSION
    assert [body.get("policy", "none") for body in fake_serving.score_bodies] == ["none", POLICY_VERSION]

    async def ignore_policy(request: Request) -> Response:
        return JSONResponse(ranking(await request.json()))

    fake_serving.score = ignore_policy
    with pytest.raises(UpstreamFailed, match="ranking by another policy"):
        call(fake_serving.url, lambda serving: score(serving, "ba9876543210"))


def test_versions_that_serving_does_not_know_are_told_apart_from_other_refusals(upstream: Upstream) -> None:
    with running(create_serving(of_model(upstream, "good"))) as url:
        with pytest.raises(UnknownVersion, match="does not know the prompt version v9; it knows v1, "):
            call(url, lambda serving: serving.generate({}, "v9", timeout=60))
        with pytest.raises(UnknownVersion, match="not loaded the ranking policy 0123456789ab; it has uniform"):
            call(url, lambda serving: serving.score("a", "u-1", {}, CANDIDATES, timeout=60, policy="0123456789ab"))
        with pytest.raises(UpstreamFailed, match="did not rank"):
            call(url, lambda serving: serving.score("a", "u-1", {}, [*CANDIDATES] * 2, timeout=60, policy="uniform"))
        ranking = call(url, lambda serving: serving.score("a", "u-1", {}, CANDIDATES, timeout=60, policy="uniform"))
        assert ranking.policy.name == "uniform"
    # The slug is that of the other refusals: a problem that another service describes by it is one of these.
    refused = error_from_problem(UnknownVersion("x").problem(), None)
    assert type(refused) is UnknownVersion.__base__


def test_the_catalogue_is_what_serving_has(upstream: Upstream, tmp_path: Path) -> None:
    file = tmp_path / "policy.npz"
    file.write_bytes(policy())
    version = RankingPolicy.from_bytes(policy()).version
    expected = Catalogue(
        model="openai/good",
        default_prompt_version="v2-mentor",
        prompts={name: prompt.digest for name, prompt in PROMPTS.items()},
        default_policy=version,
        policies={"uniform": "uniform", version: "tips"},
    )
    settings = of_model(upstream, "good", default_prompt_version="v2-mentor", score_policy=str(file))
    with running(create_serving(settings)) as url:
        assert call(url, lambda serving: serving.catalogue()) == fetch_catalogue(url, None) == expected


def test_a_catalogue_that_is_not_valid_is_an_error(fake_serving: FakeServing) -> None:
    fake_serving.prompts_fail = True
    with pytest.raises(UpstreamFailed, match="GET /prompts is not valid"):
        call(fake_serving.url, lambda serving: serving.catalogue())
    with pytest.raises(UpstreamUnreachable):
        call("http://127.0.0.1:1", lambda serving: serving.catalogue())
