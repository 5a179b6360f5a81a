"""The entry point `ml.serving.main`, in its own process."""

import sys

import pytest

from ml.serving.prompts import PROMPTS
from tests.process import run
from tests.upstream import TIP, Upstream

UVICORN = (sys.executable, "-m", "uvicorn", "ml.serving.main:app", "--port", "0")
VERSIONS = ", ".join(PROMPTS)


def python(script: str, **settings: str) -> list[str]:
    """Run a script in a new process and return the lines that it prints after those of the log."""
    ended = run(sys.executable, "-W", "ignore", "-c", script, **settings)
    assert (ended.returncode, ended.stderr) == (0, "")
    return [line for line in ended.stdout.splitlines() if not line.startswith("{")]


def test_the_app_works_with_the_test_client(upstream: Upstream) -> None:
    script = """
from fastapi.testclient import TestClient
from ml.serving.main import app

print(TestClient(app).get("/health/live").json()["status"])
with TestClient(app) as client:
    while client.get("/health/ready").status_code == 503:
        pass
    print(client.post("/generate", json={"prompt_version": "v2-mentor"}).json()["tip"])
    print(client.post("/score", json={"candidates": [{"id": "a"}]}).json()["chosen"])
"""
    settings = {"TIP_MODEL": "openai/good", "TIP_MODEL_API_BASE": f"{upstream.url}/v1"}
    assert python(script, **settings) == ["live", TIP, "a"]


def test_to_look_up_an_unknown_attribute_has_no_side_effects() -> None:
    script = """
import gc, logging, os, sys, threading
from ml.serving import main

def state():
    handlers = list(logging.getLogger().handlers)
    return dict(vars(main)), set(sys.modules), gc.get_freeze_count(), threading.enumerate(), dict(os.environ), handlers

before = state()
print(hasattr(main, "x"), state() == before)
"""
    assert python(script) == ["False True"]


@pytest.mark.parametrize(
    "command", [UVICORN, (sys.executable, "-c", "import ml.serving.main")], ids=["uvicorn", "import"]
)
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"DEFAULT_PROMPT_VERSION": "v9"},
            f"DEFAULT_PROMPT_VERSION: 'v9' is not a prompt version; the known ones are {VERSIONS}.",
        ),
        (
            {"TIP_MODEL": "gpt"},
            "TIP_MODEL: the value 'gpt' should be a LiteLLM model id with its provider, such as openai/gpt-4o-mini.",
        ),
        ({"MAX_IN_FLIGHT": "0"}, "MAX_IN_FLIGHT: the value '0' should be a whole number, at least 1."),
        (
            {"TIP_MODEL_API_BASE": "http://127.0.0.1:9"},
            "TIP_MODEL_API_BASE: needs TIP_MODEL to name a model at that address, such as openai/my-model.",
        ),
        (
            {"ONLINE_STORE_URL": "sqlite:////nowhere/features.db"},
            "ONLINE_STORE_URL: /nowhere/features.db is not an online feature store; `tips features materialize` "
            "creates one.",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_configuration_error_is_one_sentence_and_a_failing_exit_code(
    command: tuple[str, ...], settings: dict[str, str], sentence: str
) -> None:
    ended = run(*command, **settings)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", f"{sentence}\n")
