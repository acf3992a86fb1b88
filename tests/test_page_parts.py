"""A part of the query, and variety among the results, in the web page in a real browser."""

import io

import httpx2 as httpx
import pytest
from browsing import NEEDS_BROWSER, PHONE, SMALL, expect, ids, state
from conftest import draw_encoded
from PIL import Image

pytestmark = NEEDS_BROWSER


def collage():
    """Two pictures side by side, as an upload."""
    both = Image.new("RGB", (64, 32))
    for number, left in ((3, 0), (4, 32)):
        both.paste(Image.open(io.BytesIO(draw_encoded(number, "rings"))), (left, 0))
    stream = io.BytesIO()
    both.save(stream, "PNG")
    return {"name": "both.png", "mimeType": "image/png", "buffer": stream.getvalue()}


def draw_part(page, start, end):
    """Draws a rectangle over the picture in the dialog, from and to shares of its sides."""
    box = page.locator("#crop img").bounding_box()
    place = [(box["x"] + right * box["width"], box["y"] + down * box["height"]) for right, down in (start, end)]
    page.mouse.move(*place[0])
    page.mouse.down()
    page.mouse.move(*place[1], steps=5)
    page.mouse.up()


@pytest.mark.parametrize("options", [{}, {"viewport": PHONE, "has_touch": True, "color_scheme": "dark"}])
def test_a_part_of_an_upload(opened, address, options, tmp_path):
    page = opened(**options)
    picture = collage()
    page.set_input_files("#file", picture)
    page.wait_for_url("**/?upload=*")
    whole = ids(page)
    page.click("#part")
    expect(page.locator("#crop")).to_be_visible()
    draw_part(page, (0.98, 0.98), (0.5, 0.0))
    expect(page.locator("#crop [data-part=text]")).to_contain_text("48% of the width and 98% of the height")
    assert not options or page.evaluate(SMALL) == []
    page.screenshot(path=tmp_path / "dialog.png")
    page.click("#crop [data-part=search]")
    page.wait_for_url("**crop=*")
    found = ids(page)
    crop = state(page)["crop"][0]
    left, top, width, height = map(float, crop.split(","))
    assert (left, top) == (pytest.approx(0.5, abs=0.02), 0)
    assert (left + width, top + height) == (pytest.approx(0.98, abs=0.02), pytest.approx(0.98, abs=0.02))
    sent = {"image": ("both.png", picture["buffer"], "image/png")}
    expected = httpx.post(f"{address}/v1/search", params={"crop": crop, "k": 30}, files=sent).json()["results"]
    assert found == [result["id"] for result in expected]
    assert found != whole
    expect(page.locator("#query-images .frame")).to_be_visible()
    expect(page.locator("#query-images .kind")).to_have_text("like a part of")
    page.click("#part")  # the same part is still framed
    style = page.locator("#crop .frame").get_attribute("style")
    assert f"left: {100 * left:g}%" in style
    page.click("#crop [data-part=whole]")
    page.wait_for_url(lambda url: "crop=" not in url)
    assert ids(page) == whole
    page.go_back()
    assert ids(page) == found


def test_a_part_by_keyboard(opened, address):
    page = opened()
    name = ids(page)[0]
    page.goto(f"{address}/?q={name}")
    ids(page)
    page.locator("#part").focus()
    page.keyboard.press("Enter")
    for key in ("ArrowLeft", "ArrowUp", "Shift+ArrowRight", "Shift+ArrowDown"):
        page.keyboard.press(key)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**crop=*")
    assert state(page)["crop"] == ["0.23,0.23,0.52,0.52"]
    assert ids(page)
    page.locator("#grid .card .find").first.click()  # another picture has another part
    page.wait_for_url(lambda url: "crop=" not in url)
    page.click("#part")
    page.keyboard.press("Escape")
    expect(page.locator("#crop")).to_be_hidden()


def test_a_part_is_of_a_single_picture(opened, address):
    page = opened()
    first, second = ids(page)[:2]
    page.goto(f"{address}/?q={first}&q={second}")
    ids(page)
    expect(page.locator("#part")).to_be_hidden()
    opened.expects = "422"
    page.goto(f"{address}/?q={first}&crop=0.5,0.5,0.9,0.9")
    expect(page.locator("#problem")).to_contain_text("is not inside the picture")


def test_variety_and_copies(opened, address):
    page = opened()
    name = ids(page)[0]
    page.goto(f"{address}/?q={name}")
    plain = ids(page)
    page.check("#distinct")
    page.wait_for_url("**distinct*")
    assert set(ids(page)) <= set(plain)
    expect(page.locator("#filters-count")).to_contain_text("1 set")
    page.locator("#variety").focus()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    page.wait_for_url("**variety=0.6*")
    expect(page.locator("#variety-value")).to_have_text("60%")
    said = httpx.post(
        f"{address}/v1/search", params={"k": 30}, json={"positives": [name], "distinct": True, "diverse": 0.4}
    )
    assert ids(page) == [result["id"] for result in said.json()["results"]]
