"""A new entry in `PROMPTS`, in a copy of the project: nothing else has to change, except that it must be released."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import database_url, model_settings
from tests.process import TIPS, environment, run, service
from tests.upstream import TIP, Upstream

ROOT = Path(__file__).parents[1]
NEW = "v9-temporary"
ENTRY = f"""
import dataclasses

PROMPTS = MappingProxyType(
    {{
        **PROMPTS,
        "{NEW}": dataclasses.replace(
            PROMPTS[BASELINE_VERSION], description="For a test only.", system="Suggest one small thing. Be very brief."
        ),
    }}
)
"""

TESTS_OF_VERSIONS = (
    *("tests/serving/test_prompts.py", "tests/serving/test_main.py", "tests/simulation/test_people.py"),
    *("tests/cli/test_prompts.py", "tests/cli/test_env_example.py"),
    *(
        "tests/test_docs.py::test_every_route_is_named",
        "tests/test_docs.py::test_every_error_has_a_row_with_its_status",
    ),
)
"""Tests in which all registered versions occur, without those that take long."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project whose registry has one more version."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("ml", "tests", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml", "requirements.lock", ".env.example"):
        shutil.copy(ROOT / name, folder)
    with (folder / "ml/serving/prompts.py").open("a") as registry:
        registry.write(ENTRY)
    return folder


def run_pytest(project: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *tests],
        env=environment(PYTHONPATH=str(project)),
        cwd=project,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_an_unreleased_version_fails_one_test_that_says_how_to_release_it_and_then_all_pass(project: Path) -> None:
    ended = run_pytest(project, "tests/serving/test_prompts.py")
    assert re.findall(r"^FAILED \S+::(\w+)", ended.stdout, re.MULTILINE) == ["test_all_versions_are_released"]
    assert "run `tips prompts lock` to release the new versions" in ended.stdout
    assert re.search(rf"{NEW}.*│ no ", run(TIPS, "prompts", PYTHONPATH=str(project), COLUMNS="150").stdout)
    assert run(TIPS, "prompts", "lock", PYTHONPATH=str(project)).stdout == f"released: {NEW}\n"
    assert NEW in json.loads((project / "ml/serving/prompts.lock").read_text())
    ended = run_pytest(project, *TESTS_OF_VERSIONS)
    assert ended.returncode == 0, ended.stdout


def test_both_services_and_their_pages_have_it(project: Path, upstream: Upstream, tmp_path: Path) -> None:
    settings = model_settings(
        upstream,
        PYTHONPATH=str(project),
        DATABASE_URL=database_url(tmp_path),
        DEFAULT_PROMPT_VERSION=NEW,
        TIP_PROMPT_VERSION=NEW,
    )
    with service(**settings) as both:
        prompts = both.http.get("/prompts").json()
        assert (prompts["default"], [prompt["version"] for prompt in prompts["prompts"]][-1]) == (NEW, NEW)
        assert NEW in both.http.get("/openapi.json").text
        assert NEW in both.http.get("/").text
        assert both.http.post("/generate", json={"prompt_version": NEW}).json()["tip"] == TIP
        assert both.http.post("/tips", json={"user_id": "u"}).json()["prompt_version"] == NEW
        assert NEW in both.http.post("/generate", json={"prompt_version": "v0"}).json()["errors"][0]["allowed"]
        assert [variant["prompt_version"] for variant in both.http.get("/rewards").json()["variants"]] == [NEW]
        assert NEW in both.http.get("/admin/rewards").text


def test_the_commands_have_it(project: Path, upstream: Upstream, tmp_path: Path) -> None:
    settings = {"PYTHONPATH": str(project), "DATABASE_URL": database_url(tmp_path), "COLUMNS": "200"}
    generated = run(TIPS, "generate", "--prompt-version", NEW, **model_settings(upstream, PYTHONPATH=str(project)))
    assert generated.stdout == f"{TIP}\n"
    simulated = run(TIPS, "simulate", "--users", "60", "--days", "4", **settings)
    assert simulated.returncode == 0, simulated.stderr
    evaluated = run(TIPS, "evaluate", "--policy", NEW, **settings)
    assert (evaluated.returncode, NEW in evaluated.stdout) == (0, True), evaluated.stderr
    trained = run(TIPS, "train", "--to", str(tmp_path / "policy.npz"), **settings)
    assert trained.returncode == 0, trained.stderr
    assert f"prompt_version={NEW}".encode() in (tmp_path / "policy.npz").read_bytes()
    regret = tmp_path / "regret.svg"
    compared = run(TIPS, "simulate", "--users", "30", "--days", "2", "--regret", str(regret), **settings)
    assert (compared.returncode, regret.exists()) == (0, True), compared.stderr
