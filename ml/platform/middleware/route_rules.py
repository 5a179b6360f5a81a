"""The rules of each route, and the middleware that finds the route of a request once for all others.

Rules belong to routes, not to paths, so that they hold under any root path, in a mounted application and after a path
is renamed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

UNMATCHED = "unmatched"

MAX_CACHED = 1000
"""Addresses of routes without path parameters; there are more only if a root path varies."""

_SCOPE_KEY = "tips.route_rules"


@dataclass(eq=False, slots=True)
class InFlightLimit:
    """At most `max_requests` concurrent requests to the routes that share this limit.

    Requests in the background are admitted only as far as others leave room, and take no room from others.
    """

    max_requests: int
    in_flight: int = 0
    in_background: int = 0

    def admits(self, *, background: bool) -> bool:
        """Return whether one more request may be handled."""
        return self.in_flight + (self.in_background if background else 0) < self.max_requests

    def count(self, change: int, *, background: bool) -> None:
        """Add `change` to the number of requests of this kind that are handled."""
        if background:
            self.in_background += change
        else:
            self.in_flight += change


@dataclass(frozen=True, slots=True)
class RouteRules:
    """The rules of a route: its path as declared, whether it needs a key, and its limit of concurrent requests."""

    path: str
    needs_key: bool = True
    limit: InFlightLimit | None = None


NO_ROUTE = RouteRules(UNMATCHED)
"""The rules of requests that no route matches."""


def rules_of(scope: Scope) -> RouteRules:
    """Return the rules that apply to a request, as `RouteRulesMiddleware` has found them."""
    rules: RouteRules = scope[_SCOPE_KEY]
    return rules


class RouteRulesMiddleware:
    """Finds the route of each request, for the middleware inside, by the rules of the router.

    `routes`: the application's routes, in order; may still grow. `rules`: returns the rules of a route.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute], rules: Callable[[BaseRoute], RouteRules]) -> None:
        self.app = app
        self.routes = routes
        self.rules = rules
        self._cache: dict[tuple[str, str, str], RouteRules] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            # The router repeats the match; of a path that was seen before, this one costs a look-up.
            key = (scope["method"], scope.get("root_path", ""), scope["path"])
            scope[_SCOPE_KEY] = self._cache.get(key) or self._match(key, scope)
        await self.app(scope, receive, send)

    def _match(self, key: tuple[str, str, str], scope: Scope) -> RouteRules:
        partial = NO_ROUTE
        for route in self.routes:
            match, _ = route.matches(scope)
            if match is Match.FULL:
                rules = self.rules(route)
                # The path of a mounted application varies without being a parameter.
                if rules.path == scope["path"].removeprefix(key[1]) and len(self._cache) < MAX_CACHED:
                    self._cache[key] = rules
                return rules
            if match is Match.PARTIAL and partial is NO_ROUTE:
                partial = replace(self.rules(route), limit=None)  # another method, which the router refuses
        return partial
