"""The pages of a service, which link to each other.

A route with the tag `PAGE` is a page: its summary is the title of the link and its description says what it shows.
"""

from dataclasses import dataclass

from fastapi import Request
from fastapi.routing import APIRoute

PAGE = "page"


@dataclass(frozen=True, slots=True)
class PageLink:
    """A link to a page; `is_current`: it is the page that was requested."""

    href: str
    title: str
    description: str
    is_current: bool


def page_links(request: Request) -> list[PageLink]:
    """Return the links to all pages of the service that was requested, sorted by path, so that `/` is the first."""
    root = request.scope.get("root_path", "")
    pages = [route for route in request.app.routes if isinstance(route, APIRoute) and PAGE in route.tags]
    return [
        PageLink(f"{root}{page.path}", page.summary or page.name, page.description, page is request.scope.get("route"))
        for page in sorted(pages, key=lambda page: page.path)
    ]
