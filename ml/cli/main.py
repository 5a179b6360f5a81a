"""The `tips` command: all of its parts together."""

import sys

import typer

from ml.cli import generate as tips
from ml.cli import learning, people, prompts
from ml.cli import serve as services
from ml.platform.errors import TipsError
from ml.platform.settings import ConfigurationError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for part in (services, tips, people, learning):
    app.add_typer(part.app)
app.add_typer(prompts.app, name="prompts", help="Show the prompt versions, or release new ones.")


def main() -> None:
    """Run the command; an error that the user can mend is one sentence on standard error, and exit code 1."""
    try:
        app()
    except (ConfigurationError, TipsError) as error:
        sys.exit(str(error))
