"""A headless Chromium for tests of the live page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.integration.fleet import Fleet

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TIMEOUT_MS = 45_000.0
# Run before the page's own script, outside of its policy.
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(`${event.violatedDirective}: ${event.blockedURI}`);
});
"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser; the test is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """A page of its own with /ui of a fleet, and all that went wrong on it."""

    def __init__(self, browser: Browser, fleet: Fleet, **settings: object) -> None:
        self.page: Page = browser.new_page(**settings)  # type: ignore[arg-type]
        self.page.set_default_timeout(TIMEOUT_MS)
        self.page.add_init_script(WATCH)
        self.requested: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.url = fleet.url
        self.page.goto(f"{fleet.url}/ui")

    @property
    def outside(self) -> list[str]:
        """Requests to anywhere but the router; what is inside of the page is no request."""
        inside = (f"{self.url}/", "data:")
        return [url for url in self.requested if not url.startswith(inside)]

    @property
    def violations(self) -> list[str]:
        """What the page's policy has forbidden."""
        return list(self.page.evaluate("window.violations"))
