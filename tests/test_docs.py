"""README and the pages in docs/: their commands and snippets run, and what they list is complete."""

import ast
import itertools
import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from ml.experiments.policies import POLICIES, selectable_policies
from ml.experiments.shadow_pairs import TOKEN_FACTOR
from ml.features.definitions import SIGNALS
from ml.pipelines.settings import PipelineSettings
from ml.platform.errors import TipsError
from ml.platform.settings import ServiceSettings
from ml.platform.telemetry import Telemetry
from ml.recommender.settings import RecommenderSettings
from ml.rollouts.gate_settings import GateSettings
from ml.rollouts.gates import GATES
from ml.serving.settings import ServingSettings
from ml.serving.tip import validate_tip
from ml.standalone.app import create_app
from ml.store.reactions import REACTIONS
from tests.conftest import Serve
from tests.process import environment, service
from tests.upstream import Upstream

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
README, CALLERS, OPERATORS = PAGES["README.md"], PAGES["docs/callers.md"], PAGES["docs/operators.md"]
RANKING, REWARDS, ROLLOUTS = PAGES["docs/ranking.md"], PAGES["docs/rewards.md"], PAGES["docs/rollouts.md"]
LINKING = PAGES | {name: (ROOT / name).read_text() for name in ("CHANGELOG.md", "CONTRIBUTING.md")}
"""The pages, and the other documents with links to them."""
SEARCH_PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
MAX_README_LINES = 119
MAX_SECONDS = 600
"""Of one command: only so that a hanging one ends."""

on_every_page = pytest.mark.parametrize("page", PAGES)


def snippets(text: str, language: str) -> list[str]:
    """Return the code blocks in a language, without the indentation that they have in a list."""
    blocks = re.findall(rf"^( *)```{language}\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indentation}", "", code, flags=re.MULTILINE) for indentation, code in blocks]


def shell(command: str, folder: Path = ROOT, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-e", "-c", command],
        env=environment(PATH=SEARCH_PATH, PYTHONPATH=str(ROOT), **settings),
        capture_output=True,
        text=True,
        timeout=MAX_SECONDS,
        cwd=folder,
        check=False,
    )


