"""A headless Chromium without a network."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


def why_not() -> str | None:
    """Why there is no browser to test with; None if there is one."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"needs {' and '.join(missing)} (Debian: chromium, chromium-driver)" if missing else None


@contextlib.contextmanager
def chromium(profile: Path, *, host: str | None = None) -> Iterator[Any]:
    """A browser with a fresh profile, whose console is kept.

    Args:
        profile: folder of the profile.
        host: the one host that it reaches; without one networking is off.
    """
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    only = () if host is None else (f"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE {host}",)
    for flag in (*FLAGS, *only, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.set_page_load_timeout(300)
        driver.set_script_timeout(300)
        driver.execute_cdp_cmd("Network.enable", {})
        offline = {"offline": host is None, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
        yield driver
    finally:
        driver.quit()


def open_page(driver: Any, page: Path, *, width: int, height: int = 900, scheme: str = "light") -> None:
    """Open a file at a width of so many CSS pixels and wait until its charts are drawn."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    driver.get(page.as_uri())
    driver.execute_async_script("const done = arguments[0]; report.ready.then(() => done());")
