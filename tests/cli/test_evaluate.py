"""`tips evaluate`, on a database with random tips and reactions whose expected rewards are known."""

import asyncio
import random
import re
import warnings
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import CompletedProcess
from xml.etree import ElementTree as ET

import pytest

from ml.pipelines.offline_log import OfflineDecisionLog
from ml.pipelines.training import train
from ml.registry.artifacts import RankingPolicy
from ml.registry.models import register, set_aliases
from ml.store.database import migrate_database
from ml.store.reactions import Reaction
from ml.store.tip_records import TipRecord
from ml.store.tips import open_tip_store
from tests.cli.commands import database_url
from tests.example_tips import WINDOW, a_tip
from tests.offline import exported
from tests.pipelines.logs import APART, MOODS
from tests.process import TIPS, run

VERSIONS = {"v1": 0.4, "v2": 0.4, "v3": 0.2}
HOURS, TIPS_PER_HOUR = 500, 6


def random_tips(now: datetime) -> Iterator[tuple[TipRecord, Reaction | None]]:
    """Yield a tip at half past every hour of the last days, with its reaction: the best version depends on the mood."""
    rng = random.Random(7)
    for hour in sorted([*range(HOURS)] * TIPS_PER_HOUR, reverse=True):
        (version,) = rng.choices([*VERSIONS], [*VERSIONS.values()])
        mood = rng.choice(MOODS)
        at = now - timedelta(hours=hour + 0.5)
        tip = a_tip(
            user_id=f"u-{rng.randrange(250)}",
            created_at=at,
            policy="weighted",
            options=VERSIONS,
            probability=VERSIONS[version],
            prompt_version_asked=version,
            prompt_version=version,
            signals={"mood": mood},
            segments=(f"mood:{mood}",),
        )
        helps = rng.random() < APART[mood][version]
        yield tip, Reaction(tip.tip_id, "helpful", at + timedelta(minutes=5)) if helps else None


async def fill(url: str, now: datetime) -> None:
    async with open_tip_store(url, lambda: now, reaction_window=WINDOW) as store:
        tips = [*random_tips(now)]
        await asyncio.gather(*(store.add(tip) for tip, _ in tips))
        await store.react([reaction for _, reaction in tips if reaction])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a database, a policy that was trained on the first half of its decisions, and one on all."""
    directory = tmp_path_factory.mktemp("evaluate")
    now = datetime.now(UTC)
    asyncio.run(fill(database_url(directory), now))
    log = OfflineDecisionLog(exported(database_url(directory), directory), seen_only=False)
    mature = now.timestamp() - WINDOW.total_seconds()
    times = [decision.at for chunk in log.chunks(before=mature) for decision in chunk]
    (directory / "half.npz").write_bytes(train(log, before=times[len(times) // 2]))
    (directory / "all.npz").write_bytes(train(log, before=mature))
    return directory


def evaluate(directory: Path, *arguments: str, **settings: str) -> CompletedProcess[str]:
    environment = {"DATABASE_URL": database_url(directory), "OFFLINE_STORE": f"{directory}/offline", "COLUMNS": "80"}
    return run(TIPS, "evaluate", *arguments, **{**environment, **settings})


def output(ended: CompletedProcess[str]) -> str:
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def found_gain(text: str) -> tuple[float, float, float]:
    """Return the gain in points, and the limits of its interval, of the sentence in a text."""
    found = re.search(r": ([+-][0-9.]+) points \(([+-][0-9.]+) to ([+-][0-9.]+)\)", text)
    assert found
    return float(found[1]), float(found[2]), float(found[3])


def columns(table: str) -> dict[str, list[str]]:
    """Return the cells of each column of a table by the column's name."""
    lines = [re.split("[│┃]", line)[1:-1] for line in table.splitlines() if line[0] in "│┃"]
    return {name.strip(): [cell.strip() for cell in cells] for name, *cells in zip(*lines, strict=True)}


def test_the_reward_of_a_version_is_estimated_by_every_estimator(directory: Path) -> None:
    text = output(evaluate(directory, "--policy", "v3"))
    found = columns(text)
    assert [*found] == ["estimate", "the log", "sndr", "snips", "dr", "ips", "dm"]
    assert found.pop("estimate") == [
        *("mean reward", "at least", "at most"),
        *("gain in points", "at least", "at most"),
        *("effective sample size", "mean weight", "largest weight", "gain excludes 0"),
    ]
    log = found.pop("the log")
    assert log[3:] == ["", "", "", "2,856", "1.00", "1.0", ""]
    for reward, low, high, gain, least, most, effective, mean, largest, significant in found.values():
        assert float(low[:-1]) < 40 < float(high[:-1])
        assert float(low[:-1]) < float(reward[:-1]) < float(high[:-1])
        assert 0 < float(least) < float(gain) < float(most)
        assert 500 < int(effective) < 700
        assert (0.9 < float(mean) < 1.1, largest, significant) == (True, "5.0", "yes")
    _, verdict, *_, notes = text.splitlines()
    assert notes == (
        "2,856 decisions, 250 users. The estimates are for a single look, at a policy that was chosen beforehand; use "
        "sndr, and snips as a check."
    )
    # The interval that holds at every look comes first. It is wider than that for a single look.
    gained, at_least, at_most = found_gain(verdict)
    assert verdict.startswith(f"The log earned {log[0]}. No difference from v3 has been found so far: ")
    assert verdict.endswith("This 95% interval holds at every look.")
    assert at_least < float(found["sndr"][4]) < gained < float(found["sndr"][5]) < at_most