def table_rows(text: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading."""
    below = text.partition(f"\n{heading}\n")[2]
    table = re.search(r"^\|.*\n\|[-|]+\n((?:\|.*\n)+)", below, re.MULTILINE)
    assert table, heading
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table[1].splitlines()]


# README


INSTALL, CURL, CHECK = snippets(README, "sh")


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= MAX_README_LINES


def test_the_first_command_writes_a_real_tip_once_everything_is_installed() -> None:
    *install, last = (step.strip() for step in INSTALL.replace("\\\n", "").split("&&"))
    assert [step.split()[0] for step in install] == ["python3", ".", "pip", "pip"]
    # The service starts even if the tip fails.
    steps = re.fullmatch(r"\{ (tips generate [^;]+); tips serve; \}", last)
    assert steps
    generate = steps[1]
    # Other processes may keep the machine busy.
    ended = shell(generate, GENERATE_TIMEOUT_SECONDS=str(MAX_SECONDS))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert validate_tip(ended.stdout)


def test_what_the_first_command_installs_is_what_the_project_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["embedded"], *extras["recommender"], *extras["registry"]]
    names = {re.split(r"[^a-z0-9-]", requirement)[0] for requirement in needed}
    assert len(names) > 30
    assert "--require-hashes --requirement requirements.lock " in INSTALL
    locked = re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert names <= set(locked)


def test_the_request_in_readme_is_answered(serve: Serve) -> None:
    url = str(serve().base_url).removeprefix("http://").rstrip("/")
    ended = shell(CURL.replace("localhost:8000", url) + " --silent")
    answer = json.loads(ended.stdout)
    assert answer["prompt_version"] == "v2-mentor"
    assert validate_tip(answer["tip"])


def test_the_tree_in_readme_has_every_package_and_nothing_else() -> None:
    tree = README.partition("```\nml/\n")[2].partition("tests/  ")[0]
    folders = sorted({path.parent.name for path in (ROOT / "ml").glob("*/*.py")})
    assert sorted(re.findall(r"^  (\w+)/ ", tree, re.MULTILINE)) == folders


def test_ci_runs_the_one_command_that_contributors_run() -> None:
    assert CHECK == "./check\n"
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == 'exec "$(dirname "$0")/../check"'
    last = (ROOT / "check").read_text().splitlines()[-1]
    assert last == 'pytest --numprocesses auto --dist loadfile --no-loadscope-reorder "$@"'


# Snippets of all pages


def cases(found: Mapping[str, str]) -> list[Any]:
    return [pytest.param(snippet, id=name) for name, snippet in found.items()]


PYTHON = {
    f"{page}-{index}": snippet for page, text in PAGES.items() for index, snippet in enumerate(snippets(text, "python"))
}
SHELL = {
    f"{page}-{index}": snippet
    for page, text in PAGES.items()
    if page != "README.md"
    for index, snippet in enumerate(snippets(text, "sh"))
}
REQUESTS = {name: snippet for name, snippet in SHELL.items() if snippet.startswith("curl ")}
SERVICES = {name: snippet for name, snippet in SHELL.items() if re.search(r"(^| )(tips serve|uvicorn)\b", snippet)}
COMMANDS = {name: snippet for name, snippet in SHELL.items() if name not in REQUESTS | SERVICES}


@pytest.mark.parametrize("snippet", cases(PYTHON))
def test_python_snippets_run(serve_both: Serve, snippet: str) -> None:
    url = str(serve_both().base_url).rstrip("/")
    exec(snippet.replace("http://localhost:8000", url), {})


@pytest.mark.parametrize("command", cases(REQUESTS))
def test_requests_with_curl_are_answered(serve_both: Serve, command: str) -> None:
    url = str(serve_both().base_url).removeprefix("http://").rstrip("/")
    ended = shell(command.replace("localhost:8000", url).replace("curl ", "curl --silent --show-error --fail ", 1))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "event: error" not in ended.stdout


def test_commands_run_in_the_order_of_the_pages(tmp_path: Path) -> None:
    """They are the commands of one operator, on a database that simulated users have filled."""
    ended = shell("tips simulate --users 30 --days 10", tmp_path)
    assert ended.returncode == 0, ended.stderr
    with closing(sqlite3.connect(tmp_path / "tips.db")) as connection, connection:
        connection.execute("update tip_scores set user_id = 'u-1729' where user_id = 'simulated-7'")
    for name, command in COMMANDS.items():
        assert re.match(r"([A-Z_]+=\S+ )*tips ", command), name
        ended = shell(command, tmp_path)
        assert ended.returncode == 0, f"{name}: {command}{ended.stderr}"
    assert (tmp_path / "policy.npz").is_file()
    assert (tmp_path / "estimates.svg").is_file()


@pytest.mark.parametrize("command", cases(SERVICES))
def test_commands_that_start_a_service_do(upstream: Upstream, tmp_path: Path, command: str) -> None:
    settings = {"TIP_MODEL": "openai/good", "TIP_MODEL_API_BASE": f"{upstream.url}/v1"}
    start = f'cd {shlex.quote(str(tmp_path))} && exec env {command.strip()} "$@"'
    with service("sh", "-c", start, "sh", PATH=SEARCH_PATH, PYTHONPATH=str(ROOT), **settings) as running:
        assert running.http.get("/openapi.json").status_code == 200
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(MAX_SECONDS) in {0, -signal.SIGTERM}


# Links and names


def slug(heading: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", LINKING)
def test_every_relative_link_resolves(page: str) -> None:
    text = re.sub(r"```.*?```", "", LINKING[page], flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    broken = []
    for link in links:
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        anchors = (
            {slug(heading) for heading in re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)}
            if path.suffix == ".md" and path.is_file()
            else set()
        )
        if not path.exists() or (anchor and anchor not in anchors):
            broken.append(link)
    assert broken == []


@on_every_page
def test_every_row_of_a_table_is_below_a_header(page: str) -> None:
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    tables = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    assert [table for table in tables if not re.match(r".*\n\|[-|]+\n", table)] == []


def defines(body: Sequence[ast.stmt], names: Sequence[str]) -> bool:
    """Return whether statements define a name, and in its class the next one."""
    if not names:
        return True
    for statement in body:
        match statement:
            case ast.ClassDef(name=name, body=inner) if name == names[0]:
                return defines(inner, names[1:])
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if [name] == [*names]:
                return True
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)) if [name] == [
                *names
            ]:
                return True
    return False


def exists(dotted_name: str) -> bool:
    """Return whether there is such a module, or such a name in one; read, not imported, since some take seconds."""
    parts = dotted_name.split(".")
    for end in range(len(parts), 1, -1):
        module = ROOT.joinpath(*parts[:end])
        if module.with_suffix(".py").is_file():
            return defines(ast.parse(module.with_suffix(".py").read_text()).body, parts[end:])
    return (ROOT.joinpath(*parts) / "__init__.py").is_file()


@on_every_page
def test_every_module_class_and_file_that_is_named_exists(page: str) -> None:
    quoted = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL))
    names = {name.replace(":", ".") for name in quoted if re.fullmatch(r"ml(\.\w+)+(:app)?", name)}
    paths = {name for name in quoted if re.fullmatch(r"(ml|tests|docs)/[\w./-]+", name)}
    missing = {name for name in names if not exists(name)} | {path for path in paths if not (ROOT / path).exists()}
    assert missing == set()


# Completeness


def default_text(value: object) -> str:
    match value:
        case None | ():
            return ""
        case bool():
            return f"`{str(value).lower()}`"
        case float() | int():
            return f"`{value:g}`"
        case SecretStr():
            return f"`{value.get_secret_value()}`"
    return f"`{value}`"


def test_every_setting_has_a_row_with_its_default_and_service() -> None:
    expected: dict[str, tuple[str, str]] = {}
    classes: Mapping[str, type[ServiceSettings]] = {
        "serving": ServingSettings,
        "recommender": RecommenderSettings,
        "commands": PipelineSettings,
    }
    for name, settings in classes.items():
        for field, info in settings.model_fields.items():
            reader = "both" if field in ServiceSettings.model_fields else name
            expected[f"`{field.upper()}`"] = (default_text(info.default), reader)
    rows = table_rows(OPERATORS, "## Settings")
    assert len(rows) == len(expected)
    assert {variable: (default, reader) for variable, default, reader, _ in rows} == expected


def test_every_selectable_prompt_policy_has_a_row_with_what_it_needs() -> None:
    rows = table_rows(OPERATORS, "## Choose prompt versions")
    assert tuple(name.strip("`") for name, _, _ in rows) == selectable_policies()
    for name, summary, needs in rows:
        policy = POLICIES[name.strip("`")]
        assert summary == policy.summary
        assert ("two versions" in needs) == (policy.needs_versions == 2)
        assert ("without weights" in needs) == (not policy.accepts_weights)


def test_every_signal_has_a_row() -> None:
    names = [name for cell, _ in table_rows(CALLERS, "## Signals") for name in re.findall(r"`(\w+)`", cell)]
    assert names == [*SIGNALS]


def test_every_reaction_has_a_row_with_its_reward() -> None:
    (rows,) = re.findall(r"^\| reaction \| reward \|\n\|[-|]+\n((?:\|.*\n)+)", CALLERS, re.MULTILINE)
    rewards = {
        name: float(line.strip("|").split("|")[1])
        for line in rows.splitlines()
        for name in re.findall(r"`(\w+)`", line)
    }
    assert rewards == REACTIONS


def error_classes(root: type[TipsError]) -> Iterator[type[TipsError]]:
    yield root
    for child in root.__subclasses__():
        yield from error_classes(child)


def test_every_gate_has_a_row_with_its_default() -> None:
    default = GateSettings()
    unusable, slow = f"{100 * default.max_unusable:g} points", f"{100 * default.max_slow:g} points"
    margin = f"{100 * default.margin:g} points"
    bounds = {
        "`shadow_decisions`, `shadow_days`": f"{default.min_shadow_decisions}, {default.min_shadow_days}",
        "`unusable`": unusable,
        "`latency`": slow,
        "`tokens`": f"{TOKEN_FACTOR:g}",
        "`off_policy_gain`": margin,
        "`support`": f"{default.min_effective_sample_size:g}",
        "`unreachable`": f"at most {100 * default.max_unreachable:g} %",
        "`agreement`": f"{default.min_agreement:g}",
        "`no_excess_unusable`": unusable,
        "`no_excess_latency`": slow,
        "`slices`": f"{100 * default.slice_margin:g} points",
        "`step_tips`, `step_hours`": f"{default.min_step_tips}, `REACTION_WINDOW_HOURS`",
        "`reward`": margin,
        "`live_unusable`": unusable,
        "`live_latency`": slow,
    }
    rows = table_rows(ROLLOUTS, "## Gates")
    assert [name for gates, *_ in rows for name in re.findall(r"`(\w+)`", gates)] == [*GATES]
    assert {gates: bound for gates, _, _, bound in rows} | bounds == {gates: bound for gates, _, _, bound in rows}


def test_every_error_has_a_row_with_its_status() -> None:
    expected = {(str(int(error.status)), f"`{error.slug}`") for error in error_classes(TipsError)}
    assert {(status, slug) for status, slug, _ in table_rows(CALLERS, "## Errors")} == expected


def test_every_attack_names_tests_that_exist() -> None:
    cells = re.findall(r"^\|(?! attack |[-|]+$).* \| (.+) \|$", PAGES["docs/security.md"], re.MULTILINE)
    named = [re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", cell) for cell in cells]
    assert len(named) > 40
    assert [] not in named
    for file, function in itertools.chain.from_iterable(named):
        assert re.search(rf"def {function}\b", (ROOT / "tests" / file).read_text()), function


def test_every_route_is_named() -> None:
    document = create_app(ServingSettings(), RecommenderSettings()).openapi()
    for path in document["paths"]:
        assert path in CALLERS + OPERATORS + REWARDS + RANKING + ROLLOUTS


def test_every_log_event_has_a_row() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "ml").rglob("*.py"))
    events = set(re.findall(r"\blog\.(?:info|warning|error|exception)\(\s*\"(\w+)\"", sources))
    assert events == {name for cell, _ in table_rows(OPERATORS, "## Logs") for name in re.findall(r"`(\w+)`", cell)}


def test_every_metric_has_a_row() -> None:
    suffix = {"counter": "_total"}
    metrics = {f"{metric.name}{suffix.get(metric.type, '')}" for metric in Telemetry().registry.collect()}
    assert metrics == {name for cell, _ in table_rows(OPERATORS, "## Metrics") for name in re.findall(r"`(\w+)`", cell)}


TREE, LAYERS = re.findall(r"^```\n(.*?)^```", PAGES["docs/architecture.md"], re.DOTALL | re.MULTILINE)


def test_the_tree_in_the_architecture_has_every_module_and_nothing_else() -> None:
    described = {
        package: set(re.findall(r"\w+", re.sub(r"\w+/|\(.*?\)|and one module per subcommand", "", modules)))
        for package, modules in re.findall(r"^  (\w+)/ ((?:.*\n)(?: {10}.*\n)*)", TREE, re.MULTILINE)
    }
    assert described == {
        init.parent.name: {module.stem for module in init.parent.glob("*.py")} - {"__init__"}
        for init in (ROOT / "ml").glob("*/__init__.py")
    }


def test_the_layers_in_the_architecture_are_those_that_are_checked() -> None:
    contract, *_ = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert LAYERS.splitlines() == contract["layers"]


def test_the_glossary_is_sorted_and_every_entry_names_its_implementation() -> None:
    entries = re.findall(r"^- \*\*(.+?)\*\*: ((?:.+\n)(?:  .+\n)*)", PAGES["docs/glossary.md"], re.MULTILINE)
    terms = [term for term, _ in entries]
    assert len(terms) > 50
    assert terms == sorted({*terms}, key=str.casefold)
    assert [term for term, text in entries if not re.search(r"`ml\.[\w.]+`\)\.\n$", text)] == []
