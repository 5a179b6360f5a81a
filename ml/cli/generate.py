"""`tips generate`: write one tip without a service."""

import asyncio
import sys
from contextlib import aclosing
from typing import Annotated

import typer

from ml.cli.progress import working
from ml.cli.signals import SignalOption, parse_request
from ml.platform.telemetry import Telemetry
from ml.serving.app import build_gateway, build_generator, check_settings
from ml.serving.generate import Tip, TipGenerator
from ml.serving.prompts import Prompt, resolve_prompt
from ml.serving.schemas import GenerateRequest
from ml.serving.settings import ServingSettings


def generate(
    signal: SignalOption = None,
    prompt_version: Annotated[str | None, typer.Option(help="One of the versions that `tips prompts` shows.")] = None,
) -> None:
    """Write one tip; a terminal shows it while it is written. The first one waits until the model is loaded."""
    settings = ServingSettings.from_environment()
    check_settings(settings)
    request = parse_request(signal, prompt_version)
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
