"""Register a policy in MLflow as a pyfunc model, for `mlflow models serve`.

    python -m tests.bench.mlflow_peer NAME POLICY ARTIFACTS

Run by an environment that has all of MLflow, and Vowpal Wabbit. The model is the one in the policy, asked as Vowpal
Wabbit is asked, and is given numbers ready made. The store is where `MLFLOW_TRACKING_URI`
says. Prints the versions of what it runs on.
"""

import sys
import tempfile
import zipfile
from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc import PythonModel
from vowpalwabbit import Workspace

from ml.experiments.ranking import Card, Encoder
from tests.bench.figures import versions


class Ranker(PythonModel):  # type: ignore[misc]
    """Ranks the rows of a data frame, or `candidates`, shape (n, columns), for `context`, shape (columns,)."""

    def load_context(self, context: Any) -> None:
        with zipfile.ZipFile(context.artifacts["policy"]) as archive, tempfile.TemporaryDirectory() as directory:
            card = Card.model_validate_json(archive.read("card.json"))
            self.model = Workspace(f"--quiet --testonly -i {archive.extract('model.vw', directory)}")
        self.encoder = Encoder(card.context, card.candidate)
        self.exploration = card.exploration
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
        scores = np.clip(-np.array(self.model.predict(self.encoder.encode(of_context, of_candidates))), 0, 1)
        return {"scores": scores, "probabilities": self.exploration.distribution(scores)}


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
