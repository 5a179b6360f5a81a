"""HEAD requests: answered by every route that answers GET, and left out of the OpenAPI document."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute


def answer_head_requests(routes: Iterable[BaseRoute]) -> None:
    """Make all routes that answer GET answer HEAD too; the server omits the content of the response."""
    for route in routes:
        if isinstance(route, APIRoute) and route.methods and "GET" in route.methods:
            route.methods.add("HEAD")


def without_head(build_document: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the OpenAPI document that `build_document` returns, without the HEAD operations."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Duplicate Operation ID")  # of GET and HEAD
        document = build_document()
    for operations in document["paths"].values():
        operations.pop("head", None)
    return document
