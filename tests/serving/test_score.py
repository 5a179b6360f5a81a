"""POST /score, through the whole service."""

import asyncio
import itertools
import json
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from scipy import special
from starlette.types import Receive, Scope, Send

from ml.features.definitions import CANDIDATE, SIGNALS
from ml.features.online_store import replace_all
from ml.platform.settings import ConfigurationError
from ml.serving.app import create_app
from ml.serving.routes import MAX_CONCURRENT_RANKINGS
from ml.serving.settings import ServingSettings
from tests.conftest import eventually
from tests.policies import LIKED, TIPS, policy
from tests.process import TIPS as COMMAND
from tests.process import run, service
from tests.server import running

Start = Callable[..., httpx.Client]

CANDIDATES = [{"id": version, "prompt_version": version, "tip": tip} for version, tip in TIPS.items()]
JSON = {"content-type": "application/json"}
UNIFORM = {"name": "uniform", "version": "uniform"}
NO_MODEL = {"tip_model": "openai/none", "tip_model_api_base": "http://127.0.0.1:9/v1"}


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    """The file of a learned policy."""
    path = tmp_path / "policy.npz"
    path.write_bytes(policy())
    return path


@pytest.fixture
def start() -> Iterator[Start]:
    """Start serving and return a client for it."""
    with ExitStack() as stack:

        def start_serving(**settings: Any) -> httpx.Client:
            app = create_app(ServingSettings(**{**NO_MODEL, **settings}))
            return stack.enter_context(httpx.Client(base_url=stack.enter_context(running(app)), timeout=60))

        yield start_serving


def body(**changes: Any) -> dict[str, Any]:
    return {"event_id": "d-1", "signals": {"mood": "low"}, "candidates": CANDIDATES} | changes


def pointers(answer: httpx.Response) -> list[str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return [error["pointer"] for error in answer.json()["errors"]]


def test_without_a_policy_all_candidates_have_the_same_probability(start: Start) -> None:
    answer = start().post("/score", json=body()).json()
    assert answer["policy"] == UNIFORM
    assert answer["event_id"] == "d-1"
    assert answer["chosen"] in TIPS
    assert answer["scores"] == [{"id": version, "score": 0.5, "probability": pytest.approx(1 / 3)} for version in TIPS]


def test_a_learned_policy_ranks_candidates_by_the_signals(start: Start, policy_file: Path) -> None:
    http = start(score_policy=str(policy_file))
    for mood, liked in LIKED.items():
        answer = http.post("/score", json=body(signals={"mood": mood})).json()
        assert answer["policy"]["name"] == "tips"
        assert len(answer["policy"]["version"]) == 12
        best = max(answer["scores"], key=lambda scored: scored["score"])
        assert best["id"] == liked
        assert best["probability"] > 0.8
        assert [scored["id"] for scored in answer["scores"]] == [*TIPS]
        assert all(0 <= scored["score"] <= 1 and scored["probability"] > 0 for scored in answer["scores"])
        assert sum(scored["probability"] for scored in answer["scores"]) == pytest.approx(1, abs=1e-12)


def test_a_request_names_one_of_the_loaded_policies(start: Start, policy_file: Path, tmp_path: Path) -> None:
    others = [tmp_path / name for name in ("newer.npz", "same.npz", "newest.npz")]
    for file, blob in zip(others, (policy("newer", seed=3), policy(), policy("newest", seed=4)), strict=True):
        file.write_bytes(blob)
    http = start(score_policy=str(policy_file), score_policies=",".join(map(str, others)))
    listed = http.get("/policies").json()
    assert [info["name"] for info in listed["policies"]] == ["uniform", "tips", "newer", "newest"]
    assert listed["policies"][0] == UNIFORM
    assert listed["default"] == listed["policies"][1]["version"]
    answers = [http.post("/score", json=body(policy=info["version"])).json() for info in listed["policies"]]
    assert [answer["policy"] for answer in answers] == listed["policies"]
    assert len({json.dumps(answer["scores"]) for answer in answers}) == 4
    assert http.post("/score", json=body()).json() == http.post("/score", json=body(policy=None)).json() == answers[1]


@pytest.mark.parametrize("unknown", ["0123456789ab", "tips", "", "x" * 1_000])
def test_a_policy_that_is_not_loaded_is_a_422_with_the_loaded_versions(
    start: Start, policy_file: Path, unknown: str
) -> None:
    http = start(score_policy=str(policy_file))
    answer = http.post("/score", json=body(policy=unknown))
    assert (answer.status_code, pointers(answer)) == (422, ["#/policy"])
    loaded = [info["version"] for info in http.get("/policies").json()["policies"]]
    assert answer.json()["errors"][0]["allowed"] == loaded
    assert len(answer.json()["detail"]) < 200


def test_the_default_policy_is_uniform_without_the_setting(start: Start, policy_file: Path) -> None:
    http = start(score_policies=str(policy_file))
    listed = http.get("/policies").json()
    assert (listed["default"], len(listed["policies"])) == ("uniform", 2)
    assert http.post("/score", json=body()).json()["policy"] == UNIFORM


def test_the_same_event_gets_the_same_choice_from_any_replica(start: Start, policy_file: Path) -> None:
    first, second = start(score_policy=str(policy_file)), start(score_policy=str(policy_file))
    for number in range(30):
        request = body(event_id=f"d-{number}", signals={})
        assert first.post("/score", json=request).json() == second.post("/score", json=request).json()


def test_an_event_without_an_id_gets_a_new_id_that_repeats_the_choice(start: Start) -> None:
    http = start()
    first = http.post("/score", json={"candidates": CANDIDATES}).json()
    assert http.post("/score", json={"candidates": CANDIDATES, "event_id": first["event_id"]}).json() == first
    assert http.post("/score", json={"candidates": CANDIDATES}).json()["event_id"] != first["event_id"]


def test_candidates_are_chosen_with_their_probabilities(start: Start, policy_file: Path) -> None:
    http = start(score_policy=str(policy_file))
    # Without signals several candidates have similar scores, so the distribution is not concentrated on one.
    request = {
        "signals": {},
        "candidates": [*({"id": f"c{number}", "prompt_version": "v9"} for number in range(4)), *CANDIDATES],
    }
    n = 4_000

    def score(number: int) -> dict[str, Any]:
        answer: dict[str, Any] = http.post("/score", json={**request, "event_id": f"e{number}"}).json()
        return answer

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(score, range(n)))
    probabilities = {scored["id"]: scored["probability"] for scored in answers[0]["scores"]}
    observed = Counter(answer["chosen"] for answer in answers)
    statistic = sum((observed[candidate] - n * p) ** 2 / (n * p) for candidate, p in probabilities.items())
    assert special.chdtrc(len(probabilities) - 1, statistic) > 0.001


