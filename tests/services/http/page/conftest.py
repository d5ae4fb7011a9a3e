"""A real browser that has opened the page of a real server."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("selenium", reason="the page is tested with selenium (group 'test')")

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

PATIENCE_S = 120.0  # CI machines are slow
EXAMPLES = Path(__file__).resolve().parents[4] / "examples"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Page:
    """The page in a browser, and what the browser recorded while it was open."""

    def __init__(self, driver: webdriver.Chrome, address: str) -> None:
        self.driver = driver
        self.address = address
        self.errors: list[str] = []
        self.hosts: set[str] = set()
        self.refuses = False  # whether the server refuses scans in this test, which the browser logs as errors

    def open(
        self, width: int = 1280, height: int = 900, *, dark: bool = False, still: bool = False, media: str = ""
    ) -> None:
        """Open the page in a window of this size, for a reader with these settings."""
        self.settings(width, height, dark=dark, still=still, media=media)
        self.driver.get(self.address)
        self.wait("document.querySelectorAll('#demo-list button').length > 0")

    def settings(
        self, width: int = 1280, height: int = 900, *, dark: bool = False, still: bool = False, media: str = ""
    ) -> None:
        """Change the size of the window and the settings of the reader."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})

    def run(self, script: str, *arguments: Any) -> Any:
        """Return the value of an expression."""
        return self.driver.execute_script(f"return {script}", *arguments)

    def wait(self, script: str, *arguments: Any) -> Any:
        """Return the value of an expression as soon as it is true."""
        waiting = WebDriverWait(self.driver, PATIENCE_S, poll_frequency=0.1)
        return waiting.until(lambda _: self.run(script, *arguments), f"{script}\n{self.text('body')}")

    def find(self, selector: str) -> WebElement:
        """Return the first element."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """Return the visible text of the first element."""
        return self.find(selector).text

    def press(self, *keys: str) -> None:
        """Press keys wherever the focus is."""
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def tab_to(self, selector: str) -> None:
        """Press Tab until an element has the focus."""
        for _ in range(60):
            if self.run("document.activeElement.matches(arguments[0])", selector):
                return
            self.press(Keys.TAB)
        raise AssertionError(f"Tab does not reach {selector}")

    def choose(self, *files: Path) -> None:
        """Choose files in the dialog of the browser."""
        self.find("#files").send_keys("\n".join(map(str, files)))

    def drop(self, *files: tuple[str, bytes], event: str = "drop") -> None:
        """Drop files, given by name and content, on the page, or paste them."""
        encoded = [[name, base64.b64encode(content).decode()] for name, content in files]
        self.driver.execute_script(
            """
            const transfer = new DataTransfer();
            for (const [name, content] of arguments[0]) {
              const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
              transfer.items.add(new File([bytes], name));
            }
            const bubbles = { bubbles: true, cancelable: true };
            document.body.dispatchEvent(arguments[1] === "drop"
              ? new DragEvent("drop", { dataTransfer: transfer, ...bubbles })
              : new ClipboardEvent("paste", { clipboardData: transfer, ...bubbles }));
            """,
            encoded,
            event,
        )

    def try_demo(self, name: str) -> None:
        """Choose a demo scan."""
        self.driver.execute_script("arguments[0].click()", self.find(f'#demo-list [data-name="{name}"]'))

    def wait_for_answer(self) -> None:
        """Wait until a result is open and nothing is being loaded for it."""
        self.wait("document.querySelector('#detail-title') && !document.querySelector('.busy')")
        self.wait("document.querySelector('#progress').hidden")

    def wait_for_heatmap(self) -> None:
        """Wait until the open result has its heatmap, which may be a sentence that says that nothing is colored."""
        self.wait("document.querySelector('.legend')?.textContent.includes('Covering a')")

    def serious(self) -> list[str]:
        """Return the serious findings of axe-core, the reference checker of WCAG, about the page as it is now."""
        axe = pytest.importorskip("selenium_axe_python", reason="contains axe-core (group 'test')")
        source = Path(axe.__file__).parent / "axe-core" / "axe.min.js"
        self.driver.execute_script(source.read_text(encoding="utf-8"))
        found = self.driver.execute_async_script("axe.run({ resultTypes: ['violations'] }).then(arguments[0])")
        return [
            f"{violation['id']}: {violation['help']}: {[node['html'][:200] for node in violation['nodes']]}"
            for violation in found["violations"]
            if violation["impact"] in ("serious", "critical")
        ]

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than the window."""
        return int(self.run("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def read_logs(self) -> None:
        """Collect what the browser has logged."""
        for entry in self.driver.get_log("browser"):
            message = entry["message"]
            refusal = self.refuses and "v1/classify" in message and "Failed to load resource" in message
            if (entry["level"] == "SEVERE" or "Content Security Policy" in message) and not refusal:
                self.errors.append(message)
        for entry in self.driver.get_log("performance"):
            event = json.loads(entry["message"])["message"]
            if event["method"] == "Network.requestWillBeSent":
                parts = urlsplit(event["params"]["request"]["url"])
                if parts.scheme not in ("blob", "data", "about"):
                    self.hosts.add(parts.netloc)


@pytest.fixture(scope="session")
def driver() -> Iterator[webdriver.Chrome]:
    """One browser for all tests of the page."""
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    program = shutil.which("chromedriver")
    if browser is None or program is None:
        pytest.skip("needs Chromium and chromedriver (Debian packages chromium and chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(program))
    driver.set_script_timeout(PATIENCE_S)
    yield driver
    driver.quit()


@pytest.fixture
def page_of(driver: webdriver.Chrome) -> Iterator[Callable[[str], Page]]:
    """The page of the server at an address. After the test, the browser must have sent nothing to another one."""
    pages: list[Page] = []

    def page_of(address: str) -> Page:
        driver.get("about:blank")
        pages.append(Page(driver, f"{address}/"))
        pages[-1].read_logs()
        pages[-1].errors.clear()
        pages[-1].hosts.clear()
        return pages[-1]

    yield page_of
    for page in pages:
        page.read_logs()
        assert page.hosts <= {urlsplit(page.address).netloc}


@pytest.fixture
def page(page_of: Callable[[str], Page], server: Any) -> Iterator[Page]:
    """The page of the server of ``small``. After the test, the browser must have logged no error."""
    page = page_of(server.url)
    yield page
    page.read_logs()
    assert page.errors == []


@pytest.fixture(scope="session")
def phantom() -> bytes:
    """A slice that ``small`` calls a tumor."""
    return (EXAMPLES / "phantom-2.jpg").read_bytes()


@pytest.fixture(scope="session")
def healthy() -> bytes:
    """A slice that ``small`` calls healthy."""
    return (EXAMPLES / "mni152-slice-1.jpg").read_bytes()
