"""Debian's headless Chromium, driven by Playwright, as a reader of reports; without a network.

Playwright's own browser is not downloaded. Where Chromium or Playwright is missing, the tests skip with the reason; in
`make browser` that is a failure (tests/conftest.py).
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu"]
"""A container's root has no sandbox to enter."""


@dataclass
class Seen:
    """An opened page and what the browser said of it."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def ready_seconds(self) -> float:
        """From navigation to the first prompt shown, by the page's own clock."""
        self.page.wait_for_selector("html[data-ready]", state="attached", timeout=30_000)
        return float(self.page.get_attribute("html", "data-ready")) / 1000


@contextmanager
def browser() -> Iterator[Any]:
    """A running Chromium; where there is none it skips the test."""
    if CHROMIUM is None:
        pytest.skip("no chromium; `apt-get install chromium`")
    pytest.importorskip("playwright.sync_api", reason="no playwright; `pip install playwright`")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield found
        finally:
            found.close()


def opened(chromium: Any, address: str | Path, **context: Any) -> Seen:
    """A page in a context of its own, all that it says and asks for written down from the start."""
    page = chromium.new_context(**{"viewport": {"width": 1300, "height": 900}, **context}).new_page()
    seen = Seen(page)
    page.on("console", lambda message: seen.complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.complaints.append(f"error: {error}"))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.goto(address.absolute().as_uri() if isinstance(address, Path) else address)
    return seen
