"""The page of `sample.py --compare` in a browser: its slider by mouse, finger and keyboard."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.app.test_one import is_as_wide_as_the_window
from xpsr_jax.images.picture import Picture
from xpsr_jax.inference.compare import write_comparison

RED, BLUE = (250, 0, 0), (0, 0, 250)


@pytest.fixture
def file(tmp_path):
    def picture(colour, height, width):
        return Picture(np.full((height, width, 3), colour, np.uint8))

    pictures = [
        ("wide.png", picture(RED, 30, 60), picture(BLUE, 300, 600)),
        ("tall & <b>thin</b>.png", picture(RED, 150, 5), picture(BLUE, 1500, 50)),
        ("huge_" + "x" * 200 + ".png", picture(RED, 90, 160), picture(BLUE, 1800, 3200)),
    ]
    write_comparison(tmp_path / "page.html", pictures)
    return tmp_path / "page.html"


def share_of_before(pair) -> float:
    """The red share of a pair's width, at a quarter of its height, where the handle is not."""
    image = np.asarray(Image.open(io.BytesIO(pair.screenshot())).convert("RGB"), np.int32)
    row = image[len(image) // 4]
    red, blue = row[:, 0] > row[:, 2] + 100, row[:, 2] > row[:, 0] + 100
    assert red[: red.sum()].all() and (red | blue).mean() > 0.9
    return red.mean()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_slider(open_page, file, width):
    page = open_page(file.as_uri(), width=width)
    assert is_as_wide_as_the_window(page)
    assert "tall & <b>thin</b>.png" in page.inner_text("body")
    pairs = page.locator(".pair")
    assert pairs.count() == 3
    pair = pairs.first
    box = pair.bounding_box()
    assert box["width"] == pytest.approx(min(600, width - 32), abs=1) and box["height"] == pytest.approx(
        box["width"] / 2, abs=1
    )
    assert share_of_before(pair) == pytest.approx(0.5, abs=0.02)

    y = box["y"] + box["height"] / 4
    if width == 1280:
        page.mouse.move(box["x"] + box["width"] / 2, y)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.7, y, steps=5)
        page.mouse.up()
    else:
        touch = page.context.new_cdp_session(page)
        for kind, at in (("touchStart", 0.5), ("touchMove", 0.6), ("touchMove", 0.7), ("touchEnd", None)):
            points = [] if at is None else [{"x": box["x"] + box["width"] * at, "y": y}]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    # The line has a width, so this is not exact: measured within 0.005 at 600 pixels, 0.01 at 358.
    assert share_of_before(pair) == pytest.approx(0.7, abs=0.02)

    slider = pair.get_by_role("slider", name="Share of wide.png that is from before, in percent")
    slider.focus()
    slider.press("Home")
    assert share_of_before(pair) < 0.02
    for _ in range(3):
        slider.press("ArrowRight")
    assert 0 < float(slider.input_value()) < 10
    slider.press("End")
    assert share_of_before(pair) > 0.98
    # The other sliders do not move.
    assert share_of_before(pairs.nth(2)) == pytest.approx(0.5, abs=0.02)
    tall = pairs.nth(1).bounding_box()
    assert tall["height"] <= 0.88 * 844 + 1
