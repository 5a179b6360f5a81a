"""Puts a policy into MLflow as a model of its own kind (pyfunc), for `mlflow models serve`.

    python -m tests.bench.mlflow_peer NAME POLICY ARTIFACTS

Run by an environment that has all of MLflow, and Vowpal Wabbit. The model ranks by the same policy and the same code as
serving does, but is given numbers, so what differs is the server around it. The store is where `MLFLOW_TRACKING_URI`
says. Prints the versions of what it runs on.
"""

import sys
from pathlib import Path
from typing import Any

import mlflow
from mlflow.pyfunc import PythonModel

from ml.experiments.ranking import RankingPolicy
from tests.bench.figures import versions


class Ranker(PythonModel):  # type: ignore[misc]
    """Ranks `candidates`, shape (n, columns), for `context`, shape (columns,); 0 stands for what is missing."""

    def load_context(self, context: Any) -> None:
        self.policy = RankingPolicy.load(Path(context.artifacts["policy"]).read_bytes())

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ARG002
        """Take no type hints: MLflow would make a schema of them, and check each request by it."""
        ranking = self.policy.rank(model_input["context"], model_input["candidates"])
        return {"scores": ranking.scores, "probabilities": ranking.probabilities}


def main(name: str, policy: str, artifacts: str) -> None:
    experiment = mlflow.create_experiment(name, artifact_location=artifacts)
    with mlflow.start_run(experiment_id=experiment):
        mlflow.pyfunc.log_model(
            name=name,
            python_model=Ranker(),
            artifacts={"policy": policy},
            registered_model_name=name,
            pip_requirements=[],
        )
    print(versions("mlflow", "fastapi", "uvicorn", "uvloop", "httptools", "vowpalwabbit"))


if __name__ == "__main__":
    main(*sys.argv[1:])
