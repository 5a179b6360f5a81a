"""`tips serve`, and the same services started by uvicorn."""

import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from ml.serving.prompts import PROMPTS
from tests.cli.commands import database_url, model_settings, tips_without
from tests.conftest import Serve, eventually
from tests.process import TIPS, run, service
from tests.upstream import SECRET, TIP, Upstream

UVICORN = (sys.executable, "-m", "uvicorn")
UVICORN_SERVING = (*UVICORN, "ml.serving.main:app")

BLOCK_IMPORT = """
import importlib.util, os, sys, time

class BlockImport:
    def find_spec(self, name, path=None, target=None):
        if name != "litellm":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def wait_and_execute(module):
            while not os.path.exists(os.environ["RELEASE_FILE"]):
                time.sleep(0.01)
            execute(module)

        spec.loader.exec_module = wait_and_execute
        return spec

sys.meta_path.insert(0, BlockImport())
"""


class BlockedModel:
    """Settings with which a service cannot load LiteLLM, and so no model, until `release` is called."""

    def __init__(self, directory: Path) -> None:
        self._release_file = directory / "release"
        (directory / "sitecustomize.py").write_text(BLOCK_IMPORT)
        path = os.pathsep.join(filter(None, [str(directory), os.environ.get("PYTHONPATH")]))
        self.settings = {"PYTHONPATH": path, "RELEASE_FILE": str(self._release_file)}

    def release(self) -> None:
        self._release_file.touch()


@pytest.fixture
def blocked_model(tmp_path: Path) -> BlockedModel:
    return BlockedModel(tmp_path)


@pytest.mark.parametrize("command", [(TIPS, "serve"), UVICORN_SERVING], ids=["tips serve", "uvicorn"])
def test_the_service_is_live_before_the_model_is_loaded(
    upstream: Upstream, blocked_model: BlockedModel, command: tuple[str, ...]
) -> None:
    with service(*command, **model_settings(upstream, **blocked_model.settings)) as running:  # waits until it is live
        ready = running.http.get("/health/ready")
        assert ready.status_code == 503
        assert "litellm: loading" in ready.json()["detail"]
        blocked_model.release()
        assert running.http.post("/generate", json={}).json()["tip"] == TIP
        assert running.http.get("/health/ready").status_code == 200


def test_a_missing_key_is_logged_and_named_in_the_readiness_before_any_request_for_a_tip() -> None:
    with service(TIPS, "serve", "--only", "serving", TIP_MODEL="openai/gpt-4o-mini") as running:
        ready = running.http.get("/health/ready")
        assert (ready.status_code, "OPENAI_API_KEY is not set" in ready.json()["detail"]) == (503, True)
        _, log = running.stop()
    (line,) = [line for line in log if line["event"] == "model_not_ready"]
    assert line["reason"] == "OPENAI_API_KEY is not set, and openai/gpt-4o-mini needs it."


def test_a_request_whose_deadline_passes_while_the_model_loads_is_a_503_with_retry_after(
    upstream: Upstream, blocked_model: BlockedModel
) -> None:
    settings = model_settings(upstream, GENERATE_TIMEOUT_SECONDS="0.1", **blocked_model.settings)
    with service(**settings) as running:
        response = running.http.post("/generate", json={})
        assert (response.status_code, response.json()["type"]) == (503, "urn:tips:problem:not-ready")
        assert int(response.headers["retry-after"]) > 0


def test_sigterm_finishes_the_requests_in_flight_and_exits_with_0(upstream: Upstream) -> None:
    upstream.released.set()
    with service(**model_settings(upstream, "waits")) as running, ThreadPoolExecutor() as pool:
        assert running.http.post("/generate", json={}).status_code == 200
        upstream.released.clear()
        response = pool.submit(running.http.post, "/generate", json={})
        assert eventually(lambda: upstream.calls["waits"] == 2)
        running.process.send_signal(signal.SIGTERM)
        assert eventually(lambda: not accepts_connections(running.url))
        upstream.released.set()
        assert response.result().json()["tip"] == TIP
        assert running.process.wait(300) == 0


