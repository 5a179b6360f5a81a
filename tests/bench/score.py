"""The cost of ranking 20 candidates, compared with MLflow's server and a handler without ranking; the overload rate.

    python -m tests.bench.score [--seconds 20] [--rate 40] [--rounds 3] [--mlflow PATH/TO/bin]

Everything runs on this machine, over the loopback interface, with one process and one worker for each server:

- tips: `POST /score` as in production, with keys, validation, logs (to a file), metrics, and the user's aggregates from
  SQLite;
- MLflow: `mlflow models serve` of the same policy by the same code, without its access log, only with `--mlflow`: its
  requirements conflict with ours, so it needs an environment of its own
  (`pip install 'mlflow>=3.17,<3.18' babel uvloop httptools`; without the last two it costs more). It is
  given numbers ready made, once as named arrays, the cheapest form that it has, and once as a data frame with a row for
  each candidate; all ratios are relative to the cheapest;
- the floor: a FastAPI handler without a ranking, with the requests of tips.

All servers rank 20 candidates with 14 features each, for one of 200 users with 26 known features, two of them
aggregates. open_loop.py describes how requests are sent and what is measured. The servers are measured in alternation
for several rounds; the printed figures are the medians of the rounds. An answer that does not rank all candidates ends
the run.

Then the rate increases, see overload.py.
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

from ml.experiments.decisions import InMemoryDecisionLog
from ml.features.encoder import CONTEXT_ENCODER, candidate_encoder
from ml.features.online_store import replace_all
from ml.pipelines.training import train
from tests.bench import overload
from tests.bench.figures import machine
from tests.bench.open_loop import measure_all, must_answer, session, table
from tests.bench.server import (
    KEY,
    BenchmarkFailed,
    Server,
    get,
    run,
    service,
    start_server,
    uvicorn,
    wait_until_working,
)
from tests.bench.users import CANDIDATES, VERSIONS, User, decisions, random_users

TIPS = "tips"
MLFLOW = "MLflow, named arrays"
POLICY = "benchmark"


def score_requests(users: Sequence[User]) -> list[bytes]:
    """Return the bodies for `POST /score`."""
    return [
        json.dumps(
            {
                "event_id": f"e-{user.user_id}",
                "user_id": user.user_id,
                "signals": user.signals,
                "candidates": user.candidates,
            }
        ).encode()
        for user in users
    ]


def floor(users: Sequence[User]) -> Server:
    command = uvicorn("tests.bench.peers:uniform", "--factory", "--no-access-log")
    return Server("floor: FastAPI alone", command, "/score", score_requests(users), is_ranking)


def tips(users: Sequence[User], policy: Path, store: str) -> Server:
    environment = {
        "API_KEYS": KEY,
        "SCORE_POLICY": str(policy),
        "ONLINE_STORE_URL": store,
        # No tip is written, so the model is never called.
        "TIP_MODEL": "openai/none",
        "TIP_MODEL_API_BASE": "http://127.0.0.1:9",
        "OPENAI_API_KEY": "k",
    }
    return Server(
        TIPS, service("ml.serving.main:app"), "/score", score_requests(users), is_learned_ranking, environment
    )


def mlflow(users: Sequence[User], policy: Path, executables: Path, directory: Path) -> tuple[list[Server], str]:
    """Register the policy in MLflow; return a server for each request format, and the versions that they run on."""
    environment = {
        "PATH": f"{executables}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{directory / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "UVICORN_ACCESS_LOG": "false",
    }
    ended = subprocess.run(
        [executables / "python", "-m", "tests.bench.mlflow_peer", POLICY, policy, directory / "artifacts"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise BenchmarkFailed(f"MLflow cannot register the model.\n{ended.stderr}")
    command = [str(executables / "mlflow"), "models", "serve", "--env-manager", "local", "--workers", "1"]
    command += ["--model-uri", f"models:/{POLICY}/1"]
    bodies: dict[str, list[bytes]] = {MLFLOW: [], "MLflow, a data frame": []}
    for user in users:
        for format_bodies, request in zip(bodies.values(), mlflow_requests(user), strict=True):
            format_bodies.append(json.dumps(request).encode())
    servers = [
        Server(name, command, "/invocations", format_bodies, is_prediction, environment)
        for name, format_bodies in bodies.items()
    ]
    return servers, ended.stdout.strip()


def mlflow_requests(user: User) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the requests for MLflow: named arrays, 0 for missing values, and a data frame without missing columns."""
    encoder = candidate_encoder(VERSIONS)
    context = CONTEXT_ENCODER.encode_rows([{**user.signals, **user.aggregates}])[0].round(6)
    rows = encoder.encode_rows(user.candidates).round(6)
    known = ~np.isnan(context)
    arrays = {"context": np.nan_to_num(context).tolist(), "candidates": rows.tolist()}
    frame = {
        "columns": [*np.array(CONTEXT_ENCODER.columns)[known].tolist(), *encoder.columns],
        "data": np.hstack((np.tile(context[known], (CANDIDATES, 1)), rows)).tolist(),
    }
    return {"inputs": arrays}, {"dataframe_split": frame}


