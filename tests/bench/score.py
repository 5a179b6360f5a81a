"""What ranking 20 candidates costs, beside MLflow's server and a handler that ranks nothing; and how much is too much.

    python -m tests.bench.score [--seconds 20] [--rate 40] [--rounds 3] [--mlflow PATH/TO/bin]

Everything runs here, over the loopback, one process with one worker for each server:

- tips: `POST /score` as deployed, with keys, validation, logs (to a file), metrics, and the person's aggregates read
  from SQLite;
- MLflow: `mlflow models serve` of the same policy by the same code, without its access log, only with `--mlflow`: it
  conflicts with what we need (fastapi, among others), so it needs an environment of its own
  (`pip install 'mlflow>=3.17,<3.18' vowpalwabbit==9.11.9 scipy uvloop httptools`; without the last two it costs more).
  It is asked in the form that is the cheapest for it: named arrays, with the numbers ready made;
- the floor: a FastAPI handler that ranks nothing, asked as tips is.

All rank the same: 20 candidates with 14 features each, for one of many people of whom 26 are known, two of them
aggregates. open_loop.py says how the requests are sent and what is measured. The servers take turns for several rounds,
and what is printed is the median of the rounds. An answer that is no ranking of all candidates ends the run.

Then the rate grows, until a server answers less than half of the requests within what is promised: 50 ms.
"""

import json
import math
import os
import random
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import numpy as np
import typer

from ml.experiments.decisions import Candidate, Decision
from ml.features.store import replace
from ml.features.vectors import CONTEXT, candidates
from ml.pipelines.training import train
from tests.bench.figures import machine, median, p50_and_p99, turns
from tests.bench.open_loop import Answer, Cost, load, measure_all, must_answer, session, table
from tests.bench.server import KEY, BenchmarkFailed, Running, Server, get, run, started, until_it_works, uvicorn

CANDIDATES = 20
PEOPLE = 200
LEARNED_FROM = 2_000
"""Decisions that the policy was made of."""

RATES = (50, 100, 200, 400, 600, 800, 1200)
CURVE_SECONDS = 4.0
PROMISED = 50.0
"""Milliseconds in which an answer comes, up to a rate."""

MLFLOW = "MLflow"
POLICY = "benchmark"

VERSIONS = ("v1", "v2-mentor", "v3-few-shot")
MOODS = ("great", "good", "okay", "low", "awful")
GOALS = ("sleep better", "move more at work", "eat less late at night", "worry less about tasks", "see my friends more")
TIPS = (
    "Dim the lights now and leave your phone to charge in another room.",
    "Stand up, roll your shoulders slowly ten times, and look out of a window until you are done.",
    "Write tomorrow's three most important tasks on paper, then close the laptop for today.",
    "Drink a glass of water before your next coffee.",
    "Take the stairs to the street and walk once around the block; ten minutes are enough.",
    "Breathe in for four counts and out for six, five times.",
    "Call a friend while you cook dinner tonight.",
    "Put your shoes beside the door now, so that tomorrow's morning run begins without a decision.",
)


@dataclass(frozen=True)
class Person:
    """What is known of somebody, and what could be shown to them."""

    user_id: str
    signals: Mapping[str, Any]
    aggregates: Mapping[str, float]
    candidates: Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Point:
    """What became of the requests at one rate: a second in time; of the answers, in ms; refused, and in how many ms."""

    in_time: float
    p50: float
    p99: float
    refused: float
    refused_p99: float


def people() -> list[Person]:
    chance = random.Random(1)
    return [
        Person(
            f"u-{number}",
            {
                "goal": chance.choice(GOALS),
                "mood": chance.choice(MOODS),
                "energy": chance.randint(1, 10),
                "stress": chance.randint(1, 10),
                "sleep_hours": round(chance.uniform(4, 9), 1),
                "steps_today": chance.randrange(15_000),
                "minutes_since_break": chance.randrange(240),
                "open_tasks": chance.randrange(30),
                "meetings_left_today": chance.randrange(6),
                "streak_days": chance.randrange(100),
                "days_since_last_visit": chance.randrange(10),
            },
            {"reward_rate_30d": round(chance.random(), 3), "tips_7d": chance.randint(1, 20)},
            [
                {"id": f"c-{index}", "prompt_version": chance.choice(VERSIONS), "tip": chance.choice(TIPS)}
                for index in range(CANDIDATES)
            ],
        )
        for number in range(PEOPLE)
    ]


def decisions(everybody: Sequence[Person]) -> Iterator[Decision]:
    """Yield what a policy is made of: what people liked is chance here, and does not matter."""
    chance = random.Random(2)
    for number in range(LEARNED_FROM):
        person = everybody[number % PEOPLE]
        yield Decision(
            id=str(number),
            user_id=person.user_id,
            at=number,
            signals=person.signals,
            aggregates=person.aggregates,
            candidates=tuple(Candidate(each["prompt_version"], 0.05, each["tip"]) for each in person.candidates),
            taken=chance.randrange(CANDIDATES),
            reward=float(chance.random() < 0.3),
            ranked=True,
        )


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
    return Server("tips", uvicorn("ml.serving.main:app"), "/score", scoring(everybody), is_learned_ranking, environment)


def mlflow_server(everybody: Sequence[Person], policy: Path, executables: Path, directory: Path) -> tuple[Server, str]:
    """Put the policy into MLflow; return its server, and the versions of what that runs on."""
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
    of_candidates = candidates(VERSIONS)
    bodies = []
    for person in everybody:
        context = CONTEXT.of_rows([{**person.signals, **person.aggregates}])[0]
        numbers = of_candidates.of_rows(person.candidates)
        ready = {"context": plain(context), "candidates": [plain(row) for row in numbers]}
        bodies.append(json.dumps({"inputs": ready}).encode())
    command = [str(executables / "mlflow"), "models", "serve", "--env-manager", "local", "--workers", "1"]
    model = ["--model-uri", f"models:/{POLICY}/1"]
    return Server(MLFLOW, command + model, "/invocations", bodies, is_prediction, environment), made.stdout.strip()


