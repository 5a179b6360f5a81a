"""`tips cards`, mostly in this process, since starting the command takes seconds."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from huggingface_hub import ModelCard as HubCard
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typer.testing import CliRunner, Result

from ml.cli.cards import app, fetch_cards
from ml.platform.errors import TipsError, UpstreamFailed, UpstreamRefused, UpstreamUnreachable
from ml.platform.settings import ConfigurationError
from ml.registry.card_markdown import to_markdown
from ml.registry.cards import ModelCard
from ml.registry.policies import load_policy
from ml.serving.app import create_app
from ml.serving.cards import serving_cards
from ml.serving.prompts import PROMPTS
from ml.serving.settings import ServingSettings
from tests.cli.commands import MODEL_THAT_NEVER_ANSWERS, tips_without
from tests.databases import Database
from tests.example_tips import SetClock
from tests.policies import policy_with_figures
from tests.process import TIPS, run
from tests.rollouts.example_rollouts import fill
from tests.rollouts.scenario import Scenario
from tests.server import running

Tips = Callable[..., Result]


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    file = tmp_path / "policy.npz"
    file.write_bytes(policy_with_figures())
    return file


@pytest.fixture
def tips_cards(monkeypatch: pytest.MonkeyPatch, policy_file: Path, tmp_path: Path) -> Tips:
    """A function that runs `tips cards` with settings of serving, and without a database."""
    monkeypatch.setenv("DATABASE_URL", f"sqlite+aiosqlite:///{tmp_path}/none.db")
    for name, value in MODEL_THAT_NEVER_ANSWERS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SCORE_POLICY", str(policy_file))
    monkeypatch.setenv("CARD_CONTACT", "ml@example.org")
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(app, arguments)

    return call


def test_all_cards_are_listed_with_what_is_missing(monkeypatch: pytest.MonkeyPatch, tips_cards: Tips) -> None:
    listed = tips_cards().stdout
    for version in (*PROMPTS, "uniform", "openai/none"):
        assert version in listed
    assert "CARD_CONTACT" not in listed
    monkeypatch.delenv("CARD_CONTACT")
    assert "contact: set CARD_CONTACT" in tips_cards().stdout


def test_a_card_is_shown_by_name_and_by_version(tips_cards: Tips, policy_file: Path) -> None:
    version = load_policy(str(policy_file), "").version
    by_name = tips_cards("show", "tips")
    assert by_name.exit_code == 0
    assert by_name.stdout == tips_cards("show", version).stdout
    assert f"# tips {version}" in by_name.stdout
    assert "## Calibration" in by_name.stdout


def test_an_unknown_card_is_one_sentence(tips_cards: Tips) -> None:
    ended = tips_cards("show", "v9")
    assert ended.exit_code == 1
    assert ended.output.startswith("v9 is not one card; the known versions are v1, v2-mentor, v3-few-shot, uniform, ")


def test_every_card_is_exported_as_json_that_is_valid_by_the_schema_and_as_markdown(
    tips_cards: Tips, policy_file: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "new" / "cards"
    settings = ServingSettings.from_environment()
    expected = serving_cards(settings, [load_policy(str(policy_file), "")])
    for _ in range(2):  # the second time over the files of the first
        ended = tips_cards("export", str(directory))
        assert (ended.exit_code, ended.stdout) == (0, f"{len(expected)} cards in {directory}\n")
    schema = json.loads((directory / "model-card.schema.json").read_text())
    for card in expected:
        text = (directory / card.file_name / "card.json").read_text()
        jsonschema.validate(json.loads(text), schema)
        assert ModelCard.model_validate_json(text) == card
        markdown = (directory / card.file_name / "README.md").read_text()
        assert markdown == to_markdown(card)
        data: Any = HubCard(markdown).data
        assert data.tags == ["tip-service", card.kind]
    assert len([*directory.iterdir()]) == len(expected) + 1


def test_a_directory_that_cannot_be_written_is_one_sentence(tips_cards: Tips, policy_file: Path) -> None:
    error = tips_cards("export", str(policy_file)).exception
    assert isinstance(error, ConfigurationError)
    assert str(error) == f"{policy_file} cannot be written."


def test_the_cards_of_a_running_service_are_those_that_it_has_loaded(
    monkeypatch: pytest.MonkeyPatch, tips_cards: Tips, policy_file: Path
) -> None:
    settings = ServingSettings.from_environment().model_copy(update={"api_keys": (SecretStr("k" * 20),)})
    monkeypatch.delenv("SCORE_POLICY")
    with running(create_app(settings)) as url:
        monkeypatch.setenv("SERVING_URL", f"{url}/")
        with pytest.raises(UpstreamRefused, match="SERVING_API_KEY"):
            fetch_cards(url, None)
        monkeypatch.setenv("SERVING_API_KEY", "k" * 20)
        shown = tips_cards("show", "tips")
        assert shown.exit_code == 0
        assert load_policy(str(policy_file), "").version in shown.stdout
    ended = tips_cards("show", "tips")
    assert isinstance(ended.exception, UpstreamUnreachable)


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (200, b"{}", UpstreamFailed),
        (200, b'{"cards": [{"name": "x"}]}', UpstreamFailed),
        (200, b"<html>", UpstreamFailed),
        (503, b"", UpstreamFailed),
        (404, b"", UpstreamRefused),
    ],
)
def test_an_answer_without_cards_is_one_sentence(status: int, body: bytes, error: type[TipsError]) -> None:
    async def answer(_: Request) -> Response:
        return Response(body, status)

    with running(Starlette(routes=[Route("/cards", answer)])) as url, pytest.raises(error, match="Serving"):
        fetch_cards(url, None)


def test_the_command_has_the_subcommands() -> None:
    ended = run(TIPS, "cards", "show", "v1", **MODEL_THAT_NEVER_ANSWERS)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith('---\nlicense: "apache-2.0"\n')


def test_the_cards_need_no_package_of_the_embedded_extra() -> None:
    command = tips_without("huggingface_hub", "platformdirs", "xllamacpp", "tqdm")
    ended = run(*command, "cards", "show", "v1", **MODEL_THAT_NEVER_ANSWERS)
    assert ended.returncode == 0, ended.stderr


def test_a_card_has_the_figures_of_the_database_and_without_one_the_command_says_so(
    monkeypatch: pytest.MonkeyPatch, tips_cards: Tips, sqlite_database: Database
) -> None:
    monkeypatch.setenv("DATABASE_URL", sqlite_database.url)
    clock = SetClock()

    async def roll_out(scenario: Scenario) -> None:
        scenario.catalogue = replace(scenario.catalogue, prompts={name: each.digest for name, each in PROMPTS.items()})
        await scenario.rollouts.start("prompt", "v2-mentor", actor="ada", reason="Kinder words.", force=True)

    fill(sqlite_database.url, clock, roll_out)
    shown = tips_cards("show", "v2-mentor")
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert "## Rollout history" in shown.stdout
    assert "Kinder words." in shown.stdout
    monkeypatch.setenv("DATABASE_URL", f"{sqlite_database.url}.gone")
    shown = tips_cards("show", "v2-mentor")
    assert shown.exit_code == 0
    assert shown.stderr.startswith("Without figures about real users: DATABASE_URL: there is no database ")
    assert "## Rollout history" not in shown.stdout
