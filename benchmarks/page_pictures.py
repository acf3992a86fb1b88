#!/usr/bin/env python3
"""Takes the README's screenshots of the web page and of TensorBoard, in headless Chromium.

make demo && pip install -e .[dev,map]
python index.py map --run demo
python benchmarks/page_pictures.py --run demo --query digit_0449.png --save docs/images --board tiny-imagenet-gpu
"""

import argparse
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, ViewportSize, sync_playwright

ROOT = Path(__file__).parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DESK, PHONE = ViewportSize(width=1200, height=760), ViewportSize(width=390, height=760)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--query", required=True, help="the name of an image")
    parser.add_argument("--board", metavar="RUN", help="the run that TensorBoard shows (default: that of --run)")
    parser.add_argument("--only-board", action="store_true", help="leave the pictures of the page as they are")
    parser.add_argument("--save", type=Path, required=True, help="folder for the screenshots")
    options = parser.parse_args()
    serve = [str(ROOT / "serve.py"), "--run", options.run]
    board = ["-m", "tensorboard.main", "--logdir", f"runs/{options.board or options.run}", "--load_fast=false"]
    with sync_playwright() as playwright:
        program = next(filter(None, map(shutil.which, BROWSERS)))
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        if not options.only_board:
            with server(serve, "readyz") as address:
                shoot(browser, address, options.query, options.save)
        with server(board, "data/logdir") as address:
            shoot_tensorboard(browser, address, options.save)
        browser.close()


@contextmanager
def server(command: list[str], ready: str) -> Iterator[str]:
    """Runs a Python command with `--port`, and yields its address once the path `ready` answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, *command, "--port", str(port)])
    try:
        address = f"http://127.0.0.1:{port}"
        wait(f"{address}/{ready}")
        yield address
    finally:
        process.terminate()
        process.wait()


def wait(address: str) -> None:
    for _ in range(300):
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{address} does not answer")


def shoot(browser: Browser, address: str, query: str, folder: Path) -> None:
    """Captures a refined search, the map in dark mode, and the page on a phone."""
    page = browser.new_page(viewport=DESK, device_scale_factor=1)
    page.goto(f"{address}/?q={query}")
    page.wait_for_selector("#grid .card")
    page.locator("#grid .card").nth(2).locator(".more").click()
    page.locator("#grid .card.other").first.locator(".less").click()
    page.wait_for_timeout(800)
    page.screenshot(path=folder / "page.png")

    page = browser.new_page(viewport=DESK, color_scheme="dark")
    page.goto(f"{address}/?q={query}&view=map")
    page.wait_for_selector("#map-status:has-text('images')")
    page.wait_for_timeout(1500)
    page.screenshot(path=folder / "page-map.png")

    page = browser.new_page(viewport=PHONE, device_scale_factor=1, is_mobile=True, has_touch=True)
    page.goto(f"{address}/?q={query}")
    page.wait_for_selector("#grid .card")
    page.wait_for_timeout(800)
    page.screenshot(path=folder / "page-phone.png")


def shoot_tensorboard(browser: Browser, address: str, folder: Path) -> None:
    """Captures the curves of both stages, without pictures: they may belong to others."""
    tags = "training/(accuracy|learning_rate|loss|triplet_loss)"
    page = browser.new_page(viewport=ViewportSize(width=1200, height=960))
    page.goto(f"{address}/?{urllib.parse.urlencode({'darkMode': 'false', 'tagFilter': tags})}#timeseries")
    page.wait_for_selector("card-view canvas, card-view svg")
    page.locator("button:has-text('Settings')").first.click()  # closes the panel
    page.wait_for_timeout(3000)
    page.screenshot(path=folder / "tensorboard.png")


if __name__ == "__main__":
    main()
