"""`tips generate`."""

import re
import subprocess

import pytest

from ml.features.context import assemble_context
from ml.features.definitions import SIGNALS
from ml.serving.prompts import PROMPTS
from tests.cli.commands import model_settings, tips_without
from tests.process import TIPS, environment, run
from tests.upstream import SECRET, TIP, Upstream


def test_the_output_is_the_tip_and_nothing_else(upstream: Upstream) -> None:
    ended = run(
        *(TIPS, "generate", "--prompt-version", "v2-mentor"),
        *("--signal", "goal=sleep better", "--signal", "sleep_hours=5.5"),
        *("--signal", "recent_tips=one", "--signal", "recent_tips=two"),
        **model_settings(upstream),
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{TIP}\n", "")
    messages = upstream.bodies[-1]["messages"]
    signals = {"goal": "sleep better", "sleep_hours": 5.5, "recent_tips": ("one", "two")}
    assert messages == PROMPTS["v2-mentor"].render(assemble_context(signals)).messages
    for wording in ('"sleep better"', "5.5 hours", '"one", "two"'):
        assert wording in messages[-1]["content"]


def test_the_tip_is_streamed_to_a_terminal(upstream: Upstream) -> None:
    ended = subprocess.run(
        ["script", "-qec", f"{TIPS} generate", "/dev/null"],
        env=environment(**model_settings(upstream)),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", ended.stdout)
    assert "Loading the model" in shown
    assert shown.rstrip().endswith(TIP)
    assert upstream.bodies[-1]["stream"] is True


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--prompt-version", "v9"], 1, f"version 'v9' is not known; it should be one of {', '.join(PROMPTS)}."),
        (
            ["--signal", "shoe_size=43"],
            1,
            f"--signal shoe_size: is not known; the known ones are {', '.join(SIGNALS)}",
        ),
        (["--signal", "energy=eleven"], 1, "--signal energy: should be a"),
        (["--signal", "energy"], 2, "'energy' should be NAME=VALUE, such as sleep_hours=5.5"),
    ],
)
def test_a_wrong_argument_gives_an_error_message(arguments: list[str], code: int, message: str) -> None:
    ended = run(TIPS, "generate", *arguments, COLUMNS="200")
    assert ended.returncode == code
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_failure_of_the_model_gives_an_error_message(upstream: Upstream) -> None:
    ended = run(TIPS, "generate", **model_settings(upstream, "status-401"))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "refused" in ended.stderr
    assert SECRET not in ended.stderr


def test_the_libraries_of_the_recommender_are_not_needed(upstream: Upstream) -> None:
    command = tips_without("sqlalchemy", "alembic", "scipy", "matplotlib", "uuid_utils")
    assert run(*command, "generate", **model_settings(upstream)).stdout == f"{TIP}\n"


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("openai/gpt-4o-mini", "OPENAI_API_KEY is not set, and openai/gpt-4o-mini needs it."),
        (
            "opnai/x",
            "TIP_MODEL: the value 'opnai/x' should begin with a provider that LiteLLM knows, such as openai.",
        ),
    ],
)
def test_a_model_that_cannot_work_gives_one_sentence(model: str, sentence: str) -> None:
    ended = run(TIPS, "generate", TIP_MODEL=model)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", f"{sentence}\n")