LIMITED_UVICORN = (*UVICORN_SERVING, "--http", "ml.platform.http_protocol:LimitedHttpProtocol")


@pytest.mark.parametrize("command", [(TIPS, "serve"), LIMITED_UVICORN], ids=["tips serve", "uvicorn"])
def test_the_server_limits_headers_and_says_so(upstream: Upstream, command: tuple[str, ...]) -> None:
    with service(*command, **model_settings(upstream)) as running:
        response = running.http.post("/generate", json={}, headers={f"x-{number}": "" for number in range(101)})
        assert response.status_code == 431
        assert running.http.post("/generate", json={}).status_code == 200
        _, log = running.stop()
    assert not [line for line in log if line["event"] == "server_without_limits"]


def test_a_server_without_limits_is_warned_of_once(upstream: Upstream) -> None:
    with service(*UVICORN_SERVING, **model_settings(upstream)) as running:
        for _ in range(3):
            running.http.get("/health/live")
        _, log = running.stop()
    assert [line["level"] for line in log if line["event"] == "server_without_limits"] == ["warning"]


def test_the_number_of_connections_is_a_setting(upstream: Upstream) -> None:
    with service(**model_settings(upstream, "waits", MAX_CONNECTIONS="3")) as running, ThreadPoolExecutor() as pool:
        in_flight = [pool.submit(httpx.post, f"{running.url}/generate", json={}, timeout=60) for _ in range(3)]
        assert eventually(lambda: upstream.calls["waits"] == 3)
        refused = httpx.get(f"{running.url}/health/live")
        assert (refused.status_code, refused.json()["detail"]) == (503, "The service is at its limit of connections.")
        upstream.released.set()
        assert [response.result().status_code for response in in_flight] == [200] * 3


def accepts_connections(url: str) -> bool:
    host, _, port = url.removeprefix("http://").partition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=60):
            return True
    except ConnectionError:
        return False


def test_sigterm_while_the_model_loads_exits_with_0(upstream: Upstream, blocked_model: BlockedModel) -> None:
    with service(**model_settings(upstream, **blocked_model.settings)) as running:
        assert running.stop()[0] == 0


def test_the_log_has_one_json_line_per_request_and_no_content(upstream: Upstream) -> None:
    settings = model_settings(upstream, API_KEYS="my-private-key", OPENAI_API_KEY="sk-private")
    headers = {
        "authorization": "Bearer my-private-key",
        "x-request-id": "r1",
        "traceparent": f"00-{'a' * 32}-{'b' * 16}-00",
    }
    with service(**settings) as running:
        body = {"signals": {"goal": "private-goal", "recent_tips": ["private-tip"]}}
        assert running.http.post("/generate", json=body, headers=headers).status_code == 200
        running.http.post("/generate", json={"signals": {"goal": 7, "private-name": 1}}, headers=headers)
        running.http.post("/generate", json=body, headers={"authorization": "Bearer my-private-guess"})
        code, log = running.stop()
    assert code == 0
    requests = [line for line in log if line["event"] == "request" and line["route"] != "/health/live"]
    # A line is written after its response, so the next request may be logged first.
    ok, unauthorized, invalid = sorted(requests, key=lambda line: line["status"])
    assert ok | {"ms": 0, "timestamp": "", "span_id": ""} == {
        "event": "request",
        "level": "info",
        "timestamp": "",
        "request_id": "r1",
        "trace_id": "a" * 32,
        "span_id": "",
        "method": "POST",
        "route": "/generate",
        "status": 200,
        "ms": 0,
        "prompt_version": "v1",
        "prompt_digest": PROMPTS["v1"].digest,
        "model": "openai/good",
        "input_tokens": 50,
        "output_tokens": 12,
        "outcome": "ok",
    }
    assert (unauthorized["status"], invalid["status"]) == (401, 422)
    log_text = str(log)
    for content in ("private", "Dim the lights", "You write", SECRET):
        assert content not in log_text.replace("/private", "")


