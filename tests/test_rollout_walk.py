"""The walk of docs/rollouts.md: its entry and its commands, in their order, on a running service with traffic."""

import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.cli.commands import database_url, model_settings
from tests.conftest import eventually
from tests.process import run, service
from tests.test_docs import PAGES, SEARCH_PATH, snippets
from tests.upstream import Upstream

ROOT = Path(__file__).parents[1]
WALK = PAGES["docs/rollouts.md"]
VERSION = "v4-brief"
TIMES = {
    "tip_scores": ("created_at", "reacted_at"),
    "reactions": ("at", "received_at"),
    "shadow_tips": ("created_at",),
    "rollout_events": ("at",),
}
"""The columns of times, by table."""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project with the entry of the walk."""
    folder = tmp_path / "project"
    for name in ("ml", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (entry,) = snippets(WALK, "py")
    registry = folder / "ml/serving/prompts.py"
    head, opening, rest = registry.read_text().partition("PROMPTS: Mapping[str, Prompt] = MappingProxyType(\n    {\n")
    registry.write_text(head + opening + entry + rest)
    return folder


def shell(command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return run("sh", "-e", "-c", command, PATH=SEARCH_PATH, **settings)


def pass_time(file: Path, hours: int, **settings: str) -> None:
    """Let time pass: move everything that is stored into the past, and count it again."""
    with closing(sqlite3.connect(file)) as connection:
        for table, columns in TIMES.items():
            for column in columns:
                moved = f"strftime('%Y-%m-%d %H:%M:%f', {column}, '-{hours} hours') || '000'"
                connection.execute(f"UPDATE {table} SET {column} = {moved} WHERE {column} IS NOT NULL")
        connection.commit()
    assert shell("tips recount", **settings).returncode == 0


class Traffic:
    """Users who ask for tips and react to them."""

    def __init__(self, http: httpx.Client, file: Path) -> None:
        self.http = http
        self.file = file
        self.tips = 0

    def run(self, tips: int, helpful: dict[str, float]) -> None:
        """Ask for tips; of each version, these shares are helpful."""
        for _ in range(tips):
            self.tips += 1
            body = {"user_id": f"u{self.tips % 100}", "signals": {"locale": "en", "local_time": "09:30"}}
            tip = self.http.post("/tips", json=body).raise_for_status().json()
            if self.tips % 10 < 10 * helpful[tip["prompt_version"]]:
                reaction = {"tip_id": tip["tip_id"], "reaction": "helpful"}
                self.http.post("/reactions", json=reaction).raise_for_status()

    def shadows(self) -> int:
        with closing(sqlite3.connect(self.file)) as connection:
            (count,) = connection.execute("SELECT count(*) FROM shadow_tips").fetchone()
            return int(count)


def commands() -> Iterator[str]:
    """Yield the commands of the walk that have not been executed yet."""
    walk = WALK.partition("## Ship a ranking policy")[0]
    yield from (command for command in snippets(walk, "shell"))


def test_the_walk_leads_from_the_entry_to_champion_and_back(project: Path, upstream: Upstream, tmp_path: Path) -> None:
    file = tmp_path / "tips.db"
    walk = commands()
    settings = model_settings(upstream, PYTHONPATH=str(project), DATABASE_URL=database_url(tmp_path), COLUMNS="220")
    assert shell(next(walk), **settings).stdout == f"released: {VERSION}\n"
    serve = next(walk)
    settings |= dict(re.findall(r"([A-Z_]+)=(\S+)", serve))
    assert serve.endswith("tips serve\n")
    # One of ten decisions would be enough, but ten times as many.
    with service(**settings, ROLLOUT_SHADOW_SHARE="1") as both:
        traffic = Traffic(both.http, file)

        def command(expected: str) -> str:
            ended = shell(next(walk), **settings)
            assert (ended.returncode, expected in ended.stdout + ended.stderr) == (0, True), ended
            return ended.stdout + ended.stderr

        def effective(version: str) -> bool:
            """Wait until a tip has this version."""
            return eventually(lambda: _tip(both.http)["prompt_version"] == version)

        command("tips@example.com")
        command(f"{VERSION}")
        assert "shadow_decisions" in command("refused") or "decisions" in command("refused")
        traffic.run(300, {"v1": 0.2})
        pass_time(file, 25, **settings)
        traffic.run(300, {"v1": 0.2})
        while traffic.shadows() < 500:  # on a busy machine some decisions are dropped
            traffic.run(50, {"v1": 0.2})
        assert {row["prompt_version"] for row in [_tip(both.http)]} == {"v1"}
        pass_time(file, 2, **settings)
        command("50")
        assert effective(VERSION)
        traffic.run(400, {"v1": 0.2, VERSION: 0.6})
        pass_time(file, 26, **settings)
        command("champion")
        assert eventually(lambda: all(_tip(both.http)["prompt_version"] == VERSION for _ in range(5)))
        command("registered")
        assert eventually(lambda: all(_tip(both.http)["prompt_version"] == "v1" for _ in range(5)))
        history = command("Complaints in the support channel")
    assert [word for word in ("start", "promote", "rollback") if word not in history] == []
    assert next(walk, None) is None


def _tip(http: httpx.Client) -> dict[str, str]:
    tip: dict[str, str] = http.post("/tips", json={"user_id": "visitor"}).raise_for_status().json()
    return tip
