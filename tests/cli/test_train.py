"""`tips train`, on a database with tips of simulated users."""

import re
import sqlite3
import warnings
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ml.cli.main import app
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
    ended = run(TIPS, "train", "--register", "helpful-tips", **settings)
    assert ended.returncode == 0, ended.stderr
    trained = re.fullmatch(
        r"learned from [0-9,]+ tips of .+/tips.db: policy version ([0-9a-f]{12}), "
        r"in MLflow as models:/helpful-tips/1\n",
        ended.stdout,
    )
    assert trained
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # raised inside MLflow
        from ml.registry.models import set_aliases

        set_aliases("helpful-tips", {"champion": trained[1]}, settings["MLFLOW_TRACKING_URI"])
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
    for step in ("Exporting days", "Reading decisions", "Training"):
        assert step in ended.stdout
    ended = run(*command.split(), **settings)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Training" not in ended.stdout


def test_a_policy_is_trained_again_from_the_stored_tips_to_the_last_bit(
    settings: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(tmp_path / "policy.npz")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    trained = CliRunner().invoke(app, ["train", "--to", file, "--since", "7d"])
    assert trained.exit_code == 0, trained.output
    policy = load_policy(file, "")
    assert policy.card.training is not None
    verified = CliRunner().invoke(app, ["cards", "verify", file])
    n = f"{policy.card.training.decisions:,}"
    assert verified.stdout == f"tips {policy.version}: the model and all figures follow from {n} stored tips.\n"
    assert verified.exit_code == 0
    with closing(sqlite3.connect(tmp_path / "tips.db")) as connection, connection:
        ((user,),) = connection.execute(
            "select user_id from tip_scores where shown order by created_at desc limit 1 offset 150"
        )
    monkeypatch.delenv("ONLINE_STORE_URL")
    assert CliRunner().invoke(app, ["forget", user]).exit_code == 0
    changed = CliRunner().invoke(app, ["cards", "verify", file])
    assert changed.exit_code == 1
    assert f" are not the {n} of the card as they were: reactions have arrived since" in changed.output
