"""The web page in a real browser, as a user would use it.

Skipped if Chromium is not installed; .ci/run installs it.
"""

import base64

import pytest
from browsing import (
    COLORS,
    NEEDS_BROWSER,
    PHONE,
    SMALL,
    answered,
    classes,
    click_card,
    expect,
    ids,
    parse_qs,
    state,
    urlsplit,
)
from conftest import draw_encoded, indexed, serving
from served import proxy

pytestmark = NEEDS_BROWSER


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
        page.wait_for_load_state("networkidle")  # before the server stops
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
    content = f"""[Uint8Array.from(atob("{base64.b64encode(data).decode()}"), c => c.charCodeAt(0))]"""
    for event, field, file in (
        ("ClipboardEvent('paste'", "clipboardData", f'new File({content}, "mine.png", {{type: "image/png"}})'),
        ("DragEvent('drop'", "dataTransfer", f'new File({content}, "photo.raw")'),  # a type that no browser knows
    ):
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
