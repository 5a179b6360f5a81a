"""Time and memory of off-policy evaluation over logs that are made while they are read.

    python -m tests.bench.streaming_evaluation [--decisions 250000 1000000] [--users 20000]

Each evaluation runs in a process of its own. `reading` only reads the log three times, as an evaluation does: its time
is that of making the decisions. Decisions are among three prompt versions; for `learned, ranked` among three tips.
"""

import argparse
import math
import random
import resource
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context

from ml.experiments.decisions import DecisionLog, LoggedCandidate, LoggedDecision, NewestPrompts
from ml.pipelines.evaluation import evaluate
from ml.pipelines.targets import RankingTarget, Target, parse_target
from ml.pipelines.training import train
from ml.registry.artifacts import RankingPolicy
from ml.registry.policies import LearnedPolicy

VERSIONS = ("v1", "v2-mentor", "v3-few-shot")
TIPS = (
    "Take three slow breaths before the next thing you do.",
    "Go outside for ten minutes, and leave the phone at home.",
    "Write down the one task that matters today, and start with it.",
    "Drink a glass of water, then stretch your shoulders.",
)
CHUNK = 4_096
DAYS = 60
_DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class MadeLog:
    """A log of `n` random decisions over `DAYS` days from `start`, which are the same at each reading."""

    n: int
    users: int
    ranked: bool
    start: float = 0.0

    def chunks(self, since: float = -math.inf, before: float = math.inf) -> Iterator[Sequence[LoggedDecision]]:
        chance = random.Random(1)
        for first in range(0, self.n, CHUNK):
            numbers = range(first, min(first + CHUNK, self.n))
            chunk = [self._decision(number, chance) for number in numbers]
            yield [decision for decision in chunk if since <= decision.at < before]

    def newest_prompts(self, since: float = -math.inf, before: float = math.inf) -> NewestPrompts:  # noqa: ARG002
        return NewestPrompts({})  # no version has several digests

    def _decision(self, number: int, chance: random.Random) -> LoggedDecision:
        chosen, mood = int(3 * chance.random()), ("great", "okay", "low")[int(3 * chance.random())]
        tips = [TIPS[int(4 * chance.random())] for _ in VERSIONS] if self.ranked else [None] * 3
        reward = float(chance.random() < 0.2 + 0.1 * (chosen == ("great", "okay", "low").index(mood)))
        return LoggedDecision(
            f"d-{number:08}",
            f"user-{int(self.users * chance.random()):06}",
            self.start + number * DAYS * _DAY / self.n,
            {"mood": mood, "stress": 1 + int(5 * chance.random()), "locale": "en-GB", "local_time": "08:30"},
            {"reward_rate_30d": 0.25, "tips_7d": 4},
            tuple(LoggedCandidate(version, 1 / 3, tip) for version, tip in zip(VERSIONS, tips, strict=True)),
            chosen,
            reward,
            reward,
            self.ranked,
        )


CASES = ("reading", "v3-few-shot", "thompson", "learned", "learned, ranked")


def trained(*, ranked: bool) -> bytes:
    """Return a policy that was trained on 5,000 decisions before the log."""
    log = MadeLog(5_000, 500, ranked, start=-DAYS * _DAY)
    return train(log)


def measure(case: str, n: int, users: int, artifact: bytes) -> tuple[float, float, float]:
    """Return the seconds (CPU), the peak memory in MB, and the part of it that the process had before."""
    ranked = case.endswith("ranked")
    log: DecisionLog = MadeLog(n, users, ranked)
    target: Target | None = None
    if case.startswith("learned"):
        target = RankingTarget(LearnedPolicy(RankingPolicy.from_bytes(artifact)))
    elif case != "reading":
        target = parse_target(case, reaction_window=timedelta(hours=24), tracking_uri="sqlite:///unused.db")
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.process_time()
    if target:
        evaluate(log, target)
    else:
        for _ in range(3):
            sum(map(len, log.chunks()))
    seconds = time.process_time() - start
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, before


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decisions", type=int, nargs="+", default=[250_000, 1_000_000])
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES])
    arguments = parser.parse_args()
    print(
        "| target | decisions | CPU | of it per decision | peak memory | before |",
        "|---|---|---|---|---|---|",
        sep="\n",
    )
    for case in arguments.cases:
        # In a process of its own: one that is started later would count the memory of this one.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            artifact = process.submit(trained, ranked=case.endswith("ranked")).result()
        for n in arguments.decisions:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                seconds, peak, before = process.submit(measure, case, n, arguments.users, artifact).result()
            each = 1e6 * seconds / n
            print(f"| {case} | {n:,} | {seconds:.0f} s | {each:.0f} µs | {peak:.0f} MB | {before:.0f} MB |", flush=True)


if __name__ == "__main__":
    main()
