"""The lock files: pinned, hashed, without addresses, and each with what it is for."""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements: Iterable[str]) -> set[str]:
    return {re.split(r"[^a-z0-9-]", requirement)[0] for requirement in requirements}


def pinned(lock: str) -> set[str]:
    return set(re.findall(r"^([a-z0-9.-]+)==", (ROOT / lock).read_text(), re.MULTILINE))


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-remote.lock", "requirements-dev.lock"])
def test_a_lock_has_hashes_and_no_addresses_and_what_builds_the_package(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert "://" not in text
    pins = re.findall(r"^[a-z0-9.-]+==", text, re.MULTILINE)
    assert len(pins) == len(re.findall(r"^[a-z0-9.-]+==[^\n]+\\\n    --hash=sha256:", text, re.MULTILINE))
    assert names(PROJECT["dependencies"]) | {"editables", "hatchling"} <= pinned(lock)


def test_the_lock_for_a_hosted_model_has_no_model_no_database_and_no_registry() -> None:
    extras = PROJECT["optional-dependencies"]
    unwanted = names([*extras["embedded"], *extras["recommender"], *extras["registry"]])
    # LiteLLM needs these itself.
    assert pinned("requirements-remote.lock") & unwanted == {"huggingface-hub", "jinja2", "tqdm"}
