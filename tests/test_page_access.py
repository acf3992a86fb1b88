"""The page for everyone: what axe-core finds, its weight, the map by touch and keyboard, parts, filters of photos."""

import io
from urllib.parse import parse_qs, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import NEEDS_BROWSER, PHONE, SMALL, expect, ids, state
from conftest import draw_encoded, indexed, script, serving
from PIL import Image

pytestmark = NEEDS_BROWSER

PHONE_OPTIONS = {"viewport": PHONE, "has_touch": True, "is_mobile": True, "color_scheme": "dark"}
MAX_BYTES = 150_000  # of the page without pictures


@pytest.fixture(scope="module")
def album(workplace, tmp_path_factory):
    """A server with 16 photos of two cameras, taken in four months at four places, with their parts."""
    place = indexed(tmp_path_factory.mktemp("album"), workplace)
    (place / "photos").mkdir()
    for number in range(16):
        picture = Image.new("RGB", (240, 160), (90, 110, 130))
        picture.paste(
            Image.open(io.BytesIO(draw_encoded(number, ("disc", "bars")[number % 2]))).resize((60, 60)), (170, 10)
        )
        exif = Image.Exif()
        exif[0x110] = ("Pixel 8", "EOS R5")[number % 2]
        exif.get_ifd(0x8769)[0x9003] = f"2024:0{1 + number % 4}:15 10:00:00"
        place_of = exif.get_ifd(0x8825)
        place_of[1], place_of[2], place_of[3], place_of[4] = "N", (48.0 + number % 4, 0.0, 0.0), "E", (11.0, 0.0, 0.0)
        picture.save(place / "photos" / f"photo_{number:02}.jpg", exif=exif)
    result = script(place, "index.py", "add", "photos", "--run", "small", "--index", "album", "--parts", "4")
    assert result.returncode == 0, result.stderr
    with serving(place, "--index", "album") as (_, found):
        yield found


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"color_scheme": "dark"}, marks=pytest.mark.nightly), PHONE_OPTIONS]
)
def test_axe_finds_nothing(opened, address, album, options):
    views = ["/", "/?q=disc/disc_0.png", "/?q=disc/disc_0.png&view=map", "/?q=disc/disc_0.png&d=0.0001"]
    found = []
    for at, path, press in [
        *((address, path, ()) for path in views),
        (address, "/?q=disc/disc_0.png", ("#part",)),
        (address, "/?q=disc/disc_0.png", ("#grid .card:nth-child(2) .why-button",)),
        (address, "/groups", ()),
        (album, "/?q=photo_00.jpg&crop=0.5,0,0.5,0.5", ("#grid .card:nth-child(2) .more",)),
    ]:
        page = opened(path, at=at, wait=False, bypass_csp=True, **options)
        page.wait_for_load_state("networkidle")
        for selector in press:
            page.locator(selector).first.click()
        page.wait_for_timeout(300)
        violations = Axe().run(page).response["violations"]
        found += [(path, one["id"], one["nodes"][0]["html"]) for one in violations]
    assert found == []


def test_the_page_is_light(opened):
    page = opened()
    sizes = "[...performance.getEntriesByType(kind)].map(one => [one.name, one.decodedBodySize])"
    found = [page.evaluate(f"kind => {sizes}", kind) for kind in ("navigation", "resource")]
    weights = {name: size for part in found for name, size in part if "/v1/" not in name}
    assert {name.rpartition("/")[2] for name in weights} >= {"app.js", "style.css"}
    assert 50_000 < sum(weights.values()) < MAX_BYTES


def tip_name(page):
    expect(page.locator("#tip")).to_be_visible()
    return page.locator("#tip-name").inner_text()


def test_the_map_by_keyboard(opened):
    page = opened("/?view=map", wait=False)
    expect(page.locator("#map-status")).to_contain_text("48 images")
    page.wait_for_selector("body:not(.busy)")
    page.focus("#points")
    page.keyboard.press("Enter")
    seen = [tip_name(page)]
    for key in ("ArrowRight", "ArrowUp", "ArrowLeft"):
        page.keyboard.press(f"Shift+{key}")
        page.wait_for_function("name => document.querySelector('#tip-name').textContent !== name", arg=seen[-1])
        seen.append(tip_name(page))
    page.keyboard.press("+")
    assert tip_name(page) == seen[-1]  # it stays chosen
    page.focus("#tip-search")
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "q" in parse_qs(urlsplit(url).query))
    assert state(page)["q"][0].endswith(seen[-1])
    page.focus("#points")
    page.keyboard.press("Enter")
    tip_name(page)
    page.keyboard.press("Escape")
    expect(page.locator("#tip")).to_be_hidden()


