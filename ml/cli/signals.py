"""Signals on the command line."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from ml.features.definitions import SIGNALS
from ml.platform.problem_json import error_from_validation
from ml.platform.settings import ConfigurationError
from ml.serving.schemas import GenerateRequest

SignalOption = Annotated[list[str] | None, typer.Option(help=f"NAME=VALUE; names: {', '.join(SIGNALS)}.")]


def parse_request(pairs: Sequence[str] | None, prompt_version: str | None) -> GenerateRequest:
    """Return the request with the signals in `pairs`, each NAME=VALUE. Raises ConfigurationError."""
    signals: dict[str, Any] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"{pair!r} should be NAME=VALUE, such as sleep_hours=5.5", param_hint="--signal")
        if name == "recent_tips":
            signals[name] = [*signals.get(name, []), value]
        else:
            signals[name] = value
    try:
        return GenerateRequest.model_validate({"signals": signals, "prompt_version": prompt_version}, strict=False)
    except ValidationError as error:
        first = error_from_validation(error.errors(), GenerateRequest).errors[0]
        field = first.pointer.removeprefix("#/")
        option = "--prompt-version" if field == "prompt_version" else f"--signal {field.removeprefix('signals/')}"
        raise ConfigurationError(f"{option}: {first.detail}.") from None