def test_a_policy_trained_on_the_first_half_is_better_on_the_second_half(directory: Path) -> None:
    text = output(evaluate(directory, "--policy", str(directory / "half.npz")))
    assert re.search(
        r"^1,428 of 2,856 decisions are left out, because tips has learned from decisions up to ", text, re.MULTILINE
    )
    assert "is better in this traffic" in text
    assert found_gain(text)[1] > 0


def test_the_policy_can_be_a_prompt_policy_or_weights_and_the_period_can_be_limited(directory: Path) -> None:
    learned = output(evaluate(directory, "--policy", "thompson"))
    assert "from thompson has been found so far" in learned
    assert output(evaluate(directory, "--policy", "thompson", THOMPSON_HALF_LIFE_DAYS="1")) != learned
    text = output(evaluate(directory, "--policy", "v1=90,v3=10", "--since", "10d"))
    assert "v1=90,v3=10" in text.splitlines()[1]
    assert re.search(r"^1,296 decisions, ", text, re.MULTILINE)


def test_another_reaction_window_than_the_tips_were_counted_with_is_refused(directory: Path) -> None:
    ended = evaluate(directory, "--policy", "v3", REACTION_WINDOW_HOURS="240")
    assert ended.returncode == 1
    assert ended.stderr.startswith("REACTION_WINDOW_HOURS: ")
    assert "tips recount" in ended.stderr


def test_an_unreliable_estimate_is_refused(directory: Path) -> None:
    text = output(evaluate(directory, "--policy", "v3", "--since", "36h"))
    assert columns(text)["sndr"][-1] == "refused"
    # The interval that holds at every look needs no minimum size.
    assert "No difference from v3 has been found so far" in text


def test_a_registered_policy_is_found_by_its_alias(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory)  # MLflow writes artifacts to the current directory
    registry = f"sqlite:///{directory}/mlflow.db"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # raised inside MLflow
        blob = (directory / "half.npz").read_bytes()
        register(blob, "ranker", registry)
        set_aliases("ranker", {"champion": RankingPolicy.from_bytes(blob).version}, registry)
    text = output(evaluate(directory, "--policy", "models:/ranker@champion", MLFLOW_TRACKING_URI=registry))
    assert "is better in this traffic" in text


def test_the_estimates_are_drawn_to_a_file(directory: Path) -> None:
    text = output(evaluate(directory, "--policy", "v3", "--plot", str(directory / "plot.svg")))
    elements = ET.parse(directory / "plot.svg").iter("{http://www.w3.org/2000/svg}text")
    texts = [element.text or "" for element in elements]
    assert {"the log", "sndr", "snips", "dr", "ips", "dm", "What v3 would have earned"} <= {*texts}
    assert text.splitlines()[1] in " ".join(texts)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("--policy", "v9"),
            "There is nothing to evaluate: v9 was never a candidate; the prompt versions in the log are v1, v2, v3.",
        ),
        (("--policy", "v3", "--since", "2h"), "There is nothing to evaluate: the log holds no decision that is old "),
        (("--policy", "all.npz"), "There is nothing to evaluate. 2,856 of 2,856 decisions are left out, because tips "),
        (("--policy", "tips.db"), "--policy: the policy tips.db is damaged, or is not a policy."),
        (
            ("--policy", "typo.zip"),
            "--policy: 'typo.zip' is neither a file that can be read, nor models:",
        ),
        (("--policy", "v3", "--plot", "directory.svg"), "directory.svg cannot be written."),
    ],
)
def test_an_impossible_evaluation_ends_with_one_sentence(
    directory: Path, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], sentence: str
) -> None:
    monkeypatch.chdir(directory)
    (directory / "directory.svg").mkdir(exist_ok=True)
    ended = evaluate(directory, *arguments)
    assert ended.returncode == 1
    assert ended.stderr.startswith(sentence)
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--plot", "plot.gif"), "should be an .svg or .png file in an existing directory"),
        (("--plot", "nowhere/plot.svg"), "should be an .svg or .png file in an existing directory"),
        (("--since", "30"), "such as 90d or 36h"),
    ],
)
def test_a_wrong_option_is_refused(directory: Path, arguments: Sequence[str], message: str) -> None:
    ended = evaluate(directory, "--policy", "v3", *arguments, COLUMNS="200")
    assert ended.returncode == 2
    assert message in ended.stderr


def test_an_empty_database_has_nothing_to_evaluate(tmp_path: Path) -> None:
    migrate_database(database_url(tmp_path))
    ended = evaluate(tmp_path, "--policy", "v1")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        "There is nothing to evaluate: the log holds no decision that is old enough. "
        f"The log is in {tmp_path}/tips.db.\n"
    )
