"""README's commands and snippets run, and its tree is the tree."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ml.serving.tip import validate_tip
from tests.conftest import Serve
from tests.process import environment

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
INSTALL, CURL = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
BESIDE_PYTHON = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", command],
        env=environment(PATH=BESIDE_PYTHON),
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=False,
    )


def test_the_first_command_writes_a_real_tip_once_everything_is_installed() -> None:
    *install, generate, serve = INSTALL.replace("\\\n", "").split("&&")
    assert [step.split()[0] for step in install] == ["python3", ".", "pip", "pip"]
    assert serve.split() == ["tips", "serve"]
    ended = shell(generate)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert validate_tip(ended.stdout)


def test_what_the_first_command_installs_is_what_the_project_needs() -> None:
    core_and_embedded = (ROOT / "pyproject.toml").read_text().partition("# Traces")[0]
    needed = re.findall(r'^    "([a-z0-9-]+)', core_and_embedded, re.MULTILINE)
    locked = re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert len(needed) > 30
    assert set(needed) <= set(locked)


def test_the_request_it_shows_is_answered(serve: Serve) -> None:
    url = str(serve().base_url).removeprefix("http://").rstrip("/")
    ended = shell(CURL.replace("localhost:8000", url) + " --silent")
    answer = json.loads(ended.stdout)
    assert answer["prompt_version"] == "v2-mentor"
    assert validate_tip(answer["tip"])


@pytest.mark.parametrize("snippet", PYTHON)
def test_its_python_runs(serve: Serve, snippet: str) -> None:
    url = str(serve().base_url).rstrip("/")
    exec(snippet.replace("http://localhost:8000", url), {})


def test_its_tree_names_every_module_and_nothing_else() -> None:
    tree = README.partition("```\nml/\n")[2].partition("tests/  ")[0]
    named = set(re.findall(r"(\w+\.py)\b", tree))
    assert named == {path.name for path in (ROOT / "ml").rglob("*.py")} - {"__init__.py"}


def test_ci_runs_the_one_command_that_contributors_run() -> None:
    assert "./check" in README
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == 'exec "$(dirname "$0")/../check"'
    assert (ROOT / "check").read_text().splitlines()[-1] == 'pytest "$@"'
