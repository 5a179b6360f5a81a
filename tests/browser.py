"""A headless Chromium, and accessibility checks with axe."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

_CHROMIUM_PATH = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""The path of the system's Chromium; None for the one that Playwright has installed."""

_OPTIONS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@contextmanager
def _launch_chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM_PATH, args=_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with _launch_chromium() as browser:
        yield browser


def serious_problems(page: Page) -> list[str]:
    """Return the violations that axe classifies as serious or critical."""
    violations = Axe().run(page).response["violations"]
    return [
        f"{violation['id']}: {violation['help']}"
        for violation in violations
        if violation["impact"] in {"serious", "critical"}
    ]
