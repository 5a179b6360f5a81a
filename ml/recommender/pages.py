"""The pages for operators."""

import secrets
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from fastapi.templating import Jinja2Templates
from pydantic import SecretStr

from ml.guards import admin_only

PATHS = ("/admin",)
"""Guarded by the password, not by keys: a browser sends none."""

_TEMPLATES = Jinja2Templates(Path(__file__).with_name("templates"))


def router(password: SecretStr | None) -> APIRouter:
    """Return the routes of the pages, behind `password`; without one, for browsers on this machine."""
    return APIRouter(dependencies=[admin_only(password)], include_in_schema=False)


def page(request: Request, template: str, *, scripted: bool = False, **context: Any) -> HTMLResponse:
    """Render a page that loads nothing from elsewhere; only a `scripted` one may run its own script."""
    nonce = secrets.token_urlsafe(16)
    script = f"script-src 'nonce-{nonce}'; connect-src 'self'; " if scripted else ""
    policy = f"default-src 'none'; {script}style-src 'unsafe-inline'; img-src 'self' data:; form-action 'self'; "
    headers = {
        "Content-Security-Policy": f"{policy}base-uri 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
    }
    return _TEMPLATES.TemplateResponse(request, template, {"nonce": nonce, **context}, headers=headers)
