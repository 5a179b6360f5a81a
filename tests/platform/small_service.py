"""A service with a few routes of a test, and everything that the application factory adds."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI

from ml.platform.app_factory import build_service
from ml.platform.settings import ServiceSettings
from ml.platform.telemetry import Telemetry


@asynccontextmanager
async def _no_resources(_: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
    yield {"ready": []}


def small_service(*routers: APIRouter, api_keys: Sequence[str] = (), **options: Any) -> FastAPI:
    """Return an application with these routers; `options` are those of the application factory."""
    settings = ServiceSettings(api_keys=api_keys)
    return build_service(_no_resources, settings=settings, telemetry=Telemetry(), routers=routers, **options)
