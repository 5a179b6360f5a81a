"""HTML pages for operators: a shared layout, and headers that forbid content from other hosts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ml.platform.navigation import page_links

PRIVATE_HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_LAYOUT_DIRECTORY = Path(__file__).with_name("templates")


class PageTemplates:
    """The page templates of one package, which extend the layout `base.html`."""

    def __init__(self, directory: Path, filters: Mapping[str, Callable[..., Any]] | None = None) -> None:
        """Take the directory of the templates, and the filters that they use."""
        self._environment = Environment(
            loader=FileSystemLoader([directory, _LAYOUT_DIRECTORY]),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= filters or {}

    def render(self, request: Request, template: str, *, nonce: str = "", **values: Any) -> HTMLResponse:
        """Return the requested page, with links to the other pages; it loads nothing from other hosts.

        `nonce` allows the page's own script, if it has one.
        """
        script = f"; script-src 'nonce-{nonce}'; connect-src 'self'" if nonce else ""
        headers = PRIVATE_HEADERS | {"Content-Security-Policy": _CONTENT_SECURITY_POLICY + script}
        values |= {"nonce": nonce, "links": page_links(request), "root": request.scope.get("root_path", "")}
        return HTMLResponse(self._environment.get_template(template).render(values), headers=headers)
