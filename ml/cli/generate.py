"""`tips generate`: write one tip without a service."""

import asyncio
import sys
from collections.abc import Sequence
from contextlib import aclosing
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from ml.cli.progress import working
from ml.features.definitions import SIGNALS
from ml.platform.problem_json import error_from_validation
from ml.platform.settings import ConfigurationError
from ml.platform.telemetry import Telemetry
from ml.serving.app import build_gateway, build_generator, check_settings
from ml.serving.generate import Tip, TipGenerator
from ml.serving.prompts import Prompt, resolve_prompt
from ml.serving.schemas import GenerateRequest
from ml.serving.settings import ServingSettings


def generate(
    signal: Annotated[list[str] | None, typer.Option(help=f"NAME=VALUE; names: {', '.join(SIGNALS)}.")] = None,
    prompt_version: Annotated[str | None, typer.Option(help="One of the versions that `tips prompts` shows.")] = None,
) -> None:
    """Write one tip; a terminal shows it while it is written. The first one waits until the model is loaded."""
    settings = ServingSettings.from_environment()
    check_settings(settings)
    request = _parse_request(signal or [], prompt_version)
    _, prompt = resolve_prompt(request.prompt_version, settings.default_prompt_version)
    asyncio.run(_generate(settings, request, prompt))


async def _generate(settings: ServingSettings, request: GenerateRequest, prompt: Prompt) -> None:
    async with build_gateway(settings).running() as gateway:
        generator = build_generator(settings, gateway, Telemetry())
        with working("Loading the model"):  # not a part of the time for the tip, since it may take longer
            await gateway.warm_up([prompt.prefix])
        if sys.stdout.isatty():
            await _print_stream(generator, request)
        else:
            with working("Writing the tip"):
                tip = await generator.generate(request.signals.known(), request.prompt_version)
            print(tip.text)


async def _print_stream(generator: TipGenerator, request: GenerateRequest) -> None:
    with working("Writing the tip"):
        stream = await generator.stream(request.signals.known(), request.prompt_version)
    try:
        async with aclosing(stream.pieces) as pieces:
            async for piece in pieces:
                if not isinstance(piece, Tip):
                    print(piece, end="", flush=True)
    finally:
        print()


def _parse_request(pairs: Sequence[str], prompt_version: str | None) -> GenerateRequest:
    signals: dict[str, Any] = {}
    for pair in pairs:
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
        first = error_from_validation(error.errors()).errors[0]
        name, detail = first.pointer.removeprefix("#/signals/"), first.detail
        raise ConfigurationError(f"--signal {name}: {detail}.") from None
