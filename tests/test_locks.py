"""The lock files: pinned, hashed, without addresses, and each with what it is for."""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PROJECT_LOCKS = [
    "requirements.lock",
    "requirements-remote.lock",
    "requirements-dev.lock",
    "requirements-pipelines.lock",
]
PIPELINE_EXTRAS = ("feast", "prefect", "spark", "notebooks")
AIRFLOW_LOCK = "deploy/airflow/requirements.lock"


def names(requirements: Iterable[str]) -> set[str]:
    return {re.split(r"[^a-z0-9-]", requirement)[0] for requirement in requirements}


def pinned(lock: str) -> set[str]:
    return set(re.findall(r"^([a-z0-9.-]+)==", (ROOT / lock).read_text(), re.MULTILINE))


@pytest.mark.parametrize("lock", [*PROJECT_LOCKS, AIRFLOW_LOCK])
def test_a_lock_has_hashes_and_no_addresses(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert "://" not in text
    pins = re.findall(r"^[a-z0-9.-]+==", text, re.MULTILINE)
    assert len(pins) == len(re.findall(r"^[a-z0-9.-]+==[^\n]+\\\n    --hash=sha256:", text, re.MULTILINE)) > 50


@pytest.mark.parametrize("lock", PROJECT_LOCKS)
def test_a_lock_of_the_project_has_its_dependencies_and_what_builds_it(lock: str) -> None:
    assert names(PROJECT["dependencies"]) | {"editables", "hatchling"} <= pinned(lock)


def test_the_lock_for_a_hosted_model_has_no_model_no_database_and_no_registry() -> None:
    extras = PROJECT["optional-dependencies"]
    unwanted = names([*extras["embedded"], *extras["recommender"], *extras["registry"]])
    # LiteLLM needs these itself.
    assert pinned("requirements-remote.lock") & unwanted == {"huggingface-hub", "jinja2", "tqdm"}


def test_the_first_lock_has_no_library_that_only_other_environments_need() -> None:
    extras = PROJECT["optional-dependencies"]
    only_pipelines = [requirement for extra in PIPELINE_EXTRAS for requirement in extras[extra]]
    assert not names(only_pipelines) & pinned("requirements.lock")


def test_the_lock_of_pipelines_has_every_extra() -> None:
    requirements = [requirement for extra in PROJECT["optional-dependencies"].values() for requirement in extra]
    assert names(requirements) - {PROJECT["name"]} <= pinned("requirements-pipelines.lock")


def test_airflow_is_locked_alone() -> None:
    assert "apache-airflow" in pinned(AIRFLOW_LOCK)
    assert "litellm" not in pinned(AIRFLOW_LOCK)
    assert not any("apache-airflow" in pinned(lock) for lock in PROJECT_LOCKS)
