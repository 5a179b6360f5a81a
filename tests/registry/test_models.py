"""Policies in a real MLflow registry, on SQLite."""

import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from ml.platform.settings import ConfigurationError
from ml.registry import models
from ml.registry.artifacts import RankingPolicy, UnusablePolicyError
from ml.registry.card_markdown import to_markdown
from ml.registry.cards import ModelCard, missing
from ml.registry.models import RegistryError, register, set_aliases
from ml.registry.policies import load_policy, policy_revision
from ml.registry.ranking_cards import ranking_card
from tests.policies import policy, policy_with_figures

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


def version_of(blob: bytes) -> str:
    return RankingPolicy.from_bytes(blob).version


def test_a_registered_policy_is_loaded_by_its_version_and_its_alias(uri: str) -> None:
    older, newer = policy(), policy(seed=2)
    assert register(older, "tips", uri) == "1"
    assert register(newer, "tips", uri) == "2"
    set_aliases("tips", {"champion": version_of(older), "challenger": version_of(newer)}, uri)
    assert (
        load_policy("models:/tips@champion", uri).version
        == load_policy("models:/tips/1", uri).version
        == version_of(older)
    )
    assert load_policy("models:/tips@challenger", uri).version == version_of(newer)
    before = policy_revision("models:/tips@champion", uri)
    assert policy_revision("models:/tips/1", uri) == before != policy_revision("models:/tips@challenger", uri)
    set_aliases("tips", {"champion": version_of(newer)}, uri)
    assert policy_revision("models:/tips@champion", uri) != before
    assert load_policy("models:/tips@champion", uri).version == version_of(newer)
    assert load_policy("models:/tips@challenger", uri).version == version_of(newer)


def test_an_alias_is_removed_by_none_and_names_the_newest_version_of_a_policy(uri: str) -> None:
    blob = policy()
    register(blob, "mirrored", uri)
    register(blob, "mirrored", uri)
    client = MlflowClient(uri, uri)
    for _ in range(2):  # the second time nothing changes
        set_aliases("mirrored", {"champion": version_of(blob), "shadow": version_of(blob)}, uri)
        assert {**client.get_registered_model("mirrored").aliases} == {"champion": 2, "shadow": 2}
    for _ in range(2):
        set_aliases("mirrored", {"shadow": None, "challenger": None}, uri)
        assert {**client.get_registered_model("mirrored").aliases} == {"champion": 2}


def test_a_policy_that_moves_from_one_alias_to_another_always_has_one(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = policy()
    register(blob, "moving", uri)
    set_aliases("moving", {"challenger": version_of(blob)}, uri)
    present: list[set[str]] = []
    for name in ("set_registered_model_alias", "delete_registered_model_alias"):
        change = getattr(MlflowClient, name)

        def recorded(client: MlflowClient, *arguments: str, change: Any = change) -> None:
            change(client, *arguments)
            present.append({*client.get_registered_model("moving").aliases})

        monkeypatch.setattr(MlflowClient, name, recorded)
    set_aliases("moving", {"challenger": None, "champion": version_of(blob)}, uri)
    assert present == [{"challenger", "champion"}, {"champion"}]


def test_of_aliases_with_an_unknown_policy_or_name_none_is_set(uri: str) -> None:
    blob = policy()
    register(blob, "known", uri)
    with pytest.raises(
        RegistryError, match=r"^MLflow's registry has no version of known with the policy feedc0ffee00\.$"
    ):
        set_aliases("known", {"champion": version_of(blob), "shadow": "feedc0ffee00"}, uri)
    assert not MlflowClient(uri, uri).get_registered_model("known").aliases
    with pytest.raises(RegistryError, match=r"^MLflow does not change the aliases of nobody: MlflowException\.$"):
        set_aliases("nobody", {"champion": version_of(blob)}, uri)


def test_the_model_card_is_registered_as_json_and_markdown(uri: str, folder: Path) -> None:
    blob, before = policy_with_figures(), {*folder.rglob("policy/*")}
    register(blob, "to-read", uri, contact="ml@example.org")
    files = {file.name: file for file in {*folder.rglob("policy/*")} - before}
    assert files.keys() == {"policy.npz", "card.json", "README.md"}
    card = ModelCard.model_validate_json(files["card.json"].read_text())
    assert card == ranking_card(RankingPolicy.from_bytes(blob).card, version_of(blob), contact="ml@example.org")
    assert missing(card) == ()
    assert files["README.md"].read_text() == to_markdown(card)


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
    with pytest.raises(RegistryError, match="MLflow does not change the aliases of tips"):
        set_aliases("tips", {"champion": None}, unreachable)
    with pytest.raises(ConfigurationError, match="MLflow does not accept the policy"):
        register(policy(), "tips", unreachable)


def test_the_run_and_the_version_say_what_was_trained(uri: str) -> None:
    blob = policy()
    trained = RankingPolicy.from_bytes(blob)
    assert trained.card.training is not None
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
        "window_days": "all",
        "trained_from": "1970-01-01T00:00:00+00:00",
        "dataset_sha256": trained.card.training.dataset_sha256,
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


def test_the_run_has_the_figures_of_the_held_out_days_with_their_limits(uri: str) -> None:
    blob = policy_with_figures()
    figures = RankingPolicy.from_bytes(blob).card.held_out
    assert figures is not None
    number = register(blob, "measured", uri)
    client = MlflowClient(uri, uri)
    metrics = client.get_run(client.get_model_version("measured", number).run_id).data.metrics
    for metric in figures.metrics:
        assert metrics[metric.name] == metric.value
        assert (metrics.get(f"{metric.name}_low"), metrics.get(f"{metric.name}_high")) == (metric.low, metric.high)
    assert metrics["calibration/0/observed"] == figures.calibration[0].observed
    by_name = {each.name: each for each in figures.slices}
    assert metrics["gain/mood_low"] == by_name["mood:low"].value
    assert metrics["gain/mood_low_high"] == by_name["mood:low"].high


def test_reading_a_registry_that_does_not_exist_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnusablePolicyError, match=rf"there is no MLflow registry {tmp_path}/none\.db$"):
        load_policy("models:/tips@champion", f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(RegistryError, match=r"^The registry cannot be read: there is no MLflow registry"):
        set_aliases("tips", {"champion": None}, f"sqlite:///{tmp_path}/none.db")
    assert [*tmp_path.iterdir()] == []
