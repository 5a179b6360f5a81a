"""The `tips` command: one module per subcommand."""

import logging
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from ml.cli import (
    cards,
    evaluate,
    export,
    features,
    forget,
    generate,
    migrate,
    nightly,
    prompts,
    purge,
    recount,
    rollout,
    serve,
    simulate,
    train,
)
from ml.platform.errors import TipsError
from ml.platform.settings import ConfigurationError
from ml.platform.telemetry import configure_logging

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    serve.serve,
    generate.generate,
    migrate.migrate,
    purge.purge,
    recount.recount,
    forget.forget,
    export.export,
    train.train,
    evaluate.evaluate,
    nightly.nightly,
    simulate.simulate,
):
    app.command()(command)
app.add_typer(features.app, name="features")
app.add_typer(cards.app, name="cards", help="Show the model cards, or write them to files.")
app.add_typer(rollout.app, name="rollout", help="Start, watch and move rollouts of prompt versions and policies.")
app.add_typer(prompts.app, name="prompts", help="Show the prompt versions, or release new ones.")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"tips {version('tip-service')}")
        raise typer.Exit


@app.callback()
def tips(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Write short, personal tips with a language model, and learn from the reactions to them."""


def main() -> None:
    """Run the command; a configuration error or a failed tip is one sentence on standard error, with exit status 1."""
    configure_logging(logging.CRITICAL, sys.stderr)  # the services, which log more, do this again
    try:
        app()
    except (ConfigurationError, TipsError) as error:
        sys.exit(str(error))
