"""The first tab, used with mouse and keyboard."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.app.conftest import DEMO, sample
from xpsr_jax.caption.measured import describe_quality

HIGH, LOW = "An orange in a bowl.", "The picture is blurry."


def upload(page: Page, path, *, good: bool = True) -> None:
    page.locator("input[type=file]").first.set_input_files(path)
    if good:
        expect(page.locator("img[src*='preview.webp']").first).to_be_visible()


def fill(page: Page, label: str, value: object) -> None:
    name = {"Steps": "number input for Steps", "Strength": "number input for Strength"}.get(label, label)
    page.get_by_label(name).first.fill(str(value))
    page.get_by_label(name).first.press("Tab")


def choose(page: Page, label: str, option: str) -> None:
    page.get_by_label(label).first.click()
    page.get_by_role("option", name=option, exact=True).click()


def button(page: Page, name: str):
    return page.get_by_role("button", name=name, exact=True)


def download_button(page: Page):
    return page.get_by_role("button", name=re.compile(r"^Download .*_restored\."))


def download(page: Page) -> bytes:
    with page.expect_download() as began:
        download_button(page).click()
    return began.value.path().read_bytes()


def restore(page: Page) -> bytes:
    """Restores the photograph of the page, and returns the downloaded file."""
    button(page, "Restore").click()
    expect(button(page, "Cancel")).to_be_enabled()
    expect(button(page, "Restore")).to_be_enabled()
    return download(page)


def is_as_wide_as_the_window(page: Page) -> bool:
    # A phone's browser makes the window wider if an element is too wide.
    width = page.viewport_size["width"]
    return page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [width, width]


def said(page: Page, text: str) -> None:
    expect(page.get_by_test_id("toast-body").filter(has_text=text)).to_be_visible()


def test_a_photograph_is_restored_as_by_sample_py(server, open_page, photo, tmp_path):
    """The files are equal, with transparency, profile and EXIF. Then another seed does not compile anything."""
    page = open_page(server.address)
    upload(page, photo)
    for label, value in {
        "What is in it": HIGH,
        "How it is degraded": LOW,
        "Steps": 5,
        "Strength": 0.8,
        "Seed": 7,
    }.items():
        fill(page, label, value)
    choose(page, "Sampler", "unipc")
    first = restore(page)

    captions = photo.with_name("captions.jsonl")
    captions.write_text(json.dumps({"image": photo.name, "high": HIGH, "low": LOW}))
    settings = ["--sampler", "unipc", "--steps", 5, "--strength", 0.8, "--seed", 7]
    sample(tmp_path / "out", [photo], "--captions", captions, *settings)
    assert first == (tmp_path / "out" / photo.name).read_bytes()
    with Image.open(tmp_path / "out" / photo.name) as image:
        assert image.size == (128, 128) and image.mode == "RGBA" and image.info["icc_profile"]
        assert image.getexif()[0x010F] == "A maker"

    # Left of the slider, the picture before is shown.
    handle, after = page.get_by_test_id("slider"), page.get_by_test_id("imageslider-image").nth(1)
    expect(after).to_have_css("clip-path", re.compile("50%"))
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y, steps=4)
    page.mouse.up()
    moved = re.search(r"([\d.]+)%\)$", after.evaluate("image => getComputedStyle(image).clipPath"))
    assert 52 < float(moved[1]) < 95

    compiled = server.compiled()
    for label, value in {"Steps": 9, "Strength": 0.4, "Seed": 8}.items():
        fill(page, label, value)
    second = restore(page)
    assert second != first and server.compiled() == compiled > 0

    thumbnails = page.get_by_role("button", name=re.compile("Thumbnail"))
    expect(thumbnails).to_have_count(2)
    thumbnails.first.click()
    page.wait_for_timeout(1000)
    assert download(page) == first


def test_an_example_comes_with_its_captions_and_a_preset_with_its_settings(server, open_page):
    page = open_page(server.address)
    page.locator(".gallery-item").first.click()
    caption = json.loads(DEMO.with_name("captions.jsonl").read_text())
    expect(page.get_by_label("What is in it").first).to_have_value(caption["high"])
    expect(page.get_by_label("How it is degraded").first).to_have_value(caption["low"])
    # They are removed together with the photograph.
    button(page, "Remove Image").click()
    expect(page.get_by_label("What is in it").first).to_have_value("")
    page.locator(".gallery-item").first.click()
    expect(page.get_by_label("What is in it").first).to_have_value(caption["high"])
    choose(page, "Preset", "Released")
    expect(page.get_by_label("number input for Steps").first).to_have_value("20")
    # test_many.py compares results. This test checks the message for settings that contradict each other.
    fill(page, "Strength", 0.5)
    button(page, "Restore").click()
    said(
        page, 'strength 0.5 starts from the LR image and needs start "lr" or "lr_without_noise", not "lr_noised_twice"'
    )
    expect(button(page, "Restore")).to_be_enabled()


def test_the_quality_is_measured(server, open_page, photo):
    page = open_page(server.address)
    upload(page, photo)
    button(page, "Measure how it is degraded").click()
    with Image.open(photo) as image:
        expected = describe_quality(np.asarray(image.convert("RGB")))
    expect(page.get_by_label("How it is degraded").first).to_have_value(expected)


def test_unusable_photographs_are_reported(server, open_page, photo, broken, tmp_path):
    page = open_page(server.address)
    button(page, "Restore").click()
    said(page, "Drop a photograph first.")
    expect(button(page, "Restore")).to_be_enabled()

    upload(page, photo)
    button(page, "Remove Image").click()
    upload(page, broken, good=False)
    said(page, "broken.png: damaged, or an unsupported kind of image")
    expect(button(page, "Remove Image")).to_be_hidden()
    assert page.locator("[data-testid=toast-body] b").count() == 0, "a file's name is not HTML"

    Image.new("RGB", (200, 200)).save(tmp_path / "wide.png")
    upload(page, tmp_path / "wide.png")
    button(page, "Restore").click()
    said(page, "wide.png: 200 x 200 pixels would be restored at 800 x 800, which is more than 0.5 million")

    button(page, "Remove Image").click()
    Image.effect_noise((600, 600), 100).save(tmp_path / "heavy.png")
    upload(page, tmp_path / "heavy.png", good=False)
    said(page, "heavy.png")  # Gradio's own message: too large
    expect(button(page, "Remove Image")).to_be_hidden()


def test_cancelled_work_stops_soon(server, open_page, photo):
    page = open_page(server.address)
    upload(page, photo)
    fill(page, "Steps", 100)
    fill(page, "Strength", 1)  # the shipped model runs only a tenth of its steps
    button(page, "Restore").click()
    expect(page.get_by_text("Sampling - ")).to_be_visible()
    button(page, "Cancel").click()
    said(page, "Cancelled.")
    expect(button(page, "Restore")).to_be_enabled()
    assert download_button(page).count() == 0
    fill(page, "Steps", 2)
    assert restore(page)[:4] == b"\x89PNG"


def test_a_phone(server, open_page, photo):
    """No element is too wide, and the result is between the button and the settings."""
    page = open_page(server.address, width=390)
    expect(button(page, "Restore")).to_be_visible()
    assert is_as_wide_as_the_window(page)
    upload(page, photo)
    restore(page)
    assert is_as_wide_as_the_window(page)
    slider = page.get_by_test_id("slider").bounding_box()["y"]
    assert button(page, "Restore").bounding_box()["y"] < slider < page.get_by_label("Seed").first.bounding_box()["y"]

    middle = page.get_by_test_id("slider").bounding_box()
    after = page.get_by_test_id("imageslider-image").nth(1)
    touch = page.context.new_cdp_session(page)
    x, y = middle["x"] + middle["width"] / 2, middle["y"] + middle["height"] / 2
    page.wait_for_timeout(200)
    for kind, dx in (("touchStart", 0), ("touchMove", 30), ("touchMove", 60), ("touchEnd", None)):
        points = [] if dx is None else [{"x": x + dx, "y": y}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    expect(after).not_to_have_css("clip-path", re.compile("50%"))

    page.get_by_role("tab", name="Many").click()
    expect(button(page, "Restore all")).to_be_visible()
    assert is_as_wide_as_the_window(page)


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_not_wider_than_the_window(server, open_page, width):
    page = open_page(server.address, width=width)
    expect(button(page, "Restore")).to_be_visible()
    assert is_as_wide_as_the_window(page)
