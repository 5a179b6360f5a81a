"""Register a policy in MLflow as a pyfunc model, for `mlflow models serve`.

    python -m tests.bench.mlflow_peer NAME POLICY ARTIFACTS

Run by an environment that has all of MLflow. The model is the one in the policy, ranks by the same code, and is given
numbers ready made. The store is where `MLFLOW_TRACKING_URI` says. Prints the versions of what it runs on.
"""

import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc import PythonModel

from ml.registry.artifacts import RankingPolicy
from tests.bench.figures import versions


class Ranker(PythonModel):  # type: ignore[misc]
    """Ranks the rows of a data frame, or `candidates`, shape (n, columns), for `context`, shape (columns,)."""

    def load_context(self, context: Any) -> None:
        self.policy = RankingPolicy.from_bytes(Path(context.artifacts["policy"]).read_bytes())
        card = self.policy.card
        self.columns_of_context = len(card.context)
        self.place = {column: place for place, column in enumerate((*card.context, *card.candidate))}

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ARG002
        """Take no type hints: MLflow would make a schema of them, and check each request by it."""
        if isinstance(model_input, dict):
            of_context, of_candidates = model_input["context"], model_input["candidates"]
        else:
            numbers = np.zeros((len(model_input), len(self.place)))
            numbers[:, [self.place[column] for column in model_input.columns]] = model_input.to_numpy()
            (of_context, *_), of_candidates = np.hsplit(numbers, [self.columns_of_context])
        ranking = self.policy.rank(np.asarray(of_context, np.float64), np.asarray(of_candidates, np.float64))
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
    print(versions("mlflow", "fastapi", "uvicorn", "uvloop", "httptools", "numpy"))


if __name__ == "__main__":
    main(*sys.argv[1:])
