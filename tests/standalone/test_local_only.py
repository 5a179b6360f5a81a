"""Pages without a password and /admin/reload without keys: for this machine only, with raw requests."""

import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from ml.recommender.settings import RecommenderSettings
from ml.serving.settings import ServingSettings
from ml.standalone.app import create_app
from tests.server import running

SERVING = ServingSettings(tip_model="openai/unused", tip_model_api_base="http://127.0.0.1:9")
PAGES = ("/", "/admin/rewards", "/admin/rewards.csv", "/admin/rollouts", "/admin/cards", "/admin/cards/v1")
OPERATIONS = [("GET", page) for page in PAGES] + [
    ("POST", "/admin/reload"),
    *(("POST", f"/playground/{name}") for name in ("tips", "exposures", "reactions")),
]
PASSWORD = "Authorization: Basic dTpwdw=="  # u:pw


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, litellm_imported: None) -> Iterator[str]:  # noqa: ARG001
    database = f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('local')}/tips.db"
    with running(create_app(SERVING, RecommenderSettings(database_url=database))) as url:
        yield url


@pytest.fixture(scope="module")
def url_with_password(tmp_path_factory: pytest.TempPathFactory, litellm_imported: None) -> Iterator[str]:  # noqa: ARG001
    settings = RecommenderSettings(
        database_url=f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('password')}/tips.db", admin_password="pw"
    )
    with running(create_app(SERVING, settings)) as url:
        yield url


def status(url: str, method: str, path: str, *headers: str, host: str | None = "", version: str = "1.1") -> int:
    """Send a request, by default with the Host header of `url`, None for no such header; return the status."""
    address = urlsplit(url)
    assert address.hostname
    assert address.port
    hosts = [] if host is None else [f"Host: {host or address.netloc}"]
    lines = [f"{method} {path} HTTP/{version}", *hosts, "Connection: close", "Content-Length: 0", *headers, "", ""]
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        connection.sendall("\r\n".join(lines).encode("latin-1"))
        answer = b""
        while received := connection.recv(65_536):
            answer += received
    return int(answer.split(b" ", 2)[1])


ACCEPTED = {200, 415}
"""The statuses of requests that are not refused: the playground's have no JSON body here."""


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_a_request_from_this_machine_is_accepted(url: str, method: str, path: str) -> None:
    port = urlsplit(url).port
    for host in ("", "localhost", f"localhost:{port}", f"LOCALHOST:{port}", "127.0.0.1", "127.8.9.1", "[::1]:80"):
        assert status(url, method, path, host=host) in ACCEPTED
    for site in ("same-origin", "none"):
        assert status(url, method, path, f"Sec-Fetch-Site: {site}") in ACCEPTED
    assert status(url, method, path, f"Origin: {url}") in ACCEPTED


FORWARDING_HEADERS = (
    *("X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Server", "x-forwarded", "Forwarded"),
    *("X-Real-IP", "Via", "CF-Connecting-IP", "CF-Ray", "True-Client-IP", "X-Client-IP", "X-Cluster-Client-IP"),
    *("X-Original-Forwarded-For", "X-Original-Host", "X-Envoy-External-Address", "CDN-Loop", "X-Amzn-Trace-Id"),
    *("Fastly-Client-IP", "Fly-Client-IP", "X-Azure-ClientIP", "Client-IP", "X_Forwarded_For"),
)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_a_request_that_a_proxy_passed_on_is_refused(url: str, method: str, path: str) -> None:
    for header in FORWARDING_HEADERS:
        assert status(url, method, path, f"{header}: 127.0.0.1") == 403, header


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_a_request_of_http_1_0_is_refused_since_only_proxies_use_it(url: str, method: str, path: str) -> None:
    assert status(url, method, path, version="1.0") == 403


OTHER_HOSTS = (
    *("tips.example", "tips.example:8000", "127.0.0.1.tips.example", "localhost.tips.example", "localhost."),
    *("tips.example@localhost", "localhost#tips.example", "localhost/tips.example", "localhost?", "localhost:x"),
    *("localhost:123456", "localhost, tips.example", "::1", "[::1", "[localhost]", "10.0.0.1", "0.0.0.0", "[::]"),
    *("127.0.0.1:", "2130706433", "127.1", "0x7f.1", " ", "\xb9localhost"),
)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_a_request_for_another_host_or_a_malformed_one_is_refused(url: str, method: str, path: str) -> None:
    for host in OTHER_HOSTS:
        assert status(url, method, path, host=host) in {400, 403}, host


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_a_request_without_a_host_or_with_two_is_refused(url: str, method: str, path: str) -> None:
    assert status(url, method, path, host=None) in {400, 403}
    assert status(url, method, path, host=None, version="1.0") == 403
    assert status(url, method, path, "Host: tips.example") in {400, 403}


CROSS_SITE = [
    *("Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site", "Sec-Fetch-Site: other"),
    *("Origin: https://tips.example", "Origin: null", "Origin: http://localhost:1", "Origin: file://"),
]


@pytest.mark.parametrize("path", [path for method, path in OPERATIONS if method == "POST"])
@pytest.mark.parametrize("header", CROSS_SITE)
def test_a_post_of_a_page_of_another_site_is_refused(url: str, path: str, header: str) -> None:
    assert status(url, "POST", path, header) == 403


@pytest.mark.parametrize("header", CROSS_SITE)
def test_a_page_of_another_site_cannot_use_the_password_that_a_browser_adds(
    url_with_password: str, header: str
) -> None:
    assert status(url_with_password, "POST", "/playground/tips", PASSWORD, header) == 403


def test_with_a_password_a_page_can_be_behind_a_proxy(url_with_password: str) -> None:
    for page in PAGES:
        assert status(url_with_password, "GET", page, PASSWORD, "X-Forwarded-For: 1.2.3.4", host="tips.example") == 200
        assert status(url_with_password, "GET", page) == 401


def test_with_keys_the_policies_can_be_reloaded_through_a_proxy(tmp_path: Path) -> None:
    settings = RecommenderSettings(database_url=f"sqlite+aiosqlite:///{tmp_path}/tips.db", api_keys=("key",))
    with running(create_app(SERVING.model_copy(update={"api_keys": settings.api_keys}), settings)) as url:
        key, forwarded = "Authorization: Bearer key", "X-Forwarded-For: 1.2.3.4"
        assert status(url, "POST", "/admin/reload", key, forwarded, host="tips.example") == 200
        assert status(url, "POST", "/admin/reload", forwarded) == 401