def plain(numbers: Any) -> list[float]:
    """Return numbers as JSON has them; a missing one is none that counts, as it is to the model."""
    return [round(number, 6) for number in np.nan_to_num(numbers).tolist()]


def is_ranking(answer: bytes) -> bool:
    scores = json.loads(answer)["scores"]
    return len(scores) == CANDIDATES and math.isclose(sum(score["probability"] for score in scores), 1)


def is_learned_ranking(answer: bytes) -> bool:
    told = json.loads(answer)
    return is_ranking(answer) and told["policy"]["name"] == POLICY and len(told["aggregates"]) > 0


def is_prediction(answer: bytes) -> bool:
    told = json.loads(answer)["predictions"]
    return len(told["scores"]) == CANDIDATES and math.isclose(sum(told["probabilities"]), 1)


async def point(client: aiohttp.ClientSession, running: Running, rate: float) -> Point:
    """Return what becomes of requests at a rate, after a second of them that does not count."""
    await load(client, running, round(rate), rate)
    return summary(await load(client, running, round(CURVE_SECONDS * rate), rate))


def summary(answers: Sequence[Answer]) -> Point:
    answered = [answer.latency for answer in answers if not answer.refused]
    refused = [answer.latency for answer in answers if answer.refused]
    p50, p99 = p50_and_p99(answered)
    return Point(
        sum(latency <= PROMISED for latency in answered) / CURVE_SECONDS,
        p50,
        p99,
        len(refused) / len(answers),
        p50_and_p99(refused)[1] if refused else 0,
    )


async def curves(
    client: aiohttp.ClientSession, runnings: Sequence[Running], rounds: int
) -> dict[str, dict[float, Point]]:
    """Return what becomes of each server's requests at growing rates, the first that is far too much included."""
    left = {running.server.name: running for running in runnings}
    found: dict[str, dict[float, Point]] = {name: {} for name in left}
    for rate in RATES:
        points: dict[str, list[Point]] = {name: [] for name in left}
        for name, running in turns(left, rounds, f", {rate} a second"):
            points[name].append(await point(client, running, rate))
        for name, of_rounds in points.items():
            found[name][rate] = median(of_rounds)
            if found[name][rate].in_time < rate / 2:
                del left[name]
    return found


def curve_table(curve: Mapping[str, Mapping[float, Point]]) -> str:
    """Return the curves as a table in Markdown."""
    lines = [
        f"| server | asked a second | answered within {PROMISED:g} ms | p50 ms | p99 ms | 503 | p99 ms of a 503 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, points in curve.items():
        for rate, at in points.items():
            refused = f"{at.refused:.0%} | {at.refused_p99:.1f}" if at.refused else " | "
            lines.append(f"| {name} | {rate:g} | {at.in_time:.0f} | {at.p50:.1f} | {at.p99:.1f} | {refused} |")
    return "\n".join(lines)


async def benchmark(seconds: float, rate: float, rounds: int, executables: Path | None) -> tuple[str, str, str]:
    """Measure all; return the table of costs, the one of the curves, and the versions that MLflow runs on."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        everybody = people()
        policy, store = directory / "policy", f"sqlite:///{directory / 'features.db'}"
        policy.write_bytes(train([*decisions(everybody)], name=POLICY))
        replace(store, ((person.user_id, person.aggregates) for person in everybody), datetime.now(UTC))
        servers = [floor(everybody), tips(everybody, policy, store)]
        its_versions = ""
        if executables:
            peer, its_versions = mlflow_server(everybody, policy, executables, directory)
            servers.append(peer)
        async with session() as client:
            runnings = []
            for server in servers:
                running = stack.enter_context(started(server, directory))
                await until_it_works(running, partial(must_answer, client, running))
                if server.name == "tips":  # it still imports what writes tips
                    await until_it_works(running, partial(get, client, running, "/health/ready"))
                runnings.append(running)
            costs: dict[str, Cost] = await measure_all(client, runnings, seconds, rate, rounds)
            return table(costs, MLFLOW, MLFLOW), curve_table(await curves(client, runnings, rounds)), its_versions


def main(
    seconds: Annotated[float, typer.Option(min=1, help="How long each server is measured in each round.")] = 20,
    rate: Annotated[float, typer.Option(min=0.1, help="Requests a second.")] = 40,
    rounds: Annotated[int, typer.Option(min=1, help="How often each server has its turn.")] = 3,
    mlflow: Annotated[Path | None, typer.Option(exists=True, help="The `bin` of an environment with MLflow.")] = None,
) -> None:
    """Measure what one ranking costs, in CPU time and in latency, and how many a second are too many."""
    costs, curve, its_versions = run(benchmark(seconds, rate, rounds, mlflow.absolute() if mlflow else None))
    ours = machine("fastapi", "uvicorn", "uvloop", "httptools", "vowpalwabbit", "numpy")
    typer.echo(f"{rate:g} requests a second, {seconds:g} s a round, median of {rounds}. {ours}")
    typer.echo(f"MLflow's: {its_versions}." if mlflow else "MLflow was not measured: it is optional, see --mlflow.")
    typer.echo(f"\n{costs}\n\nGrowing rates, {CURVE_SECONDS:g} s a round:\n\n{curve}")


if __name__ == "__main__":
    typer.run(main)
