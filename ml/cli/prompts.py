"""`tips prompts`: show the prompt versions, and release new ones."""

import sys

import typer
from rich.console import Console
from rich.table import Table

from ml.serving import prompts as registry
from ml.serving.settings import ServingSettings

app = typer.Typer(invoke_without_command=True)


@app.callback()
def prompts(context: typer.Context) -> None:
    """Show the prompt versions."""
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
