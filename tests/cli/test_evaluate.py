"""`tips evaluate`, on a store with tips and reactions of people who do not exist."""

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

from ml.experiments.decisions import LoggedDecision
from ml.pipelines.training import train
from ml.registry.models import register
from ml.store.reactions import Reaction
from ml.store.tips import TipRecord, open_tip_store
from tests.example_tips import a_tip
from tests.pipelines.logs import APART, MOODS
from tests.process import TIPS, run

VERSIONS = {"v1": 0.4, "v2": 0.4, "v3": 0.2}
HOURS, AN_HOUR = 500, 6


def tips(now: datetime) -> Iterator[tuple[TipRecord, Reaction | None]]:
    """Tips of the last days, at half past, and who liked which: people in low mood the third, the others the first."""
    chance = random.Random(7)
    for hour in sorted([*range(HOURS)] * AN_HOUR, reverse=True):
        (version,) = chance.choices([*VERSIONS], [*VERSIONS.values()])
        mood = chance.choice(MOODS)
        at = now - timedelta(hours=hour + 0.5)
        tip = a_tip(
            user_id=f"u-{chance.randrange(250)}",
            created_at=at,
            policy="weighted",
            options=VERSIONS,
            probability=VERSIONS[version],
            prompt_version_asked=version,
            prompt_version=version,
            signals={"mood": mood},
            segments=(f"mood:{mood}",),
        )
        likes = chance.random() < APART[mood][version]
        yield tip, Reaction(tip.tip_id, "helpful", at + timedelta(minutes=5)) if likes else None


