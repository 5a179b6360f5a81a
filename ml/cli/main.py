"""The `tips` command: one module per subcommand."""

import sys

import typer

from ml.cli import evaluate, features, forget, generate, migrate, prompts, purge, serve, simulate, train
from ml.platform.errors import TipsError
from ml.platform.settings import ConfigurationError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for command in (
    serve.serve,
    generate.generate,
    migrate.migrate,
    purge.purge,
    forget.forget,
    features.features,
    train.train,
    evaluate.evaluate,
    simulate.simulate,
):
    app.command()(command)
app.add_typer(prompts.app, name="prompts", help="Show the prompt versions, or release new ones.")


def main() -> None:
    """Run the command; a configuration error or a failed tip is one sentence on standard error, with exit status 1."""
    try:
        app()
    except (ConfigurationError, TipsError) as error:
        sys.exit(str(error))
