"""The dialogs of the web page and the page that asks for judgments, in a real browser."""

import httpx2 as httpx
import pytest
from browsing import NEEDS_BROWSER, PHONE, SMALL, expect
from conftest import indexed, script, serving
from served import TOKEN

pytestmark = NEEDS_BROWSER

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
        for _ in range(5):  # of so few images, the same may be drawn again
            page.locator("#skip").click()
            expect(page.locator("#first")).to_be_enabled()
            after = page.locator("#query").get_attribute("src"), page.locator("#first img").get_attribute("src")
            if before != after:
                break
        assert before != after
        assert page.evaluate(SMALL) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert len((place / "judgments.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("options", [{}, {"viewport": PHONE, "has_touch": True, "color_scheme": "dark"}])
def test_the_page_of_groups(opened, workplace, tmp_path, monkeypatch, options):
    place = indexed(tmp_path, workplace)
    assert script(place, "index.py", "cluster", "--index", "my-index", "--groups", 3).returncode == 0
    monkeypatch.setenv("DR_KERAS_TOKEN", TOKEN)
    with serving(place, "--index", "my-index", "--writable", "--uploads", "uploads") as (_, address):
        groups = httpx.get(f"{address}/v1/groups").json()
        page = opened("/groups", at=address, **options)
        expect(page.locator("#status")).to_have_text("3 groups; choose one to look at it")
        page.screenshot(path=tmp_path / "groups.png")
        page.locator(".card a").first.click()
        expect(page.locator("#title")).to_have_text("1")
        opened.expects = "401"
        page.fill("#token", "not the token at all")
        page.click("#login button")
        page.wait_for_load_state("networkidle")
        page.fill("#name", "beach")
        page.click("#rename button")
        expect(page.locator("#problem")).to_contain_text("a token is needed")
        page.fill("#token", TOKEN)
        page.click("#login button")
        expect(page.locator("#login")).to_be_hidden()
        page.wait_for_load_state("networkidle")
        page.fill("#name", "beach")
        page.click("#rename button")
        expect(page.locator("#title")).to_have_text("beach")
        page.locator(".card button").nth(1).click()
        expect(page.locator("#status")).to_contain_text("1 marked")
        page.screenshot(path=tmp_path / "group.png")
        assert not options or page.evaluate(SMALL) == []
        page.fill("#target", "2")
        page.click("#move [type=submit]")
        expect(page.locator("#status")).to_contain_text(f"{groups[0]['count'] - 1} image")
        counts = {group["name"]: group["count"] for group in httpx.get(f"{address}/v1/groups").json()}
        assert counts["beach"] == groups[0]["count"] - 1
        assert counts["2"] == groups[1]["count"] + 1
        page.click("#out")
        expect(page.locator("#problem")).to_have_text("Mark the images first.")
        page.wait_for_load_state("networkidle")  # before the server stops
