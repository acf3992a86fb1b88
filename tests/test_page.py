"""The web page in a real browser, as a user would use it: Chromium driven by Playwright.

Skipped if Chromium is not installed; .ci/run installs it.
"""

import base64
import os
import shutil
from urllib.parse import parse_qs, urlsplit

import httpx2 as httpx
import pytest
from conftest import draw_encoded, indexed, serving
from served import proxy

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
expect = sync_api.expect

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

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not CHROMIUM and "CI" not in os.environ, reason="needs Chromium: apt-get install chromium, or set $CHROMIUM"
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


def test_the_first_look_shows_the_gallery(opened):
    page = opened()
    assert len(ids(page)) == 48
    expect(page.locator("#about")).to_have_text("48 images of 4 classes, searched with small")
    alts = page.eval_on_selector_all("#grid img", "images => images.map(image => image.alt)")
    assert "disc, disc_3.png" in alts
    loaded = "[...document.querySelectorAll('#grid img')].slice(0, 8).every(one => one.naturalWidth > 0)"
    assert any(page.evaluate(loaded) or page.wait_for_timeout(100) for _ in range(50))


@pytest.mark.parametrize("strips", [True, False])
def test_below_a_path(opened, strips, workplace, tmp_path):
    """Behind a reverse proxy that strips the path or leaves that to the server."""
    place = indexed(tmp_path, workplace)
    arguments = ("--index", "my-index", *(() if strips else ("--root-path", "/photos")))
    with serving(place, *arguments) as (_, server), proxy(server, "/photos", strips) as outside:
        below = f"{outside}/photos/"
        page = opened("/" if strips else "/?k=20", at=below.rstrip("/"))
        assert len(ids(page)) == 16
        loaded = "[...document.querySelectorAll('#grid img')].slice(0, 8).every(one => one.naturalWidth > 0)"
        assert any(page.evaluate(loaded) or page.wait_for_timeout(100) for _ in range(50))
        wanted = ids(page)[3]
        click_card(page, 3)
        assert page.url.startswith(f"{below}?")
        assert state(page)["q"] == [wanted]
        assert wanted not in ids(page)
        page.set_input_files("#file", {"name": "m.png", "mimeType": "image/png", "buffer": draw_encoded(3)})
        page.wait_for_url(f"{below}?upload=*")
        assert len(ids(page)) > 0
        page.go_back()
        assert wanted not in ids(page)
        page.reload()
        assert wanted not in ids(page)
        page.click("[data-view=map]")
        expect(page.locator("#map-status")).to_contain_text("16 images")
        page.locator("#points").focus()
        page.screenshot(path=tmp_path / "map.png")
        page.click("[data-view=grid]")
        page.screenshot(path=tmp_path / "grid.png")
        page.click("#clear")
        page.wait_for_url(lambda url: "q=" not in url)
        page.click(".brand")
        page.wait_for_url(below)
        assert len(ids(page)) == 16
        if not strips:
            page.goto(below.rstrip("/"))
            page.wait_for_url(below)
        assert (tmp_path / "grid.png").stat().st_size > 10_000


def test_three_searches_by_a_click_and_back(opened, address):
    page, seen = opened(), []
    ids(page)
    for place in (3, 1, 2):
        wanted = ids(page)[place]
        click_card(page, place)
        assert state(page) == {"q": [wanted]}
        assert ids(page) == answered(address, positives=[wanted])
        seen.append(ids(page))
    page.go_back()
    assert ids(page) == seen[1]
    page.go_forward()
    assert ids(page) == seen[2]


def test_an_image_is_uploaded_pasted_and_dropped(opened):
    page = opened()
    data = draw_encoded(seed=3, name="rings")
    page.set_input_files("#file", {"name": "mine.png", "mimeType": "image/png", "buffer": data})
    page.wait_for_url("**/?upload=*")
    found = ids(page)
    assert len(found) == 30
    expect(page.locator("#query-images li")).to_contain_text(["your image"])
    file = f"""new File([Uint8Array.from(atob("{base64.b64encode(data).decode()}"), c => c.charCodeAt(0))],
        "mine.png", {{type: "image/png"}})"""
    for event, field in (("ClipboardEvent('paste'", "clipboardData"), ("DragEvent('drop'", "dataTransfer")):
        page.click("#clear")
        page.wait_for_selector("#query", state="hidden")
        page.evaluate(
            f"""() => {{ const carried = new DataTransfer(); carried.items.add({file});
            dispatchEvent(new {event}, {{{field}: carried, bubbles: true, cancelable: true}})) }}"""
        )
        page.wait_for_selector("#query:not([hidden])")
        assert ids(page) == found
    page.set_input_files("#file", {"name": "words.txt", "mimeType": "text/plain", "buffer": b"no picture"})
    expect(page.locator("#problem")).to_have_text("words.txt is not an image.")


