"""`tips train`, on a database with tips of simulated users."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ml.registry.policies import load_policy
from tests.cli.commands import MODEL_THAT_NEVER_ANSWERS
from tests.process import TIPS, run, service


def test_a_trained_policy_ranks_for_score_and_is_evaluated_with_later_tips(
    settings: Mapping[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "policy.npz"
    ended = run(TIPS, "train", "--to", str(file), "--until", "4d", **settings)
    assert ended.returncode == 0, ended.stderr
    policy = load_policy(str(file), settings["MLFLOW_TRACKING_URI"])
    card = policy._policy.card
    assert ended.stdout == (
        f"learned from {card.learned_from:,} tips of {tmp_path}/tips.db: policy version {policy.version}, in {file}\n"
    )
    assert card.learned_from > 50
    assert datetime.now(UTC).timestamp() - policy.trained_until > 4 * 86_400
    evaluated = run(TIPS, "evaluate", "--policy", str(file), **settings)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "because tips has learned from decisions up to" in evaluated.stdout
    candidate = {"id": "a", "prompt_version": "v1"}
    with service(TIPS, "serve", "--only", "serving", SCORE_POLICY=str(file), **MODEL_THAT_NEVER_ANSWERS) as serving:
        response = serving.http.post("/score", json={"candidates": [candidate]}).json()
    assert response["policy"] == {"name": "tips", "version": policy.version}


def test_a_registered_policy_is_served_by_its_alias(
    settings: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow writes artifacts to the current directory
    ended = run(TIPS, "train", "--register", "helpful-tips", "--alias", "champion", **settings)
    assert ended.returncode == 0, ended.stderr
    trained = re.fullmatch(
        r"learned from [0-9,]+ tips of .+/tips.db: policy version ([0-9a-f]{12}), "
        r"in MLflow as models:/helpful-tips/1 and @champion\n",
        ended.stdout,
    )
    assert trained
    with service(
        *(TIPS, "serve", "--only", "serving"),
        SCORE_POLICY="models:/helpful-tips@champion",
        MLFLOW_TRACKING_URI=settings["MLFLOW_TRACKING_URI"],
        **MODEL_THAT_NEVER_ANSWERS,
    ) as serving:
        response = serving.http.post("/score", json={"candidates": [{"id": "a"}]}).json()
        code, log = serving.stop()
    assert response["policy"] == {"name": "helpful-tips", "version": trained[1]}
    assert code == 0
    assert all("event" in line for line in log)  # MLflow writes no lines of its own


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--register", "a b"], "'a b' should be a name of letters"),
        (["--register", "uniform"], "should be a name of letters"),
        (["--to", "p.npz", "--register", "a"], "leave out one of --to and --register"),
        (["--alias", "champion"], "an alias needs --register"),
        (["--until", "soon"], "such as 90d or 36h"),
    ],
)
def test_a_wrong_option_is_refused(settings: Mapping[str, str], arguments: list[str], message: str) -> None:
    ended = run(TIPS, "train", *arguments, **settings)
    assert ended.returncode == 2
    assert message in " ".join(ended.stderr.replace("│", " ").split())


def test_without_mature_tips_nothing_is_written(settings: Mapping[str, str], tmp_path: Path) -> None:
    ended = run(TIPS, "train", "--until", "90d", "--to", str(tmp_path / "p.npz"), **settings)
    assert (ended.returncode, ended.stderr) == (1, f"{tmp_path}/tips.db has no tips old enough to learn from.\n")
    assert not (tmp_path / "p.npz").exists()


def test_a_file_that_cannot_be_written_is_reported(settings: Mapping[str, str], tmp_path: Path) -> None:
    ended = run(TIPS, "train", "--to", str(tmp_path / "no" / "p.npz"), **settings)
    assert (ended.returncode, ended.stderr) == (1, f"{tmp_path}/no/p.npz cannot be written.\n")


def test_a_terminal_shows_the_progress_and_no_other_output_has_it(settings: Mapping[str, str], tmp_path: Path) -> None:
    command = f"{TIPS} train --to {tmp_path}/policy.npz"
    ended = run("script", "-qec", command, "/dev/null", **settings)
    assert ended.returncode == 0, ended.stdout
    for step in ("Reading decisions", "Training"):
        assert step in ended.stdout
    ended = run(*command.split(), **settings)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Training" not in ended.stdout