def test_the_log_has_no_text_of_a_failing_upstream(upstream: Upstream) -> None:
    with service(**model_settings(upstream, "status-401")) as running:
        assert running.http.post("/generate", json={"signals": {"goal": "private"}}).status_code == 502
        _, log = running.stop()
    for content in (SECRET, upstream.url, "private"):
        assert content not in str(log)


def test_the_log_of_a_tip_and_a_reaction_has_ids_and_no_content(upstream: Upstream, tmp_path: Path) -> None:
    with service(**model_settings(upstream, DATABASE_URL=database_url(tmp_path))) as both:
        body = {"user_id": "private-user", "signals": {"goal": "private-goal"}}
        tip = both.http.post("/tips", json=body, headers={"x-request-id": "r1"}).json()
        both.http.post("/reactions", json={"tip_id": tip["tip_id"], "reaction": "helpful"})
        _, log = both.stop()
    lines = {line["route"]: line for line in log if line["event"] == "request"}
    assert lines["/tips"]["tip_id"] == tip["tip_id"]
    assert (lines["/tips"]["prompt_version"], lines["/tips"]["policy"]) == ("v1", "serving-default")
    assert lines["/generate"]["request_id"] == lines["/tips"]["request_id"] == "r1"
    assert lines["/generate"]["trace_id"] == lines["/tips"]["trace_id"]
    assert lines["/reactions"]["status"] == 200
    assert "private" not in str(log)
    assert TIP not in str(log)


SERVING_MISTAKES = [
    (
        {"DEFAULT_PROMPT_VERSION": "v9"},
        f"DEFAULT_PROMPT_VERSION: 'v9' is not a prompt version; the known ones are {', '.join(PROMPTS)}.",
    ),
    (
        {"TIP_MODEL": "gpt"},
        "TIP_MODEL: the value 'gpt' should be a LiteLLM model id with its provider, such as openai/gpt-4o-mini.",
    ),
    (
        {"EMBEDDED_MODEL_PATH": "/nowhere"},
        "EMBEDDED_MODEL_PATH: the value '/nowhere' is not a file that can be read.",
    ),
    (
        {"TIP_MODEL_API_BASE": "http://127.0.0.1:9"},
        "TIP_MODEL_API_BASE: needs TIP_MODEL to name a model at that address, such as openai/my-model.",
    ),
]


@pytest.mark.parametrize(
    ("command", "settings", "sentence"),
    [
        *(pytest.param((TIPS, "serve"), *mistake, id=next(iter(mistake[0]))) for mistake in SERVING_MISTAKES),
        # The other commands stop in the same way.
        pytest.param((*UVICORN_SERVING, "--port", "0"), *SERVING_MISTAKES[0], id="uvicorn"),
        pytest.param((TIPS, "generate"), *SERVING_MISTAKES[0], id="tips generate"),
    ],
)
def test_a_wrong_setting_of_serving_ends_the_program_with_one_sentence(
    command: tuple[str, ...], settings: dict[str, str], sentence: str
) -> None:
    ended = run(*command, **settings)
    assert (ended.returncode, ended.stderr) == (1, f"{sentence}\n")


RECOMMENDER_MISTAKES = [
    ({"SERVING_URL": ""}, "SERVING_URL: must be the address of serving"),
    ({"TIP_PROMPT_VERSION": "v1,v9"}, f"TIP_PROMPT_VERSION: serving does not know v9; it knows {', '.join(PROMPTS)}."),
    ({"TIP_PROMPT_VERSION": "v1,,"}, "TIP_PROMPT_VERSION: the value 'v1,,' should be one prompt version, or"),
    ({"DATABASE_URL": "tips.db"}, "DATABASE_URL: the value should be sqlite+aiosqlite:///FILE or "),
    ({"DATABASE_URL": "sqlite+aiosqlite:////nowhere/tips.db"}, "DATABASE_URL: the database cannot be opened"),
    (
        {"DATABASE_URL": "postgresql+asyncpg://tips:top-secret@127.0.0.1:9/tips"},
        "DATABASE_URL: the database cannot be opened",
    ),
]