@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_the_aggregates_of_the_user_are_read_from_the_online_store_with_their_time(
    start: Start, policy_file: Path, tmp_path: Path, request: pytest.FixtureRequest, store: str
) -> None:
    url = f"sqlite:///{tmp_path}/features.db" if store == "sqlite" else request.getfixturevalue("redis_url")
    aggregates, now = {"reward_rate_30d": 0.75, "tips_7d": 3.0}, datetime.now(UTC)
    replace_all(url, [("u-1", aggregates)], now)
    http = start(score_policy=str(policy_file), online_store_url=url)
    answer = http.post("/score", json=body(user_id="u-1")).json()
    assert (answer["aggregates"], answer["aggregates_at"]) == (aggregates, now.isoformat().replace("+00:00", "Z"))
    for request_body in (body(user_id="u-2"), body()):
        answer = http.post("/score", json=request_body).json()
        assert (answer["aggregates"], answer["aggregates_at"]) == ({}, None)


def test_without_its_online_store_a_candidate_is_chosen_without_aggregates(start: Start, policy_file: Path) -> None:
    http = start(score_policy=str(policy_file), online_store_url="redis://:secret@127.0.0.1:1/0")
    for _ in range(2):
        answer = http.post("/score", json=body(user_id="u-1"))
        assert answer.status_code == 200
        assert (answer.json()["policy"]["name"], answer.json()["aggregates"]) == ("tips", {})
    assert "tips_online_store_failures_total 2.0" in http.get("/metrics").text


