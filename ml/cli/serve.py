"""Run the services."""

import signal
import sys
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any, NoReturn

import typer
import uvicorn
from fastapi import FastAPI

from ml.cli.stores import recommender_extra
from ml.platform.app_factory import build_app_or_exit
from ml.platform.dependencies import is_loopback
from ml.platform.settings import ConfigurationError, ServiceSettings
from ml.serving.app import app_from_environment as serving_from_environment

app = typer.Typer()


class Only(StrEnum):
    """One of the two services."""

    SERVING = "serving"
    RECOMMENDER = "recommender"


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on; 0 takes a free one.")] = 8000,
    only: Annotated[Only | None, typer.Option(help="Run one of the two services; by default both.")] = None,
) -> None:
    """Run the service on this machine."""
    settings = ServiceSettings.from_environment()
    if not (settings.api_keys or settings.allow_anonymous or is_loopback(host)):
        raise ConfigurationError(f"API_KEYS: must be set to listen on {host}, or ALLOW_ANONYMOUS to true.")
    service = build_app_or_exit(_service(only))
    # uvicorn finishes what is in flight and then raises the signal that stopped it once more: that is a success.
    signal.signal(signal.SIGTERM, _exit_well)
    uvicorn.run(
        service,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.generate_timeout_seconds) + 1,
    )


def _service(only: Only | None) -> Callable[[], FastAPI]:
    if only is Only.SERVING:
        return serving_from_environment
    with recommender_extra():
        from ml.recommender.app import app_from_environment as recommender_from_environment
        from ml.standalone.app import app_from_environment as both_from_environment
    return recommender_from_environment if only else both_from_environment


def _exit_well(*_: Any) -> NoReturn:
    sys.exit(0)