def is_ranking(answer: bytes) -> bool:
    scores = json.loads(answer)["scores"]
    return len(scores) == CANDIDATES and math.isclose(sum(score["probability"] for score in scores), 1)


def is_learned_ranking(answer: bytes) -> bool:
    response = json.loads(answer)
    return is_ranking(answer) and response["policy"]["name"] == POLICY and len(response["aggregates"]) > 0


def is_prediction(answer: bytes) -> bool:
    predictions = json.loads(answer)["predictions"]
    return len(predictions["scores"]) == CANDIDATES and math.isclose(sum(predictions["probabilities"]), 1)


async def benchmark(seconds: float, rate: float, rounds: int, executables: Path | None) -> tuple[str, str, str]:
    """Measure all servers; return the table of costs, the table of curves, and the versions that MLflow runs on."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        users = random_users()
        policy, store = directory / "policy", f"sqlite:///{directory / 'features.db'}"
        policy.write_bytes(train(InMemoryDecisionLog([*decisions(users)]), name=POLICY))
        replace_all(store, ((user.user_id, user.aggregates) for user in users), datetime.now(UTC))
        servers = [floor(users), tips(users, policy, store)]
        if executables:
            peers, runs_on = mlflow(users, policy, executables, directory)
            servers += peers
        else:
            runs_on = "not measured, it is optional: see --mlflow"
        async with session() as client:
            runnings = []
            for server in servers:
                running = stack.enter_context(start_server(server, directory))
                await wait_until_working(running, partial(must_answer, client, running))
                if server.name == TIPS:  # it still imports LiteLLM
                    await wait_until_working(running, partial(get, client, running, "/health/ready"))
                runnings.append(running)
            costs = await measure_all(client, runnings, seconds, rate, rounds)
            curves = await overload.curves(client, runnings, rounds)
            return table(costs, MLFLOW, "MLflow"), overload.table(curves), runs_on


def main(
    seconds: Annotated[
        float, typer.Option(min=1, help="The time for which each server is measured in each round.")
    ] = 20,
    rate: Annotated[float, typer.Option(min=0.1, help="Requests per second.")] = 40,
    rounds: Annotated[int, typer.Option(min=1, help="The number of rounds.")] = 3,
    mlflow: Annotated[
        Path | None, typer.Option(exists=True, help="The `bin` directory of an environment with MLflow.")
    ] = None,
) -> None:
    """Measure the CPU time and the latency of one ranking, and the rate at which servers are overloaded."""
    costs, curves, runs_on = run(benchmark(seconds, rate, rounds, mlflow.absolute() if mlflow else None))
    description = machine("fastapi", "uvicorn", "uvloop", "httptools", "numpy")
    typer.echo(f"{rate:g} requests per second, {seconds:g} s per round, median of {rounds}. {description}")
    typer.echo(f"MLflow: {runs_on}.\n\n{costs}\n\nIncreasing rates, {overload.SECONDS:g} s per round:\n\n{curves}")


if __name__ == "__main__":
    typer.run(main)