def test_a_redis_that_refuses_the_password_stops_the_start(redis_url: str) -> None:
    url = redis_url.replace("redis://", "redis://nobody:s3cret@")
    sentence = f"^ONLINE_STORE_URL: {redis_url} refuses the user, the password or the database\\.$"
    with pytest.raises(ConfigurationError, match=sentence):
        create_app(
            ServingSettings(tip_model="openai/none", tip_model_api_base="http://127.0.0.1:9", online_store_url=url)
        )


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"candidates": []}, "#/candidates"),
        ({"candidates": [{"id": f"c{number}"} for number in range(51)]}, "#/candidates"),
        ({"candidates": [{"id": "a"}, {"id": "b"}, {"id": "a"}]}, "#/candidates/2/id"),
        ({"candidates": [{"tip": "Dim the lights."}]}, "#/candidates/0/id"),
        ({"candidates": [{"id": "a", "colour": "red"}]}, "#/candidates/0/colour"),
        ({"candidates": [{"id": "a", "tip": 7}]}, "#/candidates/0/tip"),
        ({"candidates": [{"id": "a", "tip": "x" * 281}]}, "#/candidates/0/tip"),
        ({"candidates": [{"id": "a", "prompt_version": "v1|a x"}]}, "#/candidates/0/prompt_version"),
        *(
            ({"candidates": [{"id": bad}]}, "#/candidates/0/id")
            for bad in ("a|b", "a:b", "a\nb", "a b", "", "ä", "x" * 129, 7, None)
        ),
        ({"event_id": "x" * 10_000}, "#/event_id"),
        ({"event_id": "a\nb"}, "#/event_id"),
        ({"user_id": ""}, "#/user_id"),
        ({"signals": {"shoe_size": 43}}, "#/signals/shoe_size"),
        ({"signals": {"stress": 11}}, "#/signals/stress"),
        ({"policy": "other"}, "#/policy"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_invalid_field_is_a_422_that_points_at_it(start: Start, changes: dict[str, Any], pointer: str) -> None:
    answer = start().post("/score", json=body(**changes))
    assert (answer.status_code, pointers(answer)) == (422, [pointer])
    assert len(answer.content) < 2_000


def test_an_unknown_field_is_an_error_with_the_known_fields(start: Start) -> None:
    http = start()
    errors = http.post("/score", json=body(candidates=[{"id": "a", "colour": "red"}])).json()["errors"]
    assert errors[0]["allowed"] == ["id", *CANDIDATE]
    errors = http.post("/score", json=body(signals={"shoe_size": 43})).json()["errors"]
    assert errors[0]["allowed"] == [*SIGNALS]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_refused(start: Start, number: str) -> None:
    content = f'{{"signals": {{"sleep_hours": {number}}}, "candidates": [{{"id": "a"}}]}}'
    assert start().post("/score", content=content, headers=JSON).status_code == 422


def test_a_body_of_a_megabyte_is_a_413(start: Start) -> None:
    candidates = [{"id": f"c{number}", "tip": "x" * 20_000} for number in range(50)]
    assert start().post("/score", json=body(candidates=candidates)).status_code == 413


def test_fifty_candidates_are_ranked(start: Start, policy_file: Path) -> None:
    candidates = [{"id": f"c{number}", "tip": "x" * 280} for number in range(50)]
    answer = start(score_policy=str(policy_file)).post("/score", json=body(candidates=candidates)).json()
    assert len(answer["scores"]) == 50


def test_above_the_limit_requests_are_a_503() -> None:
    settings: dict[str, Any] = NO_MODEL
    app = create_app(ServingSettings(**settings))

    async def send_all_at_once() -> list[httpx.Response]:
        async with app.router.lifespan_context(app) as state:

            async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
                await app({**scope, "state": dict(state or {})}, receive, send)

            async with httpx.AsyncClient(transport=httpx.ASGITransport(with_state), base_url="http://serving") as http:
                return await asyncio.gather(*(http.post("/score", json=body()) for _ in range(20)))

    responses = asyncio.run(send_all_at_once())
    refused = [response for response in responses if response.status_code == 503]
    assert len(refused) == 20 - MAX_CONCURRENT_RANKINGS
    assert all(response.json()["type"] == "urn:tips:problem:busy" for response in refused)
    assert all(response.headers["retry-after"] == "1" for response in refused)
    assert {response.status_code for response in responses} == {200, 503}


def test_during_reloads_each_answer_comes_from_one_policy(start: Start, policy_file: Path) -> None:
    other = policy("other", seed=7)
    http = start(score_policy=str(policy_file))
    request = body()
    answers = {json.dumps(http.post("/score", json=request).json())}
    policy_file.write_bytes(other)
    reloaded = http.post("/admin/reload").json()
    used = http.post("/score", json=request).json()["policy"]
    assert (reloaded, used["name"]) == ({"default": used["version"], "policies": [UNIFORM, used]}, "other")
    answers |= {json.dumps(http.post("/score", json=request).json())}
    assert len(answers) == 2
    stopped = threading.Event()

    def reload_until_stopped() -> None:
        for blob in itertools.cycle([policy(), other]):
            if stopped.is_set():
                return
            new_file = policy_file.with_suffix(".new")
            new_file.write_bytes(blob)
            new_file.rename(policy_file)
            assert http.post("/admin/reload").status_code == 200

    def score(_: int) -> set[str]:
        """Score at least 50 times, and until both policies have answered."""
        seen: set[str] = set()
        for number in itertools.count():
            if reloads.done() or (number >= 50 and len(seen) > 1):
                break
            seen.add(json.dumps(http.post("/score", json=request).raise_for_status().json()))
        return seen

    with ThreadPoolExecutor(5) as threads:
        reloads = threads.submit(reload_until_stopped)
        seen = list(threads.map(score, range(4)))
        stopped.set()
        reloads.result()
    assert seen == [answers] * 4


def test_a_policy_that_cannot_be_loaded_is_a_409_and_the_previous_one_stays(start: Start, policy_file: Path) -> None:
    http = start(score_policy=str(policy_file))
    before = http.post("/score", json=body()).json()
    for blob in (policy()[:-100], b""):
        policy_file.write_bytes(blob)
        answer = http.post("/admin/reload")
        assert (answer.status_code, answer.json()["type"]) == (409, "urn:tips:problem:policy-unusable")
        assert answer.json()["detail"] == f"SCORE_POLICY: the policy {policy_file} is damaged, or is not a policy."
    policy_file.unlink()
    unreadable = f"SCORE_POLICY: the policy {policy_file} is not a file that can be read."
    assert http.post("/admin/reload").json()["detail"] == unreadable
    assert http.post("/score", json=body()).json() == before


def test_a_reload_needs_a_key_or_a_caller_on_this_machine(start: Start) -> None:
    http = start(api_keys=("key",))
    assert http.post("/admin/reload").status_code == 401
    assert http.post("/admin/reload", headers={"authorization": "Bearer key"}).status_code == 200
    without_keys = start()
    assert without_keys.post("/admin/reload").status_code == 200
    assert without_keys.post("/admin/reload", headers={"host": "tips.example"}).status_code == 403


@pytest.mark.parametrize("name", ["score_policy", "score_policies"])
def test_a_policy_that_cannot_be_used_is_a_configuration_error(policy_file: Path, name: str) -> None:
    policy_file.write_bytes(policy()[:500])
    settings: dict[str, Any] = {**NO_MODEL, name: str(policy_file)}
    sentence = f"{name.upper()}: the policy {policy_file} is damaged, or is not a policy."
    with pytest.raises(ConfigurationError, match=rf"^{re.escape(sentence)}$"):
        create_app(ServingSettings(**settings))


def test_a_configuration_error_ends_the_program_with_one_sentence(policy_file: Path, tmp_path: Path) -> None:
    policy_file.write_bytes(policy()[:500])
    for settings, sentence in (
        ({"SCORE_POLICY": "missing.npz"}, "SCORE_POLICY: the value 'missing.npz' is neither a file that can be read"),
        (
            {"SCORE_POLICY": str(policy_file)},
            f"SCORE_POLICY: the policy {policy_file} is damaged, or is not a policy.",
        ),
        (
            {"SCORE_POLICIES": f"{policy_file},models:/a"},
            "SCORE_POLICIES: the value 'models:/a' should be",
        ),
        ({"ONLINE_STORE_URL": "redis://:secret"}, "ONLINE_STORE_URL: the value should be sqlite:///FILE or redis://["),
        (
            {"ONLINE_STORE_URL": f"sqlite:///{tmp_path}/none.db"},
            f"ONLINE_STORE_URL: {tmp_path}/none.db is not an online feature store; `tips features materialize` creates "
            "one.",
        ),
    ):
        ended = run(COMMAND, "serve", "--only", "serving", **settings)
        assert ended.returncode == 1
        assert ended.stderr.startswith(sentence)
        assert ended.stderr.count("\n") == 1


def test_a_hangup_signal_reloads_the_policies(policy_file: Path) -> None:
    settings = {"SCORE_POLICY": str(policy_file), **{name.upper(): value for name, value in NO_MODEL.items()}}
    with service(COMMAND, "serve", "--only", "serving", **settings) as serving:
        before = serving.http.post("/score", json=body()).json()["policy"]
        policy_file.write_bytes(policy("other"))
        serving.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: serving.http.post("/score", json=body()).json()["policy"]["name"] == "other")
        policy_file.write_bytes(b"broken")
        serving.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: "policies_not_loaded" in [line["event"] for line in serving.log])
        after_failure = serving.http.post("/score", json=body())
        assert (before["name"], after_failure.json()["policy"]["name"]) == ("tips", "other")
        code, log = serving.stop()
    assert code == 0
    events = [line["event"] for line in log]
    assert "policies_loaded" in events
    assert {line["reason"] for line in log if line["event"] == "policies_not_loaded"} == {
        f"SCORE_POLICY: the policy {policy_file} is damaged, or is not a policy."
    }


def test_a_ranking_is_logged_without_signals_or_tips(policy_file: Path) -> None:
    settings = {"SCORE_POLICY": str(policy_file), **{name.upper(): value for name, value in NO_MODEL.items()}}
    with service(COMMAND, "serve", "--only", "serving", **settings) as serving:
        answer = serving.http.post("/score", json=body(signals={"mood": "low", "goal": "private"})).json()
        _, log = serving.stop()
    (request,) = [line for line in log if line.get("route") == "/score"]
    assert (request["event_id"], request["policy"], request["chosen"]) == ("d-1", "tips", answer["chosen"])
    assert request["policy_version"] == answer["policy"]["version"]
    assert (
        request["probability"] == {scored["id"]: scored["probability"] for scored in answer["scores"]}[answer["chosen"]]
    )
    assert "private" not in str(log)
    assert not any(tip in str(log) for tip in TIPS.values())
