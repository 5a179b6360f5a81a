"""Policies in a real MLflow registry, on SQLite."""

import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from mlflow import MlflowClient

from ml.platform.settings import ConfigurationError
from ml.registry import models
from ml.registry.artifacts import RankingPolicy, UnusablePolicyError
from ml.registry.models import register
from ml.registry.policies import load_policy
from tests.policies import policy

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's own


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the working directory, in which MLflow stores artifacts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("mlflow"))
        yield Path.cwd()


@pytest.fixture(scope="module")
def uri(folder: Path) -> str:
    """Return the URI of a registry for all tests, since opening one takes seconds; each test uses its own names."""
    return f"sqlite:///{folder}/mlflow.db"


def test_a_registered_policy_is_loaded_by_its_version_and_its_alias(uri: str) -> None:
    older, newer = policy(), policy(seed=2)
    assert register(older, "tips", uri, alias="champion") == "1"
    assert register(newer, "tips", uri, alias="challenger") == "2"
    versions = {blob: RankingPolicy.from_bytes(blob).version for blob in (older, newer)}
    assert (
        load_policy("models:/tips@champion", uri).version
        == load_policy("models:/tips/1", uri).version
        == versions[older]
    )
    assert load_policy("models:/tips@challenger", uri).version == versions[newer]
    register(newer, "tips", uri, alias="champion")
    assert load_policy("models:/tips@champion", uri).version == versions[newer]


def test_the_card_is_registered_as_a_readable_file(uri: str, folder: Path) -> None:
    before = {*folder.rglob("card.json")}
    register(policy(), "to-read", uri)
    (card,) = {*folder.rglob("card.json")} - before
    assert '"learned_from": 2000' in card.read_text()


def test_a_policy_that_an_earlier_release_registered_is_refused(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(models, "_POLICY", "policy.zip")
        register(policy(), "earlier", uri)
    with pytest.raises(UnusablePolicyError, match="was written by an earlier release; train it again"):
        load_policy("models:/earlier/1", uri)


def make_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        (lambda file: os.truncate(file, 10 * 2**30), "is larger than a policy can be"),
        (make_pipe, "is not a regular file"),
        (lambda file: (file.unlink(), file.symlink_to("/dev/zero")), "is not in MLflow's registry"),
        (lambda file: (file.unlink(), file.mkdir()), "is a directory, not a file"),
    ],
    ids=["a file of 10 GB", "a pipe", "a device", "a directory"],
)
def test_a_registered_file_that_was_replaced_is_refused_without_being_copied(
    uri: str, folder: Path, replace: Callable[[Path], object], message: str
) -> None:
    before = {*folder.rglob("policy.npz")}
    number = register(policy(), "replaced", uri)
    (file,) = {*folder.rglob("policy.npz")} - before
    replace(file)
    with pytest.raises(UnusablePolicyError, match=message):
        load_policy(f"models:/replaced/{number}", uri)


@pytest.mark.parametrize("source", ["models:/a@unknown", "models:/a/9", "models:/none@champion"])
def test_an_unknown_name_alias_or_version_is_refused(uri: str, source: str) -> None:
    register(policy(), "a", uri)
    with pytest.raises(UnusablePolicyError, match="is not in MLflow's registry"):
        load_policy(source, uri)


def test_an_unreachable_registry_is_one_sentence() -> None:
    unreachable = "http://127.0.0.1:9"
    with pytest.raises(UnusablePolicyError, match="or the registry cannot be reached"):
        load_policy("models:/tips@champion", unreachable)
    with pytest.raises(ConfigurationError, match="MLflow does not accept the policy"):
        register(policy(), "tips", unreachable)


def test_the_run_and_the_version_say_what_was_trained(uri: str) -> None:
    blob = policy()
    trained = RankingPolicy.from_bytes(blob)
    number = register(blob, "described", uri, training={"since": "30 days"})
    client = MlflowClient(uri, uri)
    found = client.get_model_version("described", number)
    assert found.description == (
        f"Ranking policy {trained.version}: learned from 2,000 decisions up to 1970-01-01T00:33:19+00:00 "
        "with the prompt versions v1, v2-mentor, v3-few-shot."
    )
    run = client.get_run(found.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", f"described {trained.version}")
    assert run.data.params == {
        "prompt_versions": "v1,v2-mentor,v3-few-shot",
        "trained_until": "1970-01-01T00:33:19+00:00",
        "gamma_scale": "10",
        "floor": "0.02",
        "since": "30 days",
    }
    assert run.data.metrics == {
        "decisions": 2_000,
        "features": trained.model.weights.size,
        "noise_variance": trained.model.noise_variance,
    }
    for tags in (run.data.tags, found.tags):
        assert tags["policy_version"] == trained.version
        assert tags["tips_release"] == version("tip-service")


def test_reading_a_registry_that_does_not_exist_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnusablePolicyError, match=rf"there is no MLflow registry {tmp_path}/none\.db$"):
        load_policy("models:/tips@champion", f"sqlite:///{tmp_path}/none.db")
    assert [*tmp_path.iterdir()] == []