def test_a_file_that_only_says_that_it_is_an_image(opened):
    page = opened()
    page.set_input_files("#file", {"name": "mine.png", "mimeType": "image/png", "buffer": b"no picture at all"})
    expect(page.locator("#problem")).to_contain_text("not an image in a known format")
    opened.expects = "status of 415"  # the browser itself logs refused requests


def test_more_like_this_and_less_like_that(opened, address):
    page = opened("/?q=disc/disc_0.png")
    first = ids(page)
    page.locator("#grid .card").nth(1).locator(".more").click()
    page.locator("#grid .card").nth(4).locator(".less").click()
    expect(page.locator("#marked-count")).to_have_text("1 more like this, 1 less")
    page.click("#marked-search")
    page.wait_for_url("**not=*")
    positives, negatives = ["disc/disc_0.png", first[1]], [first[4]]
    assert state(page) == {"q": positives, "not": negatives}
    assert ids(page) == answered(address, positives=positives, negatives=negatives) != first
    assert not {first[1], first[4]} & set(ids(page))
    page.locator("#query-images li.less button").click()
    page.wait_for_url(lambda url: "not=" not in url)
    assert ids(page) == answered(address, positives=positives)


def test_filters(opened, address):
    page = opened("/?q=disc/disc_0.png")
    ids(page)
    page.fill("#class", "rings")
    page.press("#class", "Enter")
    page.wait_for_url("**class=rings*")
    assert classes(page) == {"rings"}
    page.fill("#where", "label = disc")  # none of the selected class
    page.press("#where", "Enter")
    page.wait_for_url("**where=*")
    assert ids(page) == []
    expect(page.locator("#none")).to_be_visible()
    page.click("#none-filters")
    page.wait_for_url(lambda url: "class=" not in url and "where=" not in url)
    assert len(ids(page)) == 30
    page.eval_on_selector("#k", "one => { one.value = 0; one.dispatchEvent(new Event('change')) }")
    page.wait_for_url("**k=10*")
    assert ids(page) == answered(address, 10, positives=["disc/disc_0.png"])


def test_no_match_and_the_nearest_anyway(opened, address):
    page = opened("/?q=disc/disc_0.png&d=0.0001", wait=False)
    expect(page.locator("#none h2")).to_be_visible()
    expect(page.locator("#none-why")).to_contain_text("The nearest is at")
    page.click("#none-near")
    page.wait_for_selector("#grid .card")
    assert ids(page) == answered(address, positives=["disc/disc_0.png"])


def test_a_shared_address_shows_the_same_elsewhere(opened):
    page = opened("/?q=disc/disc_0.png&not=bars/bars_1.png&class=disc&class=rings&k=20")
    found = ids(page)
    assert len(found) == 20
    assert ids(opened(page.url.removeprefix(page.url.split("/?")[0]))) == found
    page.reload()
    assert ids(page) == found
    lost = opened("/?upload=0123456789abcdef", wait=False)
    expect(lost.locator("#problem")).to_contain_text("Drop it here")


def test_the_keyboard_alone(opened, address):
    page = opened("/?q=disc/disc_0.png")
    first = ids(page)
    page.keyboard.press("/")
    page.keyboard.type("rings_2.png")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=rings%2Frings_2.png*")  # the name was replaced by an id
    assert ids(page) == answered(address, positives=["rings_2.png"]) != first
    page.locator("#grid .card .find").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("+")
    expect(page.locator("#grid .card").nth(1)).to_contain_class("is-more")
    page.keyboard.press("Escape")
    expect(page.locator("#marked")).to_be_hidden()
    wanted = ids(page)[1]
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: parse_qs(urlsplit(url).query)["q"] == [wanted])


