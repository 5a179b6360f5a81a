"""What ranking 20 candidates costs, beside MLflow's server and a handler that ranks nothing; and how much is too much.

    python -m tests.bench.score [--seconds 20] [--rate 40] [--rounds 3] [--mlflow PATH/TO/bin]

Everything runs here, over the loopback, one process with one worker for each server:

- tips: `POST /score` as deployed, with keys, validation, logs (to a file), metrics, and the person's aggregates read
  from SQLite;
- MLflow: `mlflow models serve` of the same policy by the same code, without its access log, only with `--mlflow`: its
  requirements conflict with ours, so it needs an environment of its own
  (`pip install 'mlflow>=3.17,<3.18' uvloop httptools`; without the last two it costs more). It is
  given numbers ready made, once as named arrays, the cheapest form that it has, and once as a data frame with a row for
  each candidate; all ratios are relative to the cheapest;
- the floor: a FastAPI handler that ranks nothing, asked as tips is.

All rank 20 candidates with 14 features each, for one of 200 people of whom 26 features are known, two of them
aggregates. open_loop.py says how the requests are sent and what is measured. The servers take turns for several rounds,
and what is printed is the median of the rounds. An answer that is no ranking of all candidates ends the run.

Then the rate grows, see overload.py.
"""

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ml.features.encoder import CONTEXT_ENCODER, candidate_encoder
from ml.features.online_store import replace_all
from ml.pipelines.training import train
from tests.bench import overload
from tests.bench.figures import machine
from tests.bench.open_loop import measure_all, must_answer, session, table
from tests.bench.people import CANDIDATES, VERSIONS, Person, decisions, people
from tests.bench.server import KEY, BenchmarkFailed, Server, get, run, started, until_it_works, uvicorn

OURS = "tips"
MLFLOW = "MLflow, named arrays"
POLICY = "benchmark"


def scoring(everybody: Sequence[Person]) -> list[bytes]:
    """Return what `POST /score` is asked."""
    return [
        json.dumps(
            {
                "event_id": f"e-{person.user_id}",
                "user_id": person.user_id,
                "signals": person.signals,
                "candidates": person.candidates,
            }
        ).encode()
        for person in everybody
    ]


def floor(everybody: Sequence[Person]) -> Server:
    command = uvicorn("tests.bench.peers:uniform", "--factory", "--no-access-log")
    return Server("floor: FastAPI alone", command, "/score", scoring(everybody), is_ranking)


def tips(everybody: Sequence[Person], policy: Path, store: str) -> Server:
    environment = {
        "API_KEYS": KEY,
        "SCORE_POLICY": str(policy),
        "ONLINE_STORE_URL": store,
        # No tip is written.
        "TIP_MODEL": "openai/none",
        "TIP_MODEL_API_BASE": "http://127.0.0.1:9",
        "OPENAI_API_KEY": "k",
    }
    return Server(OURS, uvicorn("ml.serving.main:app"), "/score", scoring(everybody), is_learned_ranking, environment)


