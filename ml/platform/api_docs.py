"""The page with the API docs: Swagger UI, below the links to the other pages."""

from html import escape

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, RedirectResponse

from ml.platform.navigation import PAGE, page_links

STATIC_URL = "/docs/static"
"""The address of Swagger UI's files, so that the page loads nothing from other hosts."""

_STYLE = """\
body > header {
  display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; max-width: 1460px; margin: 0 auto; padding: 1.25rem 20px 0;
  font: .875rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif;
}
body > header nav { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; }
body > header a { color: #0a5a9c; text-underline-offset: .15em; }
body > header a[aria-current] { color: inherit; font-weight: 600; text-decoration: none; }
.swagger-ui .info { margin: 1.5rem 0; }
"""

router = APIRouter(include_in_schema=False)


@router.get("/docs", summary="API", tags=[PAGE])
async def show_docs(request: Request) -> HTMLResponse:
    """All requests of this service, to read and to try."""
    root = request.scope.get("root_path", "")
    page = get_swagger_ui_html(
        openapi_url=f"{root}{request.app.openapi_url}",
        title=f"API · {request.app.title}",
        swagger_js_url=f"{root}{STATIC_URL}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{STATIC_URL}/swagger-ui.css",
        swagger_favicon_url="data:,",
        swagger_ui_parameters={"defaultModelsExpandDepth": 0},
    )
    links = "".join(
        f'<a href="{escape(link.href)}"{" aria-current=page" if link.is_current else ""}>{escape(link.title)}</a>'
        for link in page_links(request)
    )
    header = f'<style>{_STYLE}</style><header><b>Tips</b><nav aria-label="Pages">{links}</nav></header>'
    return HTMLResponse(bytes(page.body).decode().replace("<body>", f"<body>{header}", 1))


start_router = APIRouter(include_in_schema=False)
"""`/` of a service without a start page of its own."""


@start_router.get("/")
async def redirect_to_docs(request: Request) -> RedirectResponse:
    """Redirect to the API docs."""
    return RedirectResponse(f"{request.scope.get('root_path', '')}/docs")
