"""The aliases of MLflow's registry, on a real registry."""

from pathlib import Path

import pytest

from ml.registry.artifacts import RankingPolicy
from ml.rollouts.aliases import set_mlflow_aliases
from tests.policies import policy

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's own


def test_aliases_are_set_in_mlflow_and_a_failure_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ml.registry.models import register
    from ml.registry.policies import load_policy

    monkeypatch.chdir(tmp_path)  # where MLflow stores artifacts
    uri, version = f"sqlite:///{tmp_path}/mlflow.db", RankingPolicy.from_bytes(policy()).version
    set_aliases = set_mlflow_aliases(uri)
    missing = set_aliases("tips", {"champion": version})
    assert missing == f"The registry cannot be read: there is no MLflow registry {tmp_path}/mlflow.db."
    register(policy(), "tips", uri)
    assert set_aliases("tips", {"champion": version, "shadow": None}) is None
    assert load_policy("models:/tips@champion", uri).version == version
    unknown = set_aliases("tips", {"shadow": "feedc0ffee00"})
    assert unknown == "MLflow's registry has no version of tips with the policy feedc0ffee00."
