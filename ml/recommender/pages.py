"""The pages for operators."""

from fastapi import APIRouter
from pydantic import SecretStr

from ml.guards import admin_only

PATHS = ("/admin",)
"""Guarded by the password, not by keys: a browser sends none."""


def router(password: SecretStr | None) -> APIRouter:
    """Return the routes of the pages, behind `password`; without one, for browsers on this machine."""
    return APIRouter(dependencies=[admin_only(password)], include_in_schema=False)
