"""The nightly job: its steps, that it can be repeated, and what it proposes; with a real MLflow registry, on SQLite."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from mlflow import MlflowClient

from ml.experiments.rollout_state import Stage
from ml.features.offline_store import OfflineStoreUnavailable, start_of_day
from ml.features.online_store import UserAggregates
from ml.pipelines.aggregates import snapshot
from ml.pipelines.nightly import EVIDENCE, STEPS, run_steps
from ml.pipelines.nightly_job import NightlyJob, NothingToLearn
from ml.registry import models
from ml.registry.cards import ModelCard
from ml.registry.policies import load_policy
from tests.databases import Database
from tests.example_tips import SetClock
from tests.online_stores import read_user
from tests.pipelines.nights import LAST_DAY, PER_DAY, a_job, content_of, fill, react
from tests.policies import LIKED
from tests.rollout_events import append_to, move

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's own

FIRST_NIGHT = LAST_DAY - 3
NIGHT = f"nightly/day={start_of_day(LAST_DAY).date()}"


@dataclass(frozen=True)
class Nights:
    """The state after two nights: the database and the offline store in a folder, and the names in MLflow.

    The policy of the first night, `champion`, has an alias of this name there, and a rollout in shadow.
    """

    folder: Path
    tracking_uri: str
    name: str
    champion: str
    outputs: dict[str, str]

    @property
    def database(self) -> Database:
        return Database(f"sqlite+aiosqlite:///{self.folder}/tips.db")

    @property
    def files(self) -> dict[str, bytes]:
        return content_of(self.folder / "offline")

    def job(self, **fields: Any) -> NightlyJob:
        """Return a job that opens all stores again."""
        return a_job(self.database, self.folder, self.tracking_uri, self.name, **fields)

    def run(self, day: int = LAST_DAY, **fields: Any) -> dict[str, str]:
        return dict(run_steps(self.job(**fields), day))

    def json(self, path: str) -> Any:
        return json.loads((self.folder / "offline" / path).read_bytes())

    def proposals(self) -> list[dict[str, Any]]:
        return self.database.rows("SELECT * FROM rollout_proposals")

    def registered(self) -> dict[int, str]:
        """Return the policy of each version in MLflow."""
        versions = MlflowClient(self.tracking_uri, self.tracking_uri).search_model_versions(f"name = '{self.name}'")
        return {int(each.version): each.tags["policy_version"] for each in versions}

    def aliases(self) -> dict[str, int]:
        client = MlflowClient(self.tracking_uri, self.tracking_uri)
        return {alias: int(number) for alias, number in client.get_registered_model(self.name).aliases.items()}


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry for all tests, since opening one takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("mlflow"))  # MLflow stores artifacts in the working directory
        yield f"sqlite:///{Path.cwd()}/mlflow.db"


@pytest.fixture(scope="module")
def two_nights(sqlite_template: Path, tracking_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Nights:
    """Two nights, which no test changes."""
    folder = tmp_path_factory.mktemp("nights")
    shutil.copy(sqlite_template, folder / "tips.db")
    nights = Nights(folder, tracking_uri, "nights", "", {})
    fill(nights.database, LAST_DAY)
    first = nights.run(FIRST_NIGHT)
    (champion,) = nights.registered().values()
    assert first["propose"] == champion
    models.set_aliases("nights", {"champion": champion}, tracking_uri)
    append_to(nights.database, move(champion, "shadow", kind="policy", action="start"))
    return replace(nights, champion=champion, outputs=nights.run())


@pytest.fixture
def nights(two_nights: Nights, tmp_path: Path) -> Nights:
    """A copy of the two nights, in the same registry."""
    shutil.copytree(two_nights.folder, tmp_path, dirs_exist_ok=True)
    return replace(two_nights, folder=tmp_path)


# What a night makes


def test_each_step_returns_the_uri_of_its_output(two_nights: Nights) -> None:
    outputs = two_nights.outputs
    assert [*outputs] == [*STEPS]
    assert outputs["export"] == "tip_scores"
    assert outputs["aggregates"] in two_nights.files
    assert outputs["materialize"] == f"{two_nights.folder}/features.db"
    nightly = [f"{NIGHT}/{name}" for name in ("policy.npz", "evaluation.json", "drift.json", "card.json")]
    assert [outputs[step] for step in ("train", "evaluate", "monitor", "card")] == nightly
    assert {*nightly} <= two_nights.files.keys()
    version = two_nights.json(outputs["evaluate"])["policy"]
    assert (outputs["register"], outputs["propose"]) == ("models:/nights/2", version)
    assert two_nights.registered() == {1: two_nights.champion, 2: version}


def test_the_policy_in_mlflow_is_that_of_the_night_with_its_card(two_nights: Nights, tmp_path: Path) -> None:
    uri, client = two_nights.tracking_uri, MlflowClient(two_nights.tracking_uri, two_nights.tracking_uri)
    policy = load_policy(two_nights.outputs["register"], uri)
    assert policy.version == two_nights.outputs["propose"]
    assert policy.trained_until < (start_of_day(LAST_DAY + 1) - timedelta(hours=24)).timestamp()
    run = client.get_run(client.get_model_version("nights", "2").run_id)
    assert (run.data.params["day"], run.data.params["reaction_window"]) == ("2026-01-30", "1 day, 0:00:00")
    client.download_artifacts(run.info.run_id, "policy", str(tmp_path))
    files = two_nights.files
    assert (tmp_path / "policy" / "policy.npz").read_bytes() == files[f"{NIGHT}/policy.npz"]
    card = ModelCard.model_validate_json((tmp_path / "policy" / "card.json").read_bytes())
    assert card == ModelCard.model_validate_json(files[f"{NIGHT}/card.json"])
    assert {"gain", "aggregates_different", "largest_psi"} <= {metric.name for metric in card.metrics}


def test_the_online_store_has_the_aggregates_as_of_the_end_of_the_day(two_nights: Nights) -> None:
    job = two_nights.job()
    users = dict(snapshot(job.offline, LAST_DAY))
    assert len(users) > 10
    for user_id, values in users.items():
        expected = UserAggregates(values, start_of_day(LAST_DAY + 1))
        assert read_user(job.online_store_url, user_id, job.clock()) == expected


def test_the_gain_of_an_open_rollout_since_its_training_becomes_its_evidence(two_nights: Nights) -> None:
    rows = two_nights.database.rows("SELECT rollout, name, figures FROM rollout_evidence")
    assert [(row["rollout"], row["name"]) for row in rows] == [(1, EVIDENCE)]
    gain = json.loads(rows[0]["figures"])
    assert two_nights.json(two_nights.outputs["evaluate"])["rollouts"] == {two_nights.champion: gain}
    assert gain["low"] < gain["estimate"] < gain["high"]
    assert gain["estimate"] > 0.05  # users prefer a version by their mood
    assert gain["decisions"] == 3 * PER_DAY


def test_the_figures_of_drift_are_a_report_and_evidence_of_the_proposal(two_nights: Nights) -> None:
    drift = two_nights.json(two_nights.outputs["monitor"])
    assert drift["equality"] == {"checked": PER_DAY, "different": 0}
    reports = two_nights.database.rows("SELECT day, name, figures FROM batch_reports ORDER BY day")
    assert [(row["day"], row["name"]) for row in reports] == [(FIRST_NIGHT, "drift"), (LAST_DAY, "drift")]
    assert json.loads(reports[1]["figures"]) == drift
    (proposal,) = two_nights.proposals()
    evidence = json.loads(proposal["evidence"])
    assert (evidence["day"], evidence["drift"]) == ("2026-01-30", drift)
    assert evidence["held_out"] == two_nights.json(two_nights.outputs["evaluate"])["held_out"]


def test_a_newer_policy_is_proposed_instead_and_no_other_alias_moves(two_nights: Nights) -> None:
    (proposal,) = two_nights.proposals()
    assert (proposal["kind"], proposal["version"]) == ("policy", two_nights.outputs["propose"])
    assert proposal["source"] == "models:/nights/2"
    assert two_nights.aliases() == {"champion": 1, "proposed": 2}
    assert load_policy("models:/nights@champion", two_nights.tracking_uri).version == two_nights.champion
    assert two_nights.database.count("rollout_events") == 1


# Repetition


def test_a_second_run_changes_nothing(nights: Nights) -> None:
    before = nights.files, nights.registered(), nights.aliases(), nights.proposals()
    outputs = nights.run(clock=SetClock(start_of_day(LAST_DAY + 1) + timedelta(hours=1)))
    assert outputs == {**nights.outputs, "materialize": f"{nights.folder}/features.db"}
    assert (nights.files, nights.registered(), nights.aliases(), nights.proposals()) == before
    assert nights.database.count("rollout_evidence") == 1
    assert nights.database.count("batch_reports") == 2


def test_an_earlier_day_again_gives_the_same_files_and_leaves_the_online_store(nights: Nights) -> None:
    before = nights.files
    (nights.folder / "features.db").unlink()
    shutil.rmtree(nights.folder / "offline" / "nightly" / f"day={start_of_day(FIRST_NIGHT).date()}")
    steps = dict(run_steps(nights.job(), FIRST_NIGHT))
    assert steps["materialize"] == ""
    assert not (nights.folder / "features.db").exists()
    # Only what rollouts have gained by now is different: there were none in that night.
    others = {path for path, content in nights.files.items() if before[path] != content}
    assert {path.rpartition("/")[2] for path in others} <= {"evaluation.json", "evaluation.json.record.json"}


def test_after_a_late_reaction_another_policy_is_trained_and_proposed(nights: Nights) -> None:
    tips = nights.database.rows(
        "SELECT tip_id FROM tip_scores WHERE shown AND reward IS NULL AND created_at < '2026-01-30' "
        "ORDER BY created_at DESC LIMIT 1"
    )
    react(nights.database, UUID(tips[0]["tip_id"]), "done", start_of_day(LAST_DAY) + timedelta(hours=20))
    outputs = nights.run()
    assert outputs["train"] == nights.outputs["train"]
    assert outputs["propose"] != nights.outputs["propose"]
    (proposal,) = nights.proposals()
    assert (proposal["version"], proposal["source"]) == (outputs["propose"], outputs["register"])
    assert nights.registered()[nights.aliases()["proposed"]] == outputs["propose"]


def test_another_release_trains_again(nights: Nights) -> None:
    files = nights.files
    nights.run(release="2.0")
    changed = {path for path, content in nights.files.items() if files[path] != content}
    # The same code gives the same policy: only the record of how it was made is new.
    assert changed == {
        f"{NIGHT}/{name}.record.json" for name in ("policy.npz", "evaluation.json", "drift.json", "card.json")
    }


# What is not proposed


@pytest.mark.parametrize("stage", ["shadow", "champion"])
def test_a_policy_in_use_is_not_proposed(nights: Nights, stage: Stage) -> None:
    version = nights.outputs["propose"]
    nights.database.rows("DELETE FROM rollout_proposals")
    append_to(nights.database, move(version, stage, kind="policy", action="start"))
    job = nights.job()
    assert STEPS["propose"](job, LAST_DAY, nights.outputs["register"]) == ""
    assert nights.proposals() == []


def test_a_policy_that_is_worse_than_the_log_is_registered_and_not_proposed(
    sqlite_database: Database, tracking_uri: str, tmp_path: Path
) -> None:
    # On the held-out days, users like what they did not like before.
    now_liked = dict(zip(LIKED, reversed(LIKED.values()), strict=True))
    fill(sqlite_database, LAST_DAY - 4, days=5)
    fill(sqlite_database, LAST_DAY, days=4, liked=now_liked)
    job = a_job(sqlite_database, tmp_path, tracking_uri, "worse")
    outputs = dict(run_steps(job, LAST_DAY))
    figures = job.files(LAST_DAY).read_json(outputs["evaluate"])
    assert figures["held_out"]["gain"]["high"] < 0
    assert (outputs["register"], outputs["propose"]) == ("models:/worse/1", "")
    assert sqlite_database.count("rollout_proposals") == 0


def test_a_rollout_of_a_policy_that_is_not_registered_has_no_gain(nights: Nights) -> None:
    append_to(nights.database, move("0123456789ab", "shadow", kind="policy", action="start"))
    outputs = nights.run()
    assert nights.json(outputs["evaluate"])["rollouts"]["0123456789ab"] is None
    assert {row["rollout"] for row in nights.database.rows("SELECT rollout FROM rollout_evidence")} == {1}


# What is missing


def test_without_mature_tips_there_is_nothing_to_learn(
    sqlite_database: Database, tracking_uri: str, tmp_path: Path
) -> None:
    fill(sqlite_database, LAST_DAY, days=1)
    job = a_job(sqlite_database, tmp_path, tracking_uri, "none")
    with pytest.raises(NothingToLearn, match=r"^No tip is old enough to learn from at the end of 2026-01-30\.$"):
        dict(run_steps(job, LAST_DAY))
    assert not any(path.startswith("nightly/") for path in content_of(tmp_path / "offline"))


@pytest.mark.parametrize("step", ["evaluate", "monitor", "card", "register", "propose"])
def test_a_step_without_its_input_says_so(
    sqlite_database: Database, tracking_uri: str, tmp_path: Path, step: str
) -> None:
    job = a_job(sqlite_database, tmp_path, tracking_uri, "none")
    with pytest.raises(OfflineStoreUnavailable, match=r"does not exist: run the step before$"):
        STEPS[step](job, LAST_DAY, f"{NIGHT}/card.json")
