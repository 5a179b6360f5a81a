"""Policies in MLflow's model registry: numbered versions of a name, aliases of versions, and model cards."""

import os
import re
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from urllib.parse import urlsplit

from ml.platform.clock import utc_now
from ml.platform.settings import ConfigurationError
from ml.registry.artifacts import (
    EARLIER_RELEASE,
    MAX_BYTES,
    TOO_LARGE,
    AbsentPolicyError,
    AbsentRegistryError,
    PolicyCard,
    RankingPolicy,
    UnusablePolicyError,
    read_artifact,
)
from ml.registry.card_markdown import to_markdown
from ml.registry.cards import ModelCard
from ml.registry.ranking_cards import ranking_card

# MLflow reads these variables. Without them it sends telemetry, draws progress bars, logs and prints links to runs.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
os.environ["MLFLOW_LOGGING_LEVEL"] = "ERROR"
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
# Short timeouts for a server that does not answer, unless the operator has set others.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow
        from mlflow.entities import Metric, Param
        from mlflow.entities.model_registry import ModelVersion
        from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # of a registry in a database, which MLflow passes on
except ModuleNotFoundError as error:
    raise ConfigurationError(f"{error.name} is missing: `models:/…` needs the `registry` extra.") from None

SCHEME = "models:/"
_SQLITE = "sqlite:///"

# Plain artifacts: loading a model of one of MLflow's own flavours would unpickle it.
_FOLDER, _POLICY, _CARD, _README = "policy", "policy.npz", "card.json", "README.md"
_EARLIER_POLICY = "policy.zip"

_VERSION_TAG = "policy_version"
_ABSENT = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
"""The codes of MLflow's errors for a name, and for an alias, that does not exist."""
_UNREACHABLE = "is not in MLflow's registry, or the registry cannot be reached"

_MAX_PARAM_LENGTH = 500
"""MLflow refuses longer parameters on some of its stores."""


class RegistryError(Exception):
    """MLflow's registry could not be changed; the message is one sentence."""


def fetch(uri: str, tracking_uri: str) -> bytes:
    """Return the file of the policy `models:/NAME@ALIAS` or `models:/NAME/VERSION`. Raises UnusablePolicyError."""
    try:
        found = _find(uri, tracking_uri)
        _check_files(found.source, tracking_uri)
        # A local file is read in place: a copy of a device would never end.
        is_local = urlsplit(found.source).scheme in {"", "file"}
        with TemporaryDirectory() as directory:
            file = mlflow.artifacts.download_artifacts(
                f"{found.source}/{_POLICY}", dst_path=None if is_local else directory, tracking_uri=tracking_uri
            )
            return read_artifact(file)
    except (MlflowException, OSError, SQLAlchemyError):
        raise UnusablePolicyError(_UNREACHABLE) from None


def revision(uri: str, tracking_uri: str) -> str:
    """Return the number and the place of the version that `uri` names now. Raises UnusablePolicyError."""
    try:
        found = _find(uri, tracking_uri)
    except (MlflowException, OSError, SQLAlchemyError):
        raise UnusablePolicyError(_UNREACHABLE) from None
    return f"{found.version} {found.source}"


def _find(uri: str, tracking_uri: str) -> ModelVersion:
    """Raises UnusablePolicyError, or an error of MLflow or of the connection."""
    _require_registry(tracking_uri)
    name, at, alias = uri.removeprefix(SCHEME).partition("@")
    client = mlflow.MlflowClient(tracking_uri, tracking_uri)
    if not at:
        return client.get_model_version(*name.rsplit("/", 1))
    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in _ABSENT:
            raise AbsentPolicyError(_UNREACHABLE) from None
        raise


def _require_registry(tracking_uri: str) -> None:
    """Raise AbsentRegistryError if the registry is an SQLite file that does not exist: MLflow would create it."""
    file = Path(tracking_uri.removeprefix(_SQLITE))
    if tracking_uri.startswith(_SQLITE) and not file.is_file():
        raise AbsentRegistryError(f"cannot be read: there is no MLflow registry {file.resolve()}")


def _check_files(folder: str, tracking_uri: str) -> None:
    """Raise UnusablePolicyError if the folder has only a policy of an earlier release, or one that is too large."""
    artifacts = mlflow.artifacts.list_artifacts(artifact_uri=folder, tracking_uri=tracking_uri)
    sizes = {Path(artifact.path).name: artifact.file_size or 0 for artifact in artifacts}
    if _EARLIER_POLICY in sizes and _POLICY not in sizes:
        raise UnusablePolicyError(EARLIER_RELEASE)
    if sizes.get(_POLICY, 0) > MAX_BYTES:
        raise UnusablePolicyError(TOO_LARGE)


