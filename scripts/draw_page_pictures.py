"""Draw the pictures of docs/page.md: the web page of ``mri-edge serve`` with demo scans, in Chromium.

    mri-edge serve --port 8000
    python scripts/draw_page_pictures.py http://127.0.0.1:8000/ [FOLDER]

Needs selenium (group ``test``), Chromium and chromedriver.
"""

from __future__ import annotations

import base64
import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

ASSETS = Path(__file__).resolve().parents[1] / "docs" / "assets"
PATIENCE_S = 120
STEP = 10  # of the 256 levels of a channel, so that a picture has less than 150 KB
# Name, demo scan, width in pixels, colors.
PICTURES = (
    ("page-slice", "phantom-3.jpg", 960, "light"),
    ("page-series", "phantom-series.nii.gz", 840, "dark"),
    ("page-phone", "phantom-3.jpg", 390, "dark"),
)


def draw(driver: webdriver.Chrome, address: str, demo: str, width: int, colors: str) -> Image.Image:
    """Return a picture of the whole page with the result for a demo scan and its heatmap."""
    metrics = {"width": width, "height": 600, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": colors}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    driver.get(address)
    waiting = WebDriverWait(driver, PATIENCE_S)
    find = "return document.querySelector(arguments[0])"
    button = waiting.until(lambda _: driver.execute_script(find, f"[data-name='{demo}']"))
    driver.execute_script("arguments[0].click()", button)
    is_drawn = "return document.querySelector('.scale') && !document.querySelector('.busy')"
    waiting.until(lambda _: driver.execute_script(is_drawn))
    driver.execute_script("document.activeElement.blur()")
    height = driver.execute_script("return document.documentElement.scrollHeight")
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    answer = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    return Image.open(io.BytesIO(base64.b64decode(answer["data"]))).convert("RGB")


def main(address: str, folder: Path = ASSETS) -> None:
    """Write the pictures into ``folder``."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars"):
        options.add_argument(argument)
    with webdriver.Chrome(options, Service(shutil.which("chromedriver"))) as driver:
        for name, demo, width, colors in PICTURES:
            path = folder / f"{name}.png"
            picture = draw(driver, address, demo, width, colors)
            picture.point(lambda level: min(255, round(level / STEP) * STEP)).save(path, optimize=True)
            print(path, picture.size)


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:3]))
