"""Whether a request was sent on this machine, and whether a browser sent it for a page of another site."""

import ipaddress
import re

from starlette.requests import HTTPConnection, Request

_HOST = re.compile(r"(?P<name>[a-z0-9.-]+|\[(?P<address>[0-9a-f:.]+)\])(:[0-9]{1,5})?", re.IGNORECASE)

_FORWARDING_PREFIXES = ("x-forwarded", "x-original-", "x-envoy-", "x-azure-", "x-appengine-", "cf-")
_FORWARDING_HEADERS = frozenset(
    {
        *("forwarded", "via", "cdn-loop", "x-amzn-trace-id", "x-host", "x-scheme"),
        *("x-real-ip", "x-client-ip", "x-cluster-client-ip", "x-remote-ip", "x-remote-addr", "x-originating-ip"),
        *("client-ip", "true-client-ip", "proxy-client-ip", "wl-proxy-client-ip", "fastly-client-ip", "fly-client-ip"),
    }
)
"""Headers that reverse proxies, load balancers and content delivery networks add."""

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is a loopback one, which other machines cannot reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_local(request: HTTPConnection) -> bool:
    """Return whether a program on this machine sent the request for this machine, and no proxy passed it on.

    The Host header protects against pages of other sites whose name resolves to a loopback address (DNS rebinding).
    HTTP/1.0 is refused since proxies use it and browsers do not.
    """
    is_direct = request.scope.get("http_version") != "1.0" and not any(map(_is_forwarding, request.headers.keys()))
    return is_direct and request.client is not None and is_loopback(request.client.host) and _names_loopback(request)


def is_cross_site(request: Request) -> bool:
    """Return whether a browser sent the request for a page of another site, with a method that may change state.

    Browsers of 2023 and later send Sec-Fetch-Site, all send Origin with a POST, and other programs send neither.
    """
    if request.method in _SAFE_METHODS:
        return False
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        return site not in {"same-origin", "none"}
    return origin is not None and origin.partition("://")[2] != request.headers.get("host")


def _is_forwarding(header: str) -> bool:
    name = header.replace("_", "-")
    return name in _FORWARDING_HEADERS or name.startswith(_FORWARDING_PREFIXES)


def _names_loopback(request: HTTPConnection) -> bool:
    hosts = request.headers.getlist("host")
    match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    return match is not None and is_loopback((match["address"] or match["name"]).lower())