@pytest.mark.parametrize(
    ("command", "settings", "sentence"),
    [
        *(((TIPS, "serve", "--only", "recommender"), *mistake) for mistake in RECOMMENDER_MISTAKES),
        ((*UVICORN, "ml.recommender.main:app", "--port", "0"), *RECOMMENDER_MISTAKES[0]),
    ],
)
def test_a_wrong_setting_of_the_recommender_ends_the_program_with_one_sentence(
    serve: Serve, tmp_path: Path, command: tuple[str, ...], settings: dict[str, str], sentence: str
) -> None:
    url = str(serve().base_url)
    ended = run(*command, **{"SERVING_URL": url, "DATABASE_URL": database_url(tmp_path), **settings})
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert ended.stderr.startswith(sentence)
    assert "top-secret" not in ended.stderr + ended.stdout


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"TIP_PROMPT_VERSION": "v9"}, f"TIP_PROMPT_VERSION: serving does not know v9; it knows {', '.join(PROMPTS)}."),
        (
            {"SERVING_URL": "http://localhost:1"},
            "SERVING_URL: `tips serve` runs serving itself; `tips serve --only recommender` uses a serving elsewhere.",
        ),
    ],
)
def test_a_wrong_setting_of_both_services_together_ends_the_program_with_one_sentence(
    tmp_path: Path, settings: dict[str, str], sentence: str
) -> None:
    ended = run(TIPS, "serve", DATABASE_URL=database_url(tmp_path), **settings)
    assert (ended.returncode, ended.stderr) == (1, f"{sentence}\n")


def test_listening_on_other_addresses_needs_keys_or_explicit_permission(upstream: Upstream) -> None:
    refused = run(TIPS, "serve", "--host", "0.0.0.0")
    assert refused.returncode == 1
    assert refused.stderr == "API_KEYS: must be set to listen on 0.0.0.0, or ALLOW_ANONYMOUS to true.\n"
    for permission in ({"API_KEYS": "k"}, {"ALLOW_ANONYMOUS": "true"}):
        with service(TIPS, "serve", "--host", "0.0.0.0", **model_settings(upstream, **permission)):
            pass


def test_without_keys_a_warning_is_logged(upstream: Upstream) -> None:
    with service(**model_settings(upstream)) as running:
        _, log = running.stop()
    assert [line["level"] for line in log if line["event"] == "open_to_everyone"] == ["warning"]


def test_each_service_can_run_alone(upstream: Upstream, tmp_path: Path) -> None:
    with service(TIPS, "serve", "--only", "serving", **model_settings(upstream)) as serving:
        assert serving.http.post("/tips", json={"user_id": "u"}).status_code == 404
        settings = {"SERVING_URL": serving.url, "DATABASE_URL": database_url(tmp_path)}
        with service(TIPS, "serve", "--only", "recommender", TIP_PROMPT_VERSION="v2-mentor", **settings) as recommender:
            assert recommender.http.post("/generate", json={}).status_code == 404
            response = recommender.http.post("/tips", json={"user_id": "u"})
            assert (response.status_code, response.json()["prompt_version"]) == (200, "v2-mentor")
            assert recommender.stop()[0] == 0


def test_the_recommender_starts_while_serving_does_not_answer(tmp_path: Path) -> None:
    settings = {"SERVING_URL": "http://127.0.0.1:9", "TIP_PROMPT_VERSION": "v9", "DATABASE_URL": database_url(tmp_path)}
    with service(TIPS, "serve", "--only", "recommender", **settings) as recommender:
        response = recommender.http.post("/tips", json={"user_id": "u"})
        assert (response.status_code, response.json()["type"]) == (502, "urn:tips:problem:upstream-unreachable")
        _, log = recommender.stop()
    assert [line["level"] for line in log if line["event"] == "serving_does_not_answer"] == ["warning"]


def test_serving_runs_without_the_libraries_of_the_recommender(upstream: Upstream) -> None:
    command = tips_without("sqlalchemy", "alembic", "scipy", "matplotlib", "uuid_utils")
    with service(*command, "serve", "--only", "serving", **model_settings(upstream)) as serving:
        assert serving.http.post("/generate", json={}).json()["tip"] == TIP
