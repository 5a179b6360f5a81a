"""`tips serve`: run the services."""

import errno
import signal
import socket
import sys
from typing import Annotated, Any, NoReturn

import typer
import uvicorn
from fastapi import FastAPI

from ml.cli.options import choice, whole_number
from ml.cli.stores import needs_recommender_extra
from ml.platform.http_protocol import LimitedHttpProtocol
from ml.platform.local_request import is_loopback
from ml.platform.settings import ConfigurationError, ServiceSettings

KEEP_ALIVE_SECONDS = 75
"""For idle connections: longer than clients and proxies keep them, so that a request never meets a closing one."""

_SERVICES = ("serving", "recommender")


def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(parser=whole_number(0, 65_535), metavar="N", help="The port to listen on; 0 takes a free one."),
    ] = 8000,
    only: Annotated[
        str | None,
        typer.Option(
            parser=choice(_SERVICES), metavar="|".join(_SERVICES), help="Run one of the two services; by default both."
        ),
    ] = None,
) -> None:
    """Run the services: both in one process, or one of them."""
    settings = ServiceSettings.from_environment()
    if not (settings.api_keys or settings.allow_anonymous or is_loopback(host)):
        raise ConfigurationError(f"API_KEYS: must be set to listen on {host}, or ALLOW_ANONYMOUS to true.")
    _check_can_listen(host, port)  # before the application is imported, which takes seconds
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


def _check_can_listen(host: str, port: int) -> None:
    """Raise ConfigurationError if `host` is not an address of this machine, or if its `port` is in use or reserved."""
    not_an_address = ConfigurationError(f"--host: {host!r} is not an address of this machine.")
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise not_an_address from None
    for family, type_, protocol, _, address in addresses:
        with socket.socket(family, type_, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            try:
                listener.bind(address)
            except PermissionError:
                raise ConfigurationError(f"--port: {port} needs more rights; use a port above 1023.") from None
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise ConfigurationError(f"--port: another program listens on port {port} of {host}.") from None
                raise not_an_address from None


def _import_app(only: str | None) -> FastAPI:
    """Import an entry point, which builds its application."""
    if only == "serving":
        from ml.serving.main import app
    elif only == "recommender":
        with needs_recommender_extra():
            from ml.recommender.main import app
    else:
        with needs_recommender_extra():
            from ml.standalone.main import app
    return app


def _exit_successfully(*_: Any) -> NoReturn:
    sys.exit(0)
