"""`tips generate`: write one tip without a service."""

import asyncio
import logging
import sys
from contextlib import aclosing
from typing import Annotated

import typer

from ml.cli.signals import SignalOption, parse_request
from ml.platform.telemetry import Telemetry, configure_logging
from ml.serving.app import build_gateway, build_generator, check_settings
from ml.serving.generate import Tip, TipGenerator
from ml.serving.prompts import resolve_prompt
from ml.serving.schemas import GenerateRequest
from ml.serving.settings import ServingSettings


def generate(
    signal: SignalOption = None,
    prompt_version: Annotated[str | None, typer.Option(help="One of the versions that `tips prompts` shows.")] = None,
) -> None:
    """Write one tip; a terminal shows it while it is written."""
    settings = ServingSettings.from_environment()
    check_settings(settings)
    request = parse_request(signal, prompt_version)
    resolve_prompt(request.prompt_version, settings.default_prompt_version)
    configure_logging(logging.CRITICAL, sys.stderr)
    asyncio.run(_generate(settings, request))


async def _generate(settings: ServingSettings, request: GenerateRequest) -> None:
    async with build_gateway(settings).running() as gateway:
        generator = build_generator(settings, gateway, Telemetry())
        await gateway.warm_up(())  # loading may take longer than the time for one tip
        if sys.stdout.isatty():
            await _print_stream(generator, request)
        else:
            print((await generator.generate(request.signals.known(), request.prompt_version)).text)


async def _print_stream(generator: TipGenerator, request: GenerateRequest) -> None:
    stream = await generator.stream(request.signals.known(), request.prompt_version)
    try:
        async with aclosing(stream.pieces) as pieces:
            async for piece in pieces:
                if not isinstance(piece, Tip):
                    print(piece, end="", flush=True)
    finally:
        print()
