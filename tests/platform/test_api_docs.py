"""The page with the API docs: it links to the other pages, also below a root path."""

import re

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.responses import PlainTextResponse

from ml.platform import api_docs
from ml.platform.navigation import PAGE
from ml.serving.app import create_app
from ml.serving.settings import ServingSettings
from tests.server import TestClient


@pytest.fixture
def app() -> FastAPI:
    """An application with a page of its own, and the API docs."""
    pages = APIRouter()

    @pages.get("/admin/b", summary="B & C", tags=[PAGE], response_class=PlainTextResponse)
    async def page() -> str:
        return "b"

    app = FastAPI(docs_url=None, title="Tips")
    app.router.routes.extend([*api_docs.router.routes, *pages.routes])
    return app


def test_the_docs_link_to_all_pages_below_the_root_path(app: FastAPI) -> None:
    for root in ("", "/behind/a/proxy"):
        page = TestClient(app, root_path=root).get("/docs").text
        links = re.findall(r"<a href=\"([^\"]*)\"( aria-current=page)?>([^<]*)</a>", page)
        assert links == [(f"{root}/admin/b", "", "B &amp; C"), (f"{root}/docs", " aria-current=page", "API")]
        assert f"'{root}/openapi.json'" in page


def test_the_start_page_of_serving_is_the_docs_and_needs_no_key() -> None:
    http = TestClient(create_app(ServingSettings(tip_model="openai/x", api_keys=("key",))))
    answer = http.get("/", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "/docs")
    assert http.get("/").text.count("aria-current") == 2  # the link, and its style
