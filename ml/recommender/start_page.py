"""The start page of a recommender that runs alone: links to its pages, and its first requests."""

import json
import shlex
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, SecretStr

from ml.platform.dependencies import require_admin
from ml.platform.navigation import PAGE
from ml.platform.pages import PageTemplates
from ml.recommender.schemas import ReactionRequest, TipRequest

_TEMPLATES = PageTemplates(Path(__file__).with_name("templates"))


def build_router(password: SecretStr | None) -> APIRouter:
    """Return the route of the page, protected by `password`; without one, for browsers on this machine only."""
    router = APIRouter(dependencies=[require_admin(password)], include_in_schema=False)
    router.get("/", summary="Start", tags=[PAGE])(show_start_page)
    return router


async def show_start_page(request: Request) -> HTMLResponse:
    """The pages of this service, and first requests."""
    url = str(request.base_url)
    return _TEMPLATES.render(
        request,
        "start.html",
        tip_request=_curl(f"{url}tips", _example(TipRequest)),
        reaction_request=_curl(f"{url}reactions", _example(ReactionRequest) | {"tip_id": "TIP_ID"}),
    )


def _example(model: type[BaseModel]) -> dict[str, Any]:
    """Return the example of a request in the API docs."""
    example: dict[str, Any] = model.model_json_schema()["examples"][0]
    return example


def _curl(url: str, body: dict[str, Any]) -> str:
    json_body = shlex.quote(json.dumps(body, ensure_ascii=False))
    return f"curl -X POST {shlex.quote(url)} -H 'content-type: application/json' \\\n  -d {json_body}"
