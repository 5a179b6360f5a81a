"""Policies in MLflow's model registry: numbered versions of a name, and aliases of versions."""

import os
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
    PolicyCard,
    RankingPolicy,
    UnusablePolicyError,
    read_artifact,
)

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
        from mlflow.exceptions import MlflowException
except ModuleNotFoundError as error:
    raise ConfigurationError(f"{error.name} is missing: `models:/…` needs the `registry` extra.") from None

SCHEME = "models:/"
_SQLITE = "sqlite:///"

# Plain artifacts: loading a model of one of MLflow's own flavours would unpickle it.
_FOLDER, _POLICY, _CARD = "policy", "policy.npz", "card.json"
_EARLIER_POLICY = "policy.zip"

_MAX_PARAM_LENGTH = 500
"""MLflow refuses longer parameters on some of its stores."""


def fetch(uri: str, tracking_uri: str) -> bytes:
    """Return the file of the policy `models:/NAME@ALIAS` or `models:/NAME/VERSION`. Raises UnusablePolicyError."""
    _require_registry(tracking_uri)
    name, at, alias = uri.removeprefix(SCHEME).partition("@")
    try:
        client = mlflow.MlflowClient(tracking_uri, tracking_uri)
        by_alias = client.get_model_version_by_alias
        found = by_alias(name, alias) if at else client.get_model_version(*name.rsplit("/", 1))
        _check_files(found.source, tracking_uri)
        # A local file is read in place: a copy of a device would never end.
        is_local = urlsplit(found.source).scheme in {"", "file"}
        with TemporaryDirectory() as directory:
            file = mlflow.artifacts.download_artifacts(
                f"{found.source}/{_POLICY}", dst_path=None if is_local else directory, tracking_uri=tracking_uri
            )
            return read_artifact(file)
    except (MlflowException, OSError):
        raise UnusablePolicyError("is not in MLflow's registry, or the registry cannot be reached") from None


def _require_registry(tracking_uri: str) -> None:
    """Raise UnusablePolicyError if the registry is an SQLite file that does not exist: MLflow would create it."""
    file = Path(tracking_uri.removeprefix(_SQLITE))
    if tracking_uri.startswith(_SQLITE) and not file.is_file():
        raise UnusablePolicyError(f"cannot be read: there is no MLflow registry {file.resolve()}")


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
    alias: str | None = None,
    training: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Register a policy, with its card as a separate file, as the next version of `name`; return that version.

    `alias`, such as `champion`, is moved to this version. `training`: parameters of the training that the card does
    not have; they become parameters of the run. Raises ConfigurationError if MLflow cannot be reached, or refuses the
    name.
    """
    policy = RankingPolicy.from_bytes(blob)
    card, tags = policy.card, {"policy_version": policy.version, "tips_release": version("tip-service")}
    try:
        client = mlflow.MlflowClient(tracking_uri, tracking_uri)
        experiment = client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
        run = client.create_run(experiment_id, tags=tags, run_name=f"{name} {policy.version}")
        client.log_batch(run.info.run_id, metrics=_metrics(policy), params=_params(card, training))
        with TemporaryDirectory() as directory:
            Path(directory, _POLICY).write_bytes(blob)
            Path(directory, _CARD).write_text(policy.card.model_dump_json(indent=1))
            client.log_artifacts(run.info.run_id, directory, _FOLDER)
        client.set_terminated(run.info.run_id)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        source = f"{run.info.artifact_uri}/{_FOLDER}"
        registered = client.create_model_version(
            name, source, run.info.run_id, tags=tags, description=_description(policy)
        )
        if alias:
            client.set_registered_model_alias(name, alias, registered.version)
    except (MlflowException, OSError) as error:
        raise ConfigurationError(f"MLflow does not accept the policy: {type(error).__name__}.") from None
    return str(registered.version)


def _metrics(policy: RankingPolicy) -> list[Metric]:
    """Return the size of the training and of the model, and the variance of a reward that the model leaves."""
    now_ms = int(utc_now().timestamp() * 1000)
    values = {
        "decisions": policy.card.learned_from,
        "features": policy.model.weights.size,
        "noise_variance": policy.model.noise_variance,
    }
    return [Metric(name, value, now_ms, 0) for name, value in values.items()]


def _params(card: PolicyCard, training: Mapping[str, str]) -> list[Param]:
    values = {
        "prompt_versions": ",".join(card.versions)[:_MAX_PARAM_LENGTH],
        "trained_until": _time(card.trained_until),
        "gamma_scale": f"{card.gamma_scale:g}",
        "floor": f"{card.floor:g}",
        **training,
    }
    return [Param(name, value) for name, value in values.items()]


def _description(policy: RankingPolicy) -> str:
    card = policy.card
    return (
        f"Ranking policy {policy.version}: learned from {card.learned_from:,} decisions up to "
        f"{_time(card.trained_until)} with the prompt versions {', '.join(card.versions)}."
    )


def _time(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="seconds")