async def fill(url: str) -> list[LoggedDecision]:
    now = datetime.now(UTC)
    async with open_tip_store(url, lambda: now) as store:
        stored = [*tips(now)]
        await asyncio.gather(*(store.add(tip) for tip, _ in stored))
        await store.react([reaction for _, reaction in stored if reaction])
        return [one async for one in store.decisions(now - timedelta(days=1))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where there is a database, a policy in a file that has learned from the first half, and another from all."""
    folder = tmp_path_factory.mktemp("evaluate")
    log = asyncio.run(fill(url(folder)))
    (folder / "half.npz").write_bytes(train(log[: len(log) // 2]))
    (folder / "all.npz").write_bytes(train(log))
    return folder


def url(folder: Path) -> str:
    return f"sqlite+aiosqlite:///{folder}/tips.db"


def evaluate(folder: Path, *arguments: str, **settings: str) -> CompletedProcess[str]:
    return run(TIPS, "evaluate", *arguments, **{"DATABASE_URL": url(folder), "COLUMNS": "80", **settings})


def words(ended: CompletedProcess[str]) -> str:
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def columns(table: str) -> dict[str, list[str]]:
    """The cells of each column by its name, without what draws the table."""
    lines = [re.split("[│┃]", line)[1:-1] for line in table.splitlines() if line[0] in "│┃"]
    return {name.strip(): [cell.strip() for cell in cells] for name, *cells in zip(*lines, strict=True)}


def test_it_says_what_a_version_would_have_earned_by_every_estimator(folder: Path) -> None:
    shown = words(evaluate(folder, "--policy", "v3"))
    found = columns(shown)
    assert [*found] == ["estimate", "the log", "sndr", "snips", "dr", "ips", "dm"]
    assert found.pop("estimate") == [
        *("mean reward", "at least", "at most"),
        *("gain in points", "at least", "at most"),
        *("effective sample size", "mean weight", "largest weight", "trusted"),
    ]
    log = found.pop("the log")
    assert log[3:] == ["", "", "", "2,856", "1.00", "1.0", ""]
    for reward, low, high, gain, least, most, effective, mean, largest, trusted in found.values():
        assert float(low[:-1]) < 40 < float(high[:-1])
        assert float(low[:-1]) < float(reward[:-1]) < float(high[:-1])
        assert 0 < float(least) < float(gain) < float(most)
        assert 500 < int(effective) < 700
        assert (0.9 < float(mean) < 1.1, largest, trusted) == (True, "5.0", "yes")
    *_, notes, verdict = shown.splitlines()
    assert notes == "2,856 decisions, 250 people. Believe sndr first, and snips beside it."
    best = found["sndr"]
    assert verdict == (
        f"The log earned {log[0]} ({log[1]} to {log[2]}). v3 would have earned {best[0]} ({best[1]} to {best[2]}): "
        f"{best[3]} points ({best[4]} to {best[5]}), which can be trusted."
    )


def test_a_policy_that_learned_from_the_first_half_is_found_to_be_better_in_the_second(folder: Path) -> None:
    shown = words(evaluate(folder, "--policy", str(folder / "half.npz")))
    assert re.search(
        r"^1,428 of 2,856 decisions are left out, because tips has learned from decisions up to ", shown, re.MULTILINE
    )
    assert shown.endswith("which can be trusted.\n")
    gain = re.search(r"points \(\+([0-9.]+) to", shown)
    assert gain
    assert float(gain[1]) > 5


def test_it_takes_thompson_sampling_weights_and_the_last_days_only(folder: Path) -> None:
    assert "thompson would have earned" in words(evaluate(folder, "--policy", "thompson"))
    shown = words(evaluate(folder, "--policy", "v1=90,v3=10", "--since", "10d"))
    assert "v1=90,v3=10 would have earned" in shown
    assert re.search(r"^1,296 decisions, ", shown, re.MULTILINE)


def test_a_tip_may_wait_longer_for_its_reaction(folder: Path) -> None:
    shown = words(evaluate(folder, "--policy", "v3", REACTION_WINDOW_HOURS="240"))
    assert re.search(r"^1,560 decisions, ", shown, re.MULTILINE)


def test_what_is_worthless_is_said_in_words(folder: Path) -> None:
    shown = words(evaluate(folder, "--policy", "v3", "--since", "36h"))
    assert columns(shown)["sndr"][-1] == "refused"
    assert "What v3 would have earned cannot be told from it: the log tells no more than" in shown


def test_a_policy_in_the_registry_is_found_by_its_alias(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)  # where MLflow puts it
    registry = f"sqlite:///{folder}/mlflow.db"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # MLflow's own
        register((folder / "half.npz").read_bytes(), "ranker", registry, alias="champion")
    shown = words(evaluate(folder, "--policy", "models:/ranker@champion", MLFLOW_TRACKING_URI=registry))
    assert shown.endswith("which can be trusted.\n")


def test_it_draws_the_estimates(folder: Path) -> None:
    shown = words(evaluate(folder, "--policy", "v3", "--plot", str(folder / "plot.svg")))
    texts = [text.text or "" for text in ET.parse(folder / "plot.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert {"the log", "sndr", "snips", "dr", "ips", "dm", "What v3 would have earned"} <= {*texts}
    assert shown.splitlines()[-1] in " ".join(texts)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("--policy", "v9"),
            "There is nothing to evaluate: the log never had the choice of v9; the versions in it are v1, v2, v3.",
        ),
        (("--policy", "v3", "--since", "2h"), "There is nothing to evaluate: the log holds no decision that is old "),
        (("--policy", "all.npz"), "There is nothing to evaluate. 2,856 of 2,856 decisions are left out, because tips "),
        (("--policy", "tips.db"), "--policy: the policy is damaged, or is not a policy."),
        (("--policy", "v3", "--plot", "taken.svg"), "taken.svg cannot be written."),
    ],
)
def test_what_cannot_be_is_one_plain_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], sentence: str
) -> None:
    monkeypatch.chdir(folder)
    (folder / "taken.svg").mkdir(exist_ok=True)
    ended = evaluate(folder, *arguments)
    assert ended.returncode == 1
    assert ended.stderr.startswith(sentence)
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--plot", "plot.gif"), "in .svg or .png"),
        (("--plot", "nowhere/plot.svg"), "in a folder that is there"),
        (("--since", "30"), "such as 90d or 36h"),
    ],
)
def test_what_is_no_option_is_said_before_anything_is_read(folder: Path, arguments: Sequence[str], words: str) -> None:
    ended = evaluate(folder, "--policy", "v3", *arguments, COLUMNS="200")
    assert ended.returncode == 2
    assert words in ended.stderr


def test_on_an_empty_store_there_is_nothing_to_evaluate(tmp_path: Path) -> None:
    ended = evaluate(tmp_path, "--policy", "v1")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "There is nothing to evaluate: the log holds no decision that is old enough.\n"