def test_a_name_that_matches_nothing(opened):
    page = opened("/?q=disc_o.png", wait=False)
    expect(page.locator("#problem")).to_contain_text("Similar names: disc_")
    expect(page.locator("#query-images li")).to_have_count(1)  # so it can be removed
    opened.expects = "status of 404"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(opened, scheme):
    page = opened("/?q=disc/disc_0.png", color_scheme=scheme)
    page.set_viewport_size(PHONE)
    ids(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    small = page.evaluate(SMALL)
    assert not small
    # Text contrasts with its background by at least 4.5 to 1, as WCAG requires.
    colors = page.evaluate(COLORS)
    assert colors
    assert min(contrast(*pair) for pair in colors) >= 4.5


def contrast(*colors):
    """The WCAG 2 contrast ratio of two colors in the browser's notation."""

    def light(color):
        parts = [float(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted(map(light, colors))
    return (high + 0.05) / (low + 0.05)


def test_the_map(opened):
    page = opened("/?q=disc/disc_0.png")
    page.click("[data-view=map]")
    expect(page.locator("#map-status")).to_contain_text("48 images")
    assert state(page)["view"] == ["map"]
    canvas = page.locator("#points")
    box = canvas.bounding_box()
    tip = page.locator("#tip")
    steps = [(x / 20, y / 20) for x in range(1, 20) for y in range(1, 20)]
    for x, y in sorted(steps, key=lambda one: (one[0] - 0.5) ** 2 + (one[1] - 0.5) ** 2):  # until one hits a point
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        page.wait_for_timeout(90)
        if tip.is_visible():
            break
    expect(tip).to_be_visible()
    page.mouse.down()
    page.mouse.up()
    page.click("#tip-search")
    page.wait_for_url(lambda url: parse_qs(urlsplit(url).query)["q"] != ["disc/disc_0.png"])
    page.click("[data-view=grid]")
    assert len(ids(page)) == 30


ALPHAS = """canvas => [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data]
    .filter((_, place) => place % 4 === 3)"""


def test_why_two_images_are_alike(opened, address):
    page = opened("/?q=disc_0.png")
    card = page.locator("#grid .card").nth(1)
    card.locator(".find").hover()
    shade = card.locator(".find canvas")
    expect(shade).to_have_count(1)
    alphas = shade.evaluate(ALPHAS)
    assert max(alphas) - min(alphas) > 80  # bright where it is alike, dark elsewhere
    page.locator("#about").hover()
    expect(shade).to_have_count(0)

    card.locator(".why-button").click()
    dialog = page.locator("#why")
    text = dialog.locator("[data-part=text]")
    expect(text).to_contain_text("Similarity (cosine) ")
    neighbor = card.get_attribute("data-id")
    found = httpx.get(
        f"{address}/v1/explain", params={"query": "disc_0.png", "neighbor": neighbor, "pairs": True}
    ).json()
    expect(text).to_contain_text(f"{found['cosine']:.3f}")
    figure = dialog.locator("figure").first
    box = figure.bounding_box()
    side = len(found["pairs"])
    page.mouse.click(box["x"] + box["width"] * 0.5 / side, box["y"] + box["height"] * 1.5 / side)
    total = sum(sum(row) for row in found["pairs"][1][0])
    expect(text).to_have_text(f"This part adds {total:.3f} of {found['cosine']:.3f}.")
    dialog.get_by_text("Show all").click()
    expect(text).to_contain_text("Similarity (cosine) ")
    figure.focus()
    page.keyboard.press("ArrowLeft")
    expect(text).to_contain_text("This part adds ")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    # Two images together are not explained.
    assert opened("/?q=disc_0.png&q=disc_1.png").locator(".why-button").count() == 0


@pytest.mark.parametrize("options", [{}, {"viewport": PHONE, "has_touch": True, "color_scheme": "dark"}])
def test_judging(opened, workplace, tmp_path, options):
    place = indexed(tmp_path, workplace)
    with serving(place, "--index", "my-index", "--judge", "judgments.csv") as (_, server):
        page = opened("/judge", wait=False, at=server, **options)
        expect(page.locator("#first")).to_be_enabled()
        page.locator("#second").click()
        expect(page.locator("#count")).to_have_text("1 answer so far")
        expect(page.locator("#first")).to_be_enabled()
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#count")).to_have_text("2 answers so far")
        expect(page.locator("#first")).to_be_enabled()
        before = page.locator("#query").get_attribute("src"), page.locator("#first img").get_attribute("src")
        page.locator("#skip").click()
        expect(page.locator("#first")).to_be_enabled()
        after = page.locator("#query").get_attribute("src"), page.locator("#first img").get_attribute("src")
        assert before != after
        assert page.evaluate(SMALL) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert len((place / "judgments.csv").read_text().splitlines()) == 3
