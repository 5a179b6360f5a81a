"""The page that shows a newcomer the whole loop: a tip from every version, as it is written, and reactions to them."""

from fastapi import APIRouter
from pydantic import SecretStr

from ml.guards import admin_only

PATHS = ("/", "/playground")
"""Guarded by the password, not by keys: a browser sends none."""

GENERATING_PATHS = ("/playground/tips",)


def router(password: SecretStr | None) -> APIRouter:
    """Return the routes of the page, behind `password`; without one, for browsers on this machine."""
    return APIRouter(dependencies=[admin_only(password)], include_in_schema=False)
