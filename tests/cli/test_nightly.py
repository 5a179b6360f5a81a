"""`tips nightly`, in this process, so that MLflow is imported once."""

import re
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ml.cli.main import app
from ml.features.offline_store import day_of_date
from ml.pipelines.nightly import INPUTS, STEPS
from ml.platform.clock import utc_now
from ml.platform.settings import ConfigurationError
from tests.cli.commands import database_url
from tests.databases import Database
from tests.pipelines.nights import content_of, fill
from tests.policies import policy

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's own

YESTERDAY = utc_now().date() - timedelta(days=1)
LAST_NIGHT = ("--day", str(YESTERDAY))


@pytest.fixture(scope="module")
def filled(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with ranked tips of some days up to yesterday."""
    file = tmp_path_factory.mktemp("filled") / "tips.db"
    shutil.copy(sqlite_template, file)
    fill(Database(database_url(file.parent)), day_of_date(YESTERDAY))
    return file


@pytest.fixture
def stores(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all stores, which are set, with a copy of the database."""
    shutil.copy(filled, tmp_path)
    monkeypatch.setenv("DATABASE_URL", database_url(tmp_path))
    monkeypatch.setenv("OFFLINE_STORE", f"{tmp_path}/offline")
    monkeypatch.setenv("ONLINE_STORE_URL", f"sqlite:///{tmp_path}/features.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)  # MLflow stores artifacts in the working directory
    return tmp_path


def nightly(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["nightly", *arguments])


def test_the_steps_one_by_one_do_the_same_as_the_whole_job(stores: Path) -> None:
    outputs: dict[str, str] = {}
    for step in STEPS:
        ended = nightly(*LAST_NIGHT, "--step", step, "--uri", outputs[INPUTS[step]] if step in INPUTS else "")
        assert ended.exit_code == 0, ended.output
        (outputs[step],) = ended.stdout.splitlines()
    files = content_of(stores / "offline")
    ended = nightly(*LAST_NIGHT, "--plot", f"{stores}/nights.svg")
    assert ended.exit_code == 0, ended.output
    for step, uri in outputs.items():
        assert re.search(rf"^│ {step} +│ +[0-9.]+ +│ {re.escape(uri or '-')} +│$", ended.stdout, re.MULTILINE), step
    assert content_of(stores / "offline") == files
    assert (stores / "nights.svg").read_text().startswith("<?xml")
    (proposal,) = Database(database_url(stores)).rows("SELECT version, source FROM rollout_proposals")
    assert proposal == {"version": outputs["propose"], "source": "models:/tips/1"}


@pytest.mark.parametrize("step", [[], ["--step", "train"]], ids=["whole", "step"])
def test_before_the_first_tips_are_mature_the_job_says_so_and_prints_no_uri(stores: Path, step: list[str]) -> None:  # noqa: ARG001
    ended = nightly("--day", "2020-02-29", *step)
    assert (ended.exit_code, ended.stdout) == (0, "")
    assert ended.stderr == "No tip is old enough to learn from at the end of 2020-02-29.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--day", "2999-01-01"], "2999-01-01 has not ended"),
        (["--day", "yesterday"], "'yesterday' does not match the format"),
        (["--step", "typo"], f"'typo' should be one of {', '.join(STEPS)}"),
        (["--plot", "nights.pdf"], "'nights.pdf' should be an .svg or .png file in an existing directory"),
    ],
)
def test_a_wrong_option_is_refused_by_its_value(stores: Path, arguments: list[str], message: str) -> None:
    ended = nightly(*arguments)
    assert ended.exit_code == 2
    assert message in " ".join(ended.stderr.replace("│", " ").split())
    assert not (stores / "offline").exists()


@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [
        ("NIGHTLY_POLICY_NAME", "a b", "NIGHTLY_POLICY_NAME: .*'a b'.*"),
        ("ONLINE_STORE_URL", "mysql://x", "ONLINE_STORE_URL: .*"),
        ("DATABASE_URL", "sqlite+aiosqlite:////nowhere/tips.db", "DATABASE_URL: .*/nowhere/tips.db.*"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_done(
    stores: Path, monkeypatch: pytest.MonkeyPatch, setting: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv(setting, value)
    ended = nightly(*LAST_NIGHT)
    assert isinstance(ended.exception, ConfigurationError)
    assert re.fullmatch(sentence, str(ended.exception))
    assert not (stores / "offline").exists()


def test_a_step_without_its_input_is_refused_in_one_sentence(stores: Path) -> None:
    ended = nightly(*LAST_NIGHT, "--step", "evaluate", "--uri", f"nightly/day={YESTERDAY}/policy.npz")
    assert isinstance(ended.exception, ConfigurationError)
    assert str(ended.exception) == (
        f"OFFLINE_STORE: {stores}/offline/nightly/day={YESTERDAY}/policy.npz does not exist: run the step before."
    )


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ("evaluate", "is damaged, or is not a policy"),
        ("card", "is not JSON: run the step before"),
        ("register", "is not a model card: run the step before"),
    ],
)
def test_an_input_of_another_kind_is_refused_in_one_sentence(stores: Path, step: str, reason: str) -> None:
    day = stores / "offline" / "nightly" / f"day={YESTERDAY}"
    day.mkdir(parents=True)
    (day / "policy.npz").write_bytes(policy())
    (day / "other").write_bytes(b"PK\xff")
    ended = nightly(*LAST_NIGHT, "--step", step, "--uri", f"nightly/{day.name}/other")
    assert isinstance(ended.exception, ConfigurationError)
    assert str(ended.exception) == f"OFFLINE_STORE: {day}/other {reason}."
