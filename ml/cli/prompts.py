"""`tips prompts`: list, show and compare the prompt versions, and release new ones."""

import difflib
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ml.cli.signals import SignalOption, parse_request
from ml.features.context import PromptContext, assemble_context
from ml.serving import prompts as registry
from ml.serving.settings import ServingSettings

Version = Annotated[str, typer.Argument(help="One of the versions that `tips prompts` lists.")]

app = typer.Typer(invoke_without_command=True)


@app.callback()
def prompts(context: typer.Context) -> None:
    """List the prompt versions."""
    if context.invoked_subcommand:
        return
    default = ServingSettings.from_environment().default_prompt_version
    released = registry.locked_digests()
    table = Table("version", "description", "digest", "released")
    for version, prompt in registry.PROMPTS.items():
        state = "yes" if released.get(version) == prompt.digest else "changed!" if version in released else "no"
        name = f"{version} (default)" if version == default else version
        table.add_row(name, prompt.description, prompt.digest[:12], state)
    Console().print(table)


@app.command()
def lock() -> None:
    """Release the new versions: from then on, a test fails if their content changes."""
    changed = registry.changed_versions()
    if changed:
        sys.exit(f"{', '.join(changed)}: already released, so it cannot change; add a new version instead.")
    print(f"released: {', '.join(registry.lock_versions()) or 'nothing new'}")


@app.command()
def show(version: Version, signal: SignalOption = None) -> None:
    """Show what the model reads for a user with these signals: parameters, messages and the opening of the tip."""
    print("\n".join(_describe(version, _context(version, signal))))


@app.command()
def diff(first: Version, second: Version, signal: SignalOption = None) -> None:
    """Show how two versions differ in what the model reads for a user with these signals."""
    before, after = ([*_describe(version, _context(version, signal))] for version in (first, second))
    print("\n".join(difflib.unified_diff(before, after, first, second, lineterm="")) or "no difference")


def _context(version: str, pairs: list[str] | None) -> PromptContext:
    return assemble_context(parse_request(pairs, version).signals.known())


def _describe(version: str, context: PromptContext) -> Iterator[str]:
    """Yield the lines that describe what the model reads."""
    _, prompt = registry.resolve_prompt(version, version)
    rendered = prompt.render(context)
    yield ", ".join(f"{name}: {value}" for name, value in asdict(prompt.parameters).items())
    yield f"library: {prompt.library or 'none'}"
    for message in rendered.messages:
        yield f"\n{message['role']}:"
        yield from message["content"].splitlines()
    if rendered.opening:
        yield "\nassistant (only the embedded model, which completes it):"
        yield rendered.opening
