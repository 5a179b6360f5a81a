"""`tips rollout`, mostly in this process, since starting the command takes seconds."""

import asyncio
import getpass
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ml.cli.rollout import app
from ml.experiments.rollout_state import RolloutEvent
from ml.platform.errors import RolloutRefused, UnprocessableRequest, UpstreamUnreachable
from ml.platform.settings import ConfigurationError
from ml.registry.policies import load_policy
from ml.store.database import Database, migrate_database
from ml.store.rollouts import RolloutLog
from tests.cli.commands import MODEL_THAT_NEVER_ANSWERS, database_url, tips_without
from tests.policies import policy_with_figures
from tests.process import run

Tips = Callable[..., Result]


@pytest.fixture
def tips_rollout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tips:
    """A function that runs `tips rollout` on a new database, with a learned policy and a contact for cards."""
    file = tmp_path / "policy.npz"
    file.write_bytes(policy_with_figures())
    url = database_url(tmp_path)
    settings = {"DATABASE_URL": url, "SCORE_POLICY": str(file), "CARD_CONTACT": "ml@example.org", "COLUMNS": "250"}
    for name, value in (MODEL_THAT_NEVER_ANSWERS | settings | {"TIP_PROMPT_POLICY": "rollout"}).items():
        monkeypatch.setenv(name, value)
    migrate_database(url)

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(app, arguments)

    return call


def events(directory: Path) -> list[RolloutEvent]:
    async def read() -> list[RolloutEvent]:
        database = Database(database_url(directory))
        try:
            return await RolloutLog(database).events()
        finally:
            await database.close()

    return asyncio.run(read())


def test_a_version_is_moved_forward_and_back(tips_rollout: Tips, tmp_path: Path) -> None:
    started = tips_rollout("start", "v2-mentor", "--why", "It is warmer.", "--segment", "locale:de")
    assert started.exit_code == 0
    assert started.stdout == "rollout 2: v2-mentor registered → shadow of locale:de (gated); event 2\n"
    promoted = tips_rollout("promote", "v2-mentor", "--why", "A demo.", "--share", "0.2", "--force", "--actor", "ada")
    assert promoted.stdout == (
        "rollout 2: v2-mentor shadow → canary at 20% of locale:de (forced, although these gates failed: "
        "shadow_decisions, shadow_days, unusable, latency, tokens); event 3\n"
    )
    assert "canary at 20% of locale:de, paused; event 4" in tips_rollout("pause", "2", "--why", "A question.").stdout
    assert "canary at 20% of locale:de; event 5" in tips_rollout("resume", "2", "--why", "Answered.").stdout
    assert "canary → registered of locale:de; event 6" in tips_rollout("rollback", "v2-mentor", "--why", "Over.").stdout
    stored = events(tmp_path)
    assert [event.action for event in stored] == ["initial", "start", "promote", "pause", "resume", "rollback"]
    assert [event.actor for event in stored[:3]] == ["environment", getpass.getuser(), "ada"]


def test_status_shows_the_gates_with_figures_and_bounds(tips_rollout: Tips) -> None:
    assert "There is no open rollout." in tips_rollout("status").stdout
    tips_rollout("start", "v2-mentor", "--why", "It is warmer.")
    shown = tips_rollout("status").stdout
    assert "The champion of prompt versions is v1, since " in shown
    assert "Ranking policies are not gated: SCORE_POLICY decides" in shown
    assert "the prompt v2-mentor is in shadow." in shown
    assert "Next: canary at 1%." in shown
    (row,) = (line for line in shown.splitlines() if "shadow_decisions" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["shadow_decisions", "no", "0", "at least 500"]


def test_without_the_policy_rollout_prompt_versions_are_not_gated(
    tips_rollout: Tips, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIP_PROMPT_POLICY", "uniform")
    sentence = "Prompt versions are not gated: TIP_PROMPT_POLICY is uniform, so TIP_PROMPT_VERSION decides"
    assert sentence in tips_rollout("start", "v2-mentor", "--why", "It is warmer.").stdout
    assert sentence in tips_rollout("status").stdout


def test_a_learned_policy_is_known_by_its_version(tips_rollout: Tips, tmp_path: Path) -> None:
    version = load_policy(str(tmp_path / "policy.npz"), "").version
    started = tips_rollout("start", "uniform", "--why", "Is the policy worth it?")
    assert "uniform registered → shadow (gated)" in started.stdout
    assert [(event.action, event.kind, event.version) for event in events(tmp_path)] == [
        ("initial", "policy", version),
        ("start", "policy", "uniform"),
    ]


def test_history_names_who_changed_what_when_why_and_on_which_evidence(tips_rollout: Tips) -> None:
    tips_rollout("start", "v2-mentor", "--why", "It is [warmer].", "--actor", "ada")
    tips_rollout("promote", "v2-mentor", "--why", "A demo.", "--force", "--actor", "bob")
    shown = tips_rollout("history").stdout
    for part in ("ada", "bob", "It is [warmer].", "prompt v1", "registered → shadow", "gated", "forced", "1%"):
        assert part in shown
    assert "prompt v1" not in tips_rollout("history", "v2-mentor").stdout
    ended = tips_rollout("history", "v9")
    assert (ended.exit_code, ended.output) == (1, "There is no event of v9.\n")


def test_a_mistake_is_one_sentence(tips_rollout: Tips, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = tips_rollout("start", "v9", "--why", "Why not?")
    assert isinstance(unknown.exception, UnprocessableRequest)
    assert "Serving does not know v9; it knows v1, v2-mentor, v3-few-shot" in str(unknown.exception)
    assert tips_rollout("start", "v2-mentor").exit_code == 2  # without --why
    tips_rollout("start", "v2-mentor", "--why", "It is warmer.")
    refused = tips_rollout("promote", "v2-mentor", "--why", "Now.")
    assert isinstance(refused.exception, RolloutRefused)
    assert "The gate shadow_decisions fails." in str(refused.exception)
    missing = tips_rollout("promote", "v3-few-shot", "--why", "Now.")
    assert missing.output == (
        "There is no rollout of v3-few-shot that has not ended; there are those of: v2-mentor, v1.\n"
    )
    monkeypatch.setenv("SERVING_URL", "http://127.0.0.1:9")
    assert isinstance(tips_rollout("start", "v1", "--why", "Now.").exception, UpstreamUnreachable)
    assert tips_rollout("history").exit_code == 0


def test_an_incomplete_card_keeps_a_version_registered(tips_rollout: Tips, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CARD_CONTACT")
    refused = tips_rollout("start", "v2-mentor", "--why", "It is warmer.")
    assert "missing: contact: set CARD_CONTACT" in str(refused.exception)


def test_a_database_is_never_created(tips_rollout: Tips, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATABASE_URL", f"sqlite+aiosqlite:///{tmp_path}/missing.db")
    ended = tips_rollout("history")
    assert isinstance(ended.exception, ConfigurationError)
    assert not (tmp_path / "missing.db").exists()


def test_without_the_extra_the_command_says_so(tmp_path: Path) -> None:
    ended = run(*tips_without("sqlalchemy"), "rollout", "history", DATABASE_URL=database_url(tmp_path))
    assert ended.returncode == 1
    assert ended.stderr.startswith("sqlalchemy is missing: this needs the `recommender` extra")
