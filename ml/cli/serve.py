"""`tips serve`: run the services."""

import signal
import sys
from enum import StrEnum
from typing import Annotated, Any, NoReturn

import typer
import uvicorn
from fastapi import FastAPI

from ml.cli.stores import needs_recommender_extra
from ml.platform.http_protocol import LimitedHttpProtocol
from ml.platform.local_request import is_loopback
from ml.platform.settings import ConfigurationError, ServiceSettings

KEEP_ALIVE_SECONDS = 75
"""For idle connections: longer than clients and proxies keep them, so that a request never meets a closing one."""


class Service(StrEnum):
    """One of the two services."""

    SERVING = "serving"
    RECOMMENDER = "recommender"


def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on; 0 takes a free one.")] = 8000,
    only: Annotated[Service | None, typer.Option(help="Run only one of the two services; by default both.")] = None,
) -> None:
    """Run the services: both in one process, or one of them."""
    settings = ServiceSettings.from_environment()
    if not (settings.api_keys or settings.allow_anonymous or is_loopback(host)):
        raise ConfigurationError(f"API_KEYS: must be set to listen on {host}, or ALLOW_ANONYMOUS to true.")
    app = _import_app(only)
    # uvicorn finishes the requests in flight and then raises the signal again, which is a successful exit.
    signal.signal(signal.SIGTERM, _exit_successfully)
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        http=LimitedHttpProtocol,
        limit_concurrency=settings.max_connections,
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(settings.generate_timeout_seconds) + 1,
    )


def _import_app(only: Service | None) -> FastAPI:
    """Import an entry point, which builds its application."""
    if only is Service.SERVING:
        from ml.serving.main import app
    elif only is Service.RECOMMENDER:
        with needs_recommender_extra():
            from ml.recommender.main import app
    else:
        with needs_recommender_extra():
            from ml.standalone.main import app
    return app


def _exit_successfully(*_: Any) -> NoReturn:
    sys.exit(0)