def mlflow(everybody: Sequence[Person], policy: Path, executables: Path, directory: Path) -> tuple[list[Server], str]:
    """Put the policy into MLflow; return its servers, one for each form of request, and what they run on."""
    environment = {
        "PATH": f"{executables}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{directory / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "UVICORN_ACCESS_LOG": "false",
    }
    made = subprocess.run(
        [executables / "python", "-m", "tests.bench.mlflow_peer", POLICY, policy, directory / "artifacts"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise BenchmarkFailed(f"MLflow does not take the model.\n{made.stderr}")
    command = [str(executables / "mlflow"), "models", "serve", "--env-manager", "local", "--workers", "1"]
    command += ["--model-uri", f"models:/{POLICY}/1"]
    bodies: dict[str, list[bytes]] = {MLFLOW: [], "MLflow, a data frame": []}
    for person in everybody:
        for form, asked in zip(bodies.values(), forms(person), strict=True):
            form.append(json.dumps(asked).encode())
    servers = [Server(name, command, "/invocations", form, is_prediction, environment) for name, form in bodies.items()]
    return servers, made.stdout.strip()


def forms(person: Person) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what MLflow is asked: named arrays, in which 0 stands for what is missing, and a data frame without it."""
    of_candidates = candidate_encoder(VERSIONS)
    context = CONTEXT_ENCODER.encode_rows([{**person.signals, **person.aggregates}])[0].round(6)
    rows = of_candidates.encode_rows(person.candidates).round(6)
    known = ~np.isnan(context)
    arrays = {"context": np.nan_to_num(context).tolist(), "candidates": rows.tolist()}
    frame = {
        "columns": [*np.array(CONTEXT_ENCODER.columns)[known].tolist(), *of_candidates.columns],
        "data": np.hstack((np.tile(context[known], (CANDIDATES, 1)), rows)).tolist(),
    }
    return {"inputs": arrays}, {"dataframe_split": frame}


def is_ranking(answer: bytes) -> bool:
    scores = json.loads(answer)["scores"]
    return len(scores) == CANDIDATES and math.isclose(sum(score["probability"] for score in scores), 1)


def is_learned_ranking(answer: bytes) -> bool:
    told = json.loads(answer)
    return is_ranking(answer) and told["policy"]["name"] == POLICY and len(told["aggregates"]) > 0


def is_prediction(answer: bytes) -> bool:
    told = json.loads(answer)["predictions"]
    return len(told["scores"]) == CANDIDATES and math.isclose(sum(told["probabilities"]), 1)


async def benchmark(seconds: float, rate: float, rounds: int, executables: Path | None) -> tuple[str, str, str]:
    """Measure all; return the table of costs, the one of the curves, and what MLflow runs on."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        everybody = people()
        policy, store = directory / "policy", f"sqlite:///{directory / 'features.db'}"
        policy.write_bytes(train([*decisions(everybody)], name=POLICY))
        replace_all(store, ((person.user_id, person.aggregates) for person in everybody), datetime.now(UTC))
        servers = [floor(everybody), tips(everybody, policy, store)]
        if executables:
            peers, runs_on = mlflow(everybody, policy, executables, directory)
            servers += peers
        else:
            runs_on = "not measured, it is optional: see --mlflow"
        async with session() as client:
            runnings = []
            for server in servers:
                running = stack.enter_context(started(server, directory))
                await until_it_works(running, partial(must_answer, client, running))
                if server.name == OURS:  # it still imports what writes tips
                    await until_it_works(running, partial(get, client, running, "/health/ready"))
                runnings.append(running)
            costs = await measure_all(client, runnings, seconds, rate, rounds)
            curves = await overload.curves(client, runnings, rounds)
            return table(costs, MLFLOW, "MLflow"), overload.table(curves), runs_on


def main(
    seconds: Annotated[float, typer.Option(min=1, help="How long each server is measured in each round.")] = 20,
    rate: Annotated[float, typer.Option(min=0.1, help="Requests a second.")] = 40,
    rounds: Annotated[int, typer.Option(min=1, help="How often each server has its turn.")] = 3,
    mlflow: Annotated[Path | None, typer.Option(exists=True, help="The `bin` of an environment with MLflow.")] = None,
) -> None:
    """Measure what one ranking costs, in CPU time and in latency, and how many a second are too many."""
    costs, curves, runs_on = run(benchmark(seconds, rate, rounds, mlflow.absolute() if mlflow else None))
    ours = machine("fastapi", "uvicorn", "uvloop", "httptools", "numpy")
    typer.echo(f"{rate:g} requests a second, {seconds:g} s a round, median of {rounds}. {ours}")
    typer.echo(f"MLflow: {runs_on}.\n\n{costs}\n\nGrowing rates, {overload.SECONDS:g} s a round:\n\n{curves}")


if __name__ == "__main__":
    typer.run(main)