def register(
    blob: bytes,
    name: str,
    tracking_uri: str,
    *,
    training: Mapping[str, str] = MappingProxyType({}),
    contact: str | None = None,
    model_card: ModelCard | None = None,
) -> str:
    """Register a policy, with its model card as separate files, as the next version of `name`; return that version.

    `training`: parameters of the training that the card does not have; they become parameters of the run. `model_card`:
    the default follows from the policy, with this `contact`. Raises ConfigurationError if MLflow cannot be reached, or
    refuses the name.
    """
    policy = RankingPolicy.from_bytes(blob)
    card, tags = policy.card, {_VERSION_TAG: policy.version, "tips_release": version("tip-service")}
    model_card = model_card or ranking_card(card, policy.version, contact=contact)
    try:
        client = mlflow.MlflowClient(tracking_uri, tracking_uri)
        experiment = client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
        run = client.create_run(experiment_id, tags=tags, run_name=f"{name} {policy.version}")
        client.log_batch(run.info.run_id, metrics=_metrics(policy), params=_params(card, training))
        with TemporaryDirectory() as directory:
            Path(directory, _POLICY).write_bytes(blob)
            Path(directory, _CARD).write_text(model_card.model_dump_json(indent=1), encoding="utf-8")
            Path(directory, _README).write_text(to_markdown(model_card), encoding="utf-8")
            client.log_artifacts(run.info.run_id, directory, _FOLDER)
        client.set_terminated(run.info.run_id)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        source = f"{run.info.artifact_uri}/{_FOLDER}"
        registered = client.create_model_version(
            name, source, run.info.run_id, tags=tags, description=_description(policy)
        )
    except (MlflowException, OSError) as error:
        raise ConfigurationError(f"MLflow does not accept the policy: {type(error).__name__}.") from None
    return str(registered.version)


def find_version(name: str, policy_version: str, tracking_uri: str) -> str | None:
    """Return the newest version of the registered model `name` that has a policy; None without one.

    `policy_version`: of the policy. Raises ConfigurationError if MLflow cannot be reached.
    """
    try:
        found = mlflow.MlflowClient(tracking_uri, tracking_uri).search_model_versions(f"name = '{name}'")
    except (MlflowException, OSError) as error:
        raise ConfigurationError(f"MLflow's registry cannot be read: {type(error).__name__}.") from None
    numbers = [int(each.version) for each in found if each.tags.get(_VERSION_TAG) == policy_version]
    return str(max(numbers)) if numbers else None


def set_aliases(name: str, aliases: Mapping[str, str | None], tracking_uri: str) -> None:
    """Move each alias of the registered model `name` to the newest version that has this policy; None: remove it.

    `aliases`: the version of a policy, or None, by alias. Only aliases that differ are changed, one after the other:
    MLflow can change several neither at once nor on a condition. Raises RegistryError if a policy is not registered
    under this name (then nothing is changed), or if MLflow cannot be reached.
    """
    try:
        _require_registry(tracking_uri)
        client = mlflow.MlflowClient(tracking_uri, tracking_uri)
        present = client.get_registered_model(name).aliases
        numbers: dict[str, int] = {}
        for registered in client.search_model_versions(f"name = '{name}'"):
            policy_version, number = registered.tags.get(_VERSION_TAG, ""), int(registered.version)
            numbers[policy_version] = max(number, numbers.get(policy_version, 0))
        if unknown := sorted({wanted for wanted in aliases.values() if wanted} - numbers.keys()):
            raise RegistryError(f"MLflow's registry has no version of {name} with the policy {', '.join(unknown)}.")
        # First those that move: a policy always keeps an alias by which it can be found.
        for alias, wanted in sorted(aliases.items(), key=lambda each: each[1] is None):
            if wanted is None and alias in present:
                client.delete_registered_model_alias(name, alias)
            elif wanted is not None and int(present.get(alias, 0)) != numbers[wanted]:
                client.set_registered_model_alias(name, alias, str(numbers[wanted]))
    except UnusablePolicyError as error:
        raise RegistryError(f"The registry {error}.") from None
    except (MlflowException, OSError) as error:
        raise RegistryError(f"MLflow does not change the aliases of {name}: {type(error).__name__}.") from None


def _metrics(policy: RankingPolicy) -> list[Metric]:
    """Return the size of the training and of the model, the variance that the model leaves, and the held-out figures.

    The limits of a figure are metrics of their own, such as `gain_low`; that of a slice is `gain/mood_low`.
    """
    values: dict[str, float | None] = {
        "decisions": policy.card.learned_from,
        "features": policy.model.weights.size,
        "noise_variance": policy.model.noise_variance,
    }
    if figures := policy.card.held_out:
        for metric in figures.metrics:
            values |= {metric.name: metric.value, f"{metric.name}_low": metric.low, f"{metric.name}_high": metric.high}
        for number, group in enumerate(figures.calibration):
            values |= {f"calibration/{number}/{field}": value for field, value in group.model_dump().items()}
        for part in figures.slices:
            name = f"gain/{re.sub(r'[^A-Za-z0-9_.-]', '_', part.name)}"
            values |= {name: part.value, f"{name}_low": part.low, f"{name}_high": part.high}
    now_ms = int(utc_now().timestamp() * 1000)
    return [Metric(name, value, now_ms, 0) for name, value in values.items() if value is not None]


def _params(card: PolicyCard, training: Mapping[str, str]) -> list[Param]:
    values = {
        "prompt_versions": ",".join(card.versions)[:_MAX_PARAM_LENGTH],
        "trained_until": _time(card.trained_until),
        "gamma_scale": f"{card.gamma_scale:g}",
        "floor": f"{card.floor:g}",
        "window_days": str(card.window_days or "all"),
        **_dataset(card),
        **training,
    }
    return [Param(name, value) for name, value in values.items()]


def _dataset(card: PolicyCard) -> dict[str, str]:
    """Return the parameters that name the decisions of the training; none for files of earlier releases."""
    if card.training is None:
        return {}
    return {
        "trained_from": card.training.since.isoformat(timespec="seconds"),
        "dataset_sha256": card.training.dataset_sha256,
    }


def _description(policy: RankingPolicy) -> str:
    card = policy.card
    return (
        f"Ranking policy {policy.version}: learned from {card.learned_from:,} decisions up to "
        f"{_time(card.trained_until)} with the prompt versions {', '.join(card.versions)}."
    )


def _time(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="seconds")