def test_the_map_by_touch(opened):
    page = opened("/?view=map", wait=False, **PHONE_OPTIONS)
    expect(page.locator("#map-status")).to_contain_text("48 images")
    page.wait_for_selector("body:not(.busy)")
    box = page.locator("#points").bounding_box()
    center = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    session = page.context.new_cdp_session(page)

    def touch(kind, *points):
        places = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    picture = page.locator("#points").screenshot()
    touch("touchStart", (center[0] - 20, center[1]), (center[0] + 20, center[1]))
    for apart in range(30, 120, 10):
        touch("touchMove", (center[0] - apart, center[1]), (center[0] + apart, center[1]))
    touch("touchEnd")
    assert page.locator("#points").screenshot() != picture  # two fingers zoom
    page.click("[data-zoom=all]")
    for down in range(-120, 121, 24):  # a tap reaches 14 pixels
        for right in range(-120, 121, 24):
            page.touchscreen.tap(center[0] + right, center[1] + down)
            page.wait_for_timeout(150)
            if page.locator("#tip").is_visible():
                break
        if page.locator("#tip").is_visible():
            break
    assert tip_name(page)
    assert page.evaluate(SMALL) == []


def test_a_part_of_a_result_is_framed(opened, album):
    page = opened("/?q=photo_00.jpg&crop=170,10,60,60", at=album)
    first = page.locator("#grid .card:first-child")
    expect(first.locator("svg rect").first).to_be_visible()
    frame, picture = first.locator("svg rect").last.bounding_box(), first.locator("img").bounding_box()
    middle = frame["x"] + frame["width"] / 2 - picture["x"], frame["y"] + frame["height"] / 2 - picture["y"]
    shown = picture["width"] * 160 / 240  # the picture keeps its shape in a square
    above = (picture["height"] - shown) / 2
    assert middle[0] / picture["width"] == pytest.approx(200 / 240, abs=0.13)
    assert (middle[1] - above) / shown == pytest.approx(40 / 160, abs=0.13)
    expect(page.locator("#near-auto")).to_be_hidden()
    page.check("#whole")
    page.wait_for_url("**whole=*")
    ids(page)
    expect(page.locator("#grid svg")).to_have_count(0)
    page.uncheck("#whole")
    page.wait_for_url(lambda url: "whole" not in url)
    ids(page)
    asked = opened("/?q=photo_00.jpg&d=auto&km=-5&at=foo", at=album)  # an old address, of what does not suit parts
    assert len(ids(asked)) == 15


def test_filters_of_photos(opened, album, address):
    page = opened("/?q=photo_00.jpg", at=album)
    assert len(ids(page)) == 15
    page.fill("#from", "2024-02-01")
    page.dispatch_event("#from", "change")
    page.wait_for_url("**from=2024-02-01*")
    assert {int(id[6:8]) % 4 for id in ids(page)} == {1, 2, 3}
    page.fill("#to", "2024-03-15")
    page.dispatch_event("#to", "change")
    page.wait_for_url("**to=2024-03-15*")
    assert {int(id[6:8]) % 4 for id in ids(page)} == {1, 2}
    expect(page.locator("#camera option")).to_have_text(["any camera", "EOS R5 (8)", "Pixel 8 (8)"])
    page.select_option("#camera", "Pixel 8")
    page.wait_for_url("**camera=*")
    assert {int(id[6:8]) % 4 for id in ids(page)} == {2}
    expect(page.locator("#filters-count")).to_contain_text("3 set")
    page.click("#at-query")  # 200 km farther south than those photos
    page.wait_for_url("**at=48*")
    ids(page)
    expect(page.locator("#none")).to_be_visible()
    page.click("#none-filters")
    page.wait_for_url(lambda url: "from" not in url and "at" not in url)
    assert len(ids(page)) == 15
    page.fill("#at", "here")
    page.dispatch_event("#at", "change")
    assert page.evaluate("document.querySelector('#at').validationMessage").startswith("Enter latitude")
    page.fill("#at", "49 11")
    page.dispatch_event("#at", "change")
    page.wait_for_url("**at=49*")
    assert {int(id[6:8]) % 4 for id in ids(page)} == {1}
    plain = opened(at=address)  # the drawn pictures say neither when nor where
    for field in ("#taken-field", "#camera-field", "#place-field", "#whole-field"):
        expect(plain.locator(field)).to_be_hidden()
