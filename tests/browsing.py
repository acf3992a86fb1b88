"""A real browser on a real server, for the tests of the page: Chromium driven by Playwright."""

import os
import shutil
from urllib.parse import parse_qs, urlsplit

import httpx2 as httpx
import pytest
from conftest import indexed, serving

try:
    from playwright import sync_api
    from playwright.sync_api import expect
except ImportError:
    sync_api = expect = None  # type: ignore[assignment]

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
PHONE = {"width": 390, "height": 844}
# Touch targets lower than 32 CSS pixels or narrower than 24.
SMALL = """[...document.querySelectorAll("button, input:not([type=range]):not(.hidden), summary")].map(one => {
    const box = one.getBoundingClientRect();
    return [one.outerHTML.slice(0, 60), box.width, box.height];
}).filter(([, width, height]) => width && (height < 32 || width < 24))"""

# The colors of text and of its background.
COLORS = """[...document.querySelectorAll(".class, .distance, .about, label, .hint, #status")].map(one => {
    const color = one => getComputedStyle(one).backgroundColor;
    let behind = one;
    while (behind.parentElement && /, 0\\)$|^transparent$/.test(color(behind))) behind = behind.parentElement;
    return [getComputedStyle(one).color, color(behind)];
})"""

NEEDS_BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and sync_api) and "CI" not in os.environ,
        reason="needs the package playwright, and Chromium: apt-get install chromium, or set $CHROMIUM",
    ),
]


@pytest.fixture(scope="module")
def address(workplace, tmp_path_factory):
    """A server with four classes of twelve pictures."""
    place = indexed(tmp_path_factory.mktemp("page"), workplace, each=12)
    with serving(place, "--index", "my-index") as (_, found):
        yield found


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser, address):
    """Opens an address of the page; at the end, no errors and no requests to other hosts are allowed.

    A test of refused requests names their status: `opened.expects = "404"`.
    """
    contexts, wrong, refused, places = [], [], [], []

    def watch(page):
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("response", lambda got: refused.append(f"{got.status} {got.url}") if got.status >= 400 else None)
        page.on("requestfailed", lambda sent: wrong.append(f"{sent.url}: {sent.failure}") if gone(sent) else None)
        page.on("request", lambda sent: wrong.append(sent.url) if elsewhere(sent.url) else None)

    def gone(sent):
        return "ERR_ABORTED" not in (sent.failure or "")  # the page aborts a search for a newer one

    def elsewhere(url):
        return urlsplit(url).scheme not in ("blob", "data") and not url.startswith(tuple(places))

    def go(path="/", *, wait=True, at=address, **options):
        places.append(at)
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 800}} | options))
        page = contexts[-1].new_page()
        watch(page)
        page.goto(at + path)
        if wait:
            page.wait_for_selector("#grid .card:first-child img")
        return page

    go.expects = None
    yield go
    for context in contexts:
        context.close()  # only then is the browser's log complete
    if go.expects:
        assert any(go.expects in said for said in wrong), (wrong, refused)
    assert [said for said in wrong if not (go.expects and go.expects in said)] == [], (wrong, refused)


def ids(page):
    """The displayed images, once the search is done."""
    page.wait_for_selector("body:not(.busy)")
    return page.eval_on_selector_all("#grid .card", "cards => cards.map(card => card.dataset.id)")


def classes(page):
    return {id.split("/")[0] for id in ids(page)}


def state(page):
    return parse_qs(urlsplit(page.url).query)


def answered(address, k=30, **body):
    """What the API returns, which the page must show."""
    said = httpx.post(f"{address}/v1/search", params={"k": k}, json=body)
    return [result["id"] for result in said.json()["results"]]


def click_card(page, place):
    page.locator("#grid .card .find").nth(place).click()
    page.wait_for_selector("body:not(.busy)")
