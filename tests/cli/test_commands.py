"""The `tips` command and the service as processes of their own."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ml.features.definitions import SIGNALS
from ml.serving.prompts import PROMPTS
from tests.conftest import Serve, eventually
from tests.process import TIPS, environment, run, service
from tests.upstream import SECRET, TIP, Upstream

UVICORN = (sys.executable, "-m", "uvicorn", "ml.serving.main:app")


def model(upstream: Upstream, name: str = "good", **settings: str) -> dict[str, str]:
    return {"TIP_MODEL": f"openai/{name}", "TIP_MODEL_API_BASE": f"{upstream.url}/v1", **settings}


@pytest.mark.parametrize("command", [(TIPS, "serve"), UVICORN], ids=["tips serve", "uvicorn"])
def test_the_service_is_alive_within_two_seconds_and_says_what_is_still_loading(
    upstream: Upstream, command: tuple[str, ...]
) -> None:
    with service(*command, **model(upstream)) as running:
        assert running.seconds_to_live < 2
        ready = running.http.get("/health/ready")
        assert ready.status_code == 503
        assert "litellm: loading" in ready.json()["detail"]
        assert running.http.post("/generate", json={}).json()["tip"] == TIP
        assert running.http.get("/health/ready").status_code == 200


def test_a_request_that_is_early_is_told_when_to_come_back_if_loading_outlasts_its_deadline(upstream: Upstream) -> None:
    with service(**model(upstream, GENERATE_TIMEOUT_SECONDS="0.1")) as running:
        answer = running.http.post("/generate", json={})
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:tips:problem:not-ready")
        assert int(answer.headers["retry-after"]) > 0


def test_sigterm_finishes_what_is_in_flight_and_exits_0(upstream: Upstream) -> None:
    with service(**model(upstream, "slow")) as running, ThreadPoolExecutor() as pool:
        assert running.http.post("/generate", json={}).status_code == 200
        answer = pool.submit(running.http.post, "/generate", json={})
        assert eventually(lambda: upstream.calls["slow"] == 2)
        running.process.send_signal(signal.SIGTERM)
        assert answer.result().json()["tip"] == TIP
        assert running.process.wait(30) == 0


def test_sigterm_while_loading_exits_0(upstream: Upstream) -> None:
    with service(**model(upstream)) as running:
        assert running.stop()[0] == 0


def test_the_log_is_json_with_one_line_a_request_and_nobody_s_words(upstream: Upstream) -> None:
    settings = model(upstream, API_KEYS="my-private-key", OPENAI_API_KEY="sk-private")
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
    # A line is written after its answer: the next request may be quicker.
    first, third, second = sorted(requests, key=lambda line: line["status"])
    assert first | {"ms": 0, "timestamp": "", "span_id": ""} == {
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
    assert (second["status"], third["status"]) == (422, 401)
    everything = str(log)
    for private in ("private", "Dim the lights", "You write", SECRET):
        assert private not in everything.replace("/private", "")


def test_a_failing_upstream_leaves_no_words_of_its_own_in_the_log(upstream: Upstream) -> None:
    with service(**model(upstream, "status-401")) as running:
        assert running.http.post("/generate", json={"signals": {"goal": "private"}}).status_code == 502
        _, log = running.stop()
    assert SECRET not in str(log)
    assert upstream.url not in str(log)
    assert "private" not in str(log)


@pytest.mark.parametrize(
    "command", [(TIPS, "serve"), (*UVICORN, "--port", "0"), (TIPS, "generate")], ids=lambda c: c[-1]
)
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"DEFAULT_PROMPT_VERSION": "v9"},
            "DEFAULT_PROMPT_VERSION: there is no such prompt version; the known ones are ",
        ),
        ({"TIP_MODEL": "gpt"}, "TIP_MODEL: the value "),
        ({"EMBEDDED_MODEL_PATH": "/nowhere"}, "EMBEDDED_MODEL_PATH: the value is not a file that can be read."),
        ({"TIP_MODEL_API_BASE": "http://127.0.0.1:9"}, "TIP_MODEL_API_BASE: needs TIP_MODEL"),
    ],
)
def test_an_operator_s_mistake_stops_the_program_with_one_plain_sentence(
    command: tuple[str, ...], settings: dict[str, str], sentence: str
) -> None:
    ended = run(*command, **settings)
    assert ended.returncode == 1
    assert ended.stderr.startswith(sentence)
    assert ended.stderr.count("\n") == 1


def test_to_listen_beyond_this_machine_takes_keys_or_saying_that_everyone_may(upstream: Upstream) -> None:
    refused = run(TIPS, "serve", "--host", "0.0.0.0")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert refused.stderr.startswith("API_KEYS: must be set to listen on 0.0.0.0, or ALLOW_ANONYMOUS")
    for opened in ({"API_KEYS": "k"}, {"ALLOW_ANONYMOUS": "true"}):
        with service(TIPS, "serve", "--host", "0.0.0.0", **model(upstream, **opened)):
            pass


def test_without_keys_a_warning_says_so(upstream: Upstream) -> None:
    with service(**model(upstream)) as running:
        _, log = running.stop()
    assert [line["level"] for line in log if line["event"] == "open_to_everyone"] == ["warning"]


def test_generate_prints_the_tip_and_nothing_else(upstream: Upstream) -> None:
    ended = run(
        *(
            TIPS,
            "generate",
            "--prompt-version",
            "v2-mentor",
            "--signal",
            "goal=sleep better",
            "--signal",
            "sleep_hours=5.5",
        ),
        *("--signal", "recent_tips=one", "--signal", "recent_tips=two"),
        **model(upstream),
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{TIP}\n", "")
    sent = upstream.bodies[-1]["messages"]
    assert sent[:-1] == list(PROMPTS["v2-mentor"].prefix)
    for words in ('"sleep better"', "5.5 hours", '"one", "two"'):
        assert words in sent[-1]["content"]


def test_generate_streams_to_a_terminal(upstream: Upstream) -> None:
    ended = subprocess.run(
        ["script", "-qec", f"{TIPS} generate", "/dev/null"],
        env=environment(**model(upstream)),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ended.stdout.strip() == TIP
    assert upstream.bodies[-1]["stream"] is True


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt-version", "v9"], ", ".join(PROMPTS)),
        (["--signal", "shoe_size=43"], ", ".join(SIGNALS)),
        (["--signal", "energy=eleven"], "#/signals/energy"),
        (["--signal", "energy"], "NAME=VALUE"),
    ],
)
def test_generate_tells_what_is_wrong_in_plain_words(arguments: list[str], words: str) -> None:
    ended = run(TIPS, "generate", *arguments)
    assert ended.returncode in {1, 2}
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_generate_fails_plainly_when_the_model_does(upstream: Upstream) -> None:
    ended = run(TIPS, "generate", **model(upstream, "status-401"))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "refused" in ended.stderr
    assert SECRET not in ended.stderr


def test_prompts_shows_every_version_with_its_digest() -> None:
    ended = run(TIPS, "prompts", COLUMNS="120", DEFAULT_PROMPT_VERSION="v2-mentor")
    assert ended.returncode == 0
    for version, prompt in PROMPTS.items():
        assert version in ended.stdout
        assert prompt.digest[:12] in ended.stdout
    assert "v2-mentor (default)" in ended.stdout


def test_locking_released_prompts_again_changes_nothing() -> None:
    ended = run(TIPS, "prompts", "lock")
    assert (ended.returncode, ended.stdout) == (0, "released: nothing new\n")


def test_one_of_the_two_services_runs_alone(upstream: Upstream, tmp_path: Path) -> None:
    with service(TIPS, "serve", "--only", "serving", **model(upstream)) as serving:
        assert serving.http.post("/tips", json={"user_id": "u"}).status_code == 404
        settings = {"SERVING_URL": serving.url, "DATABASE_URL": database(tmp_path), "TIP_PROMPT_VERSION": "v2-mentor"}
        with service(TIPS, "serve", "--only", "recommender", **settings) as recommender:
            assert recommender.http.post("/generate", json={}).status_code == 404
            answer = recommender.http.post("/tips", json={"user_id": "u"})
            assert (answer.status_code, answer.json()["prompt_version"]) == (200, "v2-mentor")
            assert recommender.stop()[0] == 0


@pytest.mark.parametrize(
    "command",
    [(TIPS, "serve", "--only", "recommender"), (*UVICORN[:-1], "ml.recommender.main:app", "--port", "0")],
    ids=["tips serve", "uvicorn"],
)
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"SERVING_URL": ""}, "SERVING_URL: must say where serving is"),
        ({"TIP_PROMPT_VERSION": "v1,v9"}, "TIP_PROMPT_VERSION: serving does not know v9; it knows v1, "),
        ({"TIP_PROMPT_VERSION": "v1,,"}, "TIP_PROMPT_VERSION: the value should be one prompt version, or"),
        ({"DATABASE_URL": "tips.db"}, "DATABASE_URL: the value should be "),
        ({"DATABASE_URL": "sqlite+aiosqlite:////nowhere/tips.db"}, "DATABASE_URL: the database cannot be opened"),
        (
            {"DATABASE_URL": "postgresql+asyncpg://tips:top-secret@127.0.0.1:9/tips"},
            "DATABASE_URL: the database cannot be opened",
        ),
    ],
)
def test_a_mistake_about_the_recommender_stops_it_with_one_plain_sentence(
    serve: Serve, tmp_path: Path, command: tuple[str, ...], settings: dict[str, str], sentence: str
) -> None:
    url = str(serve().base_url)
    ended = run(*command, **{"SERVING_URL": url, "DATABASE_URL": database(tmp_path), **settings})
    assert ended.returncode == 1
    assert ended.stderr.startswith(sentence)
    assert ended.stderr.count("\n") == 1
    assert "top-secret" not in ended.stderr + ended.stdout


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"TIP_PROMPT_VERSION": "v9"}, "TIP_PROMPT_VERSION: serving does not know v9; it knows v1, "),
        ({"SERVING_URL": "http://localhost:1"}, "SERVING_URL: `tips serve` runs serving itself"),
    ],
)
def test_a_mistake_about_both_together_stops_the_program_with_one_plain_sentence(
    tmp_path: Path, settings: dict[str, str], sentence: str
) -> None:
    ended = run(TIPS, "serve", DATABASE_URL=database(tmp_path), **settings)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert ended.stderr.startswith(sentence)


def test_a_serving_that_does_not_answer_yet_does_not_stop_the_recommender(tmp_path: Path) -> None:
    settings = {"SERVING_URL": "http://127.0.0.1:9", "TIP_PROMPT_VERSION": "v9", "DATABASE_URL": database(tmp_path)}
    with service(TIPS, "serve", "--only", "recommender", **settings) as recommender:
        answer = recommender.http.post("/tips", json={"user_id": "u"})
        assert (answer.status_code, answer.json()["type"]) == (502, "urn:tips:problem:upstream-unreachable")
        _, log = recommender.stop()
    assert [line["level"] for line in log if line["event"] == "serving_does_not_answer"] == ["warning"]


def test_the_log_of_a_tip_and_a_reaction_says_which_and_nobody_s_words(upstream: Upstream, tmp_path: Path) -> None:
    with service(**model(upstream, DATABASE_URL=database(tmp_path))) as both:
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


@pytest.mark.parametrize(
    "arguments",
    [["serve"], ["serve", "--only", "recommender"], ["forget", "u"], ["simulate"], ["evaluate", "--policy", "v1"]],
)
def test_without_the_recommender_s_libraries_one_sentence_says_what_to_install(arguments: list[str]) -> None:
    ended = run(*without("sqlalchemy"), *arguments)
    assert ended.returncode == 1
    assert ended.stderr.startswith("sqlalchemy is missing: this needs the `recommender` extra")
    assert ended.stderr.count("\n") == 1


def test_serving_and_writing_a_tip_go_without_the_recommender_s_libraries(upstream: Upstream) -> None:
    command = without("sqlalchemy", "alembic", "scipy", "matplotlib", "uuid_utils")
    assert run(*command, "generate", **model(upstream)).stdout == f"{TIP}\n"
    with service(*command, "serve", "--only", "serving", **model(upstream)) as serving:
        assert serving.http.post("/generate", json={}).json()["tip"] == TIP


def without(*libraries: str) -> tuple[str, ...]:
    """The command, in a Python where these libraries cannot be imported."""
    hidden = f"import sys; sys.modules.update(dict.fromkeys({libraries}))"
    return (sys.executable, "-c", f"{hidden}; from ml.cli.main import main; main()")


def test_people_s_data_is_removed_by_age_and_by_person(upstream: Upstream, tmp_path: Path) -> None:
    settings = model(upstream, DATABASE_URL=database(tmp_path))
    with service(**settings) as both:
        for user in ("one", "one", "two"):
            assert both.http.post("/tips", json={"user_id": user}).status_code == 200
        ended = run(TIPS, "forget", "one", **settings)
        assert (ended.returncode, ended.stdout) == (0, "removed: 2 tips\n")
        assert [one["tips"] for one in both.http.get("/rewards").json()["variants"]] == [1]
    ended = run(TIPS, "purge", "--older-than", "1d", **settings)
    assert (ended.returncode, ended.stdout) == (0, "removed: 0 tips\n")
    assert run(TIPS, "forget", "two", **settings).stdout == "removed: 1 tips\n"


@pytest.mark.parametrize("age", ["90", "d", "-1d", "1w", "1d2h", ""])
def test_an_age_is_days_or_hours(age: str) -> None:
    ended = run(TIPS, "purge", "--older-than", age, COLUMNS="200")
    assert ended.returncode == 2
    assert "such as 90d or 36h" in ended.stderr


def database(folder: Path) -> str:
    return f"sqlite+aiosqlite:///{folder}/tips.db"
