"""Policies in MLflow's model registry: numbered versions of a name, and aliases of versions."""

import os
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from ml.platform.settings import ConfigurationError
from ml.registry.artifacts import (
    EARLIER_RELEASE,
    MAX_BYTES,
    TOO_LARGE,
    RankingPolicy,
    UnusablePolicyError,
    read_artifact,
)

# MLflow reads these variables when it is imported. Without them it sends telemetry, draws progress bars, and logs.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
os.environ["MLFLOW_LOGGING_LEVEL"] = "ERROR"
# Short timeouts for a server that does not answer, unless the operator has set others.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow
        from mlflow.exceptions import MlflowException
except ModuleNotFoundError as error:
    raise ConfigurationError(f"{error.name} is missing: `models:/…` needs the `registry` extra.") from None

SCHEME = "models:/"

# Plain artifacts: loading a model of one of MLflow's own flavours would unpickle it.
_FOLDER, _POLICY, _CARD = "policy", "policy.npz", "card.json"
_EARLIER_POLICY = "policy.zip"


def fetch(uri: str, tracking_uri: str) -> bytes:
    """Return the file of the policy `models:/NAME@ALIAS` or `models:/NAME/VERSION`. Raises UnusablePolicyError."""
    name, at, alias = uri.removeprefix(SCHEME).partition("@")
    try:
        client = mlflow.MlflowClient(tracking_uri, tracking_uri)
        if at:
            version = client.get_model_version_by_alias(name, alias)
        else:
            version = client.get_model_version(*name.rsplit("/", 1))
        _check_files(version.source, tracking_uri)
        # A local file is read in place: a copy of a device would never end.
        is_local = urlsplit(version.source).scheme in {"", "file"}
        with TemporaryDirectory() as directory:
            file = mlflow.artifacts.download_artifacts(
                f"{version.source}/{_POLICY}", dst_path=None if is_local else directory, tracking_uri=tracking_uri
            )
            return read_artifact(file)
    except (MlflowException, OSError):
        raise UnusablePolicyError("is not in MLflow's registry, or the registry cannot be reached") from None


def _check_files(folder: str, tracking_uri: str) -> None:
    """Raise UnusablePolicyError if the folder has only a policy of an earlier release, or one that is too large."""
    artifacts = mlflow.artifacts.list_artifacts(artifact_uri=folder, tracking_uri=tracking_uri)
    sizes = {Path(artifact.path).name: artifact.file_size or 0 for artifact in artifacts}
    if _EARLIER_POLICY in sizes and _POLICY not in sizes:
        raise UnusablePolicyError(EARLIER_RELEASE)
    if sizes.get(_POLICY, 0) > MAX_BYTES:
        raise UnusablePolicyError(TOO_LARGE)


def register(blob: bytes, name: str, tracking_uri: str, *, alias: str | None = None) -> str:
    """Register a policy, with its card as a separate file, as the next version of `name`; return that version.

    `alias`, such as `champion`, is moved to this version. Raises ConfigurationError if MLflow cannot be reached, or
    refuses the name.
    """
    policy = RankingPolicy.from_bytes(blob)
    try:
        client = mlflow.MlflowClient(tracking_uri, tracking_uri)
        experiment = client.get_experiment_by_name(name)
        run = client.create_run(experiment.experiment_id if experiment else client.create_experiment(name))
        with TemporaryDirectory() as directory:
            Path(directory, _POLICY).write_bytes(blob)
            Path(directory, _CARD).write_text(policy.card.model_dump_json(indent=1))
            client.log_artifacts(run.info.run_id, directory, _FOLDER)
        client.set_terminated(run.info.run_id)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        source = f"{run.info.artifact_uri}/{_FOLDER}"
        version = client.create_model_version(name, source, run.info.run_id, tags={"policy_version": policy.version})
        if alias:
            client.set_registered_model_alias(name, alias, version.version)
    except (MlflowException, OSError) as error:
        raise ConfigurationError(f"MLflow does not accept the policy: {type(error).__name__}.") from None
    return str(version.version)
