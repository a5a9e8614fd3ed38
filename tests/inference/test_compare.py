"""The comparison page as a file; tests/app/test_compare_page.py opens it in a browser."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image, ImageCms

from xpsr_jax.errors import UserError
from xpsr_jax.images.picture import Picture
from xpsr_jax.inference.compare import LONGEST, to_webp, write_comparison

RNG = np.random.default_rng(0)
BEFORE = Picture(RNG.integers(0, 256, (4, 6, 3), np.uint8))
AFTER = Picture(RNG.integers(0, 256, (16, 24, 3), np.uint8), alpha=RNG.integers(0, 256, (16, 24), np.uint8))
HOSTILE = '"><img src=http://example.org/a.png onerror=alert(1)>&$after.png'


class Tags(HTMLParser):
    """Every tag of a page with its attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "new" / "page.html"
    write_comparison(file, iter([("cat.png", BEFORE, AFTER), (HOSTILE, BEFORE, BEFORE)]), title="<Cats>")
    assert [path.name for path in file.parent.iterdir()] == ["page.html"]
    return Tags(file.read_text(encoding="utf-8"))


def test_each_picture_is_embedded_unchanged(page):
    pictures = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 4
    for source, picture in zip(pictures, (AFTER, BEFORE, BEFORE, BEFORE), strict=True):
        webp = base64.b64decode(source.removeprefix("data:image/webp;base64,"), validate=True)
        embedded = Image.open(io.BytesIO(webp)).convert("RGBA")
        alpha = np.full(picture.rgb.shape[:2], 255) if picture.alpha is None else picture.alpha
        np.testing.assert_array_equal(np.asarray(embedded)[..., 3], alpha)
        seen = alpha > 0  # WebP does not keep the colour of invisible pixels.
        np.testing.assert_array_equal(np.asarray(embedded)[seen][:, :3], picture.rgb[seen])
    assert "6 × 4 → 24 × 16" in page.text


def test_nothing_is_loaded_and_no_name_becomes_code(page):
    addresses = [attrs[key] for _, attrs in page.tags for key in ("src", "href") if key in attrs]
    assert len(addresses) == 4 and all(address.startswith("data:image/webp") for address in addresses)
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert HOSTILE in page.text and "<Cats>" in page.text and "$" not in page.text.replace(HOSTILE, "")
    assert [tag for tag, _ in page.tags].count("script") == 1
    policy = next(attrs["content"] for _, attrs in page.tags if "http-equiv" in attrs)
    assert re.fullmatch(r"default-src 'none'; img-src data:; .*; script-src 'sha256-[\w+/]{43}='", policy)


def test_large_pictures_are_reduced_and_keep_their_profile():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    rgb = np.full((100, 2 * LONGEST, 3), (200, 100, 50), np.uint8)
    image = Image.open(io.BytesIO(to_webp(Picture(rgb, icc_profile=profile, exif=b"Exif\0\0secret"))))
    assert image.size == (LONGEST, 50) and image.info["icc_profile"] == profile and "exif" not in image.info
    # Lossy compression; measured 2.
    assert np.abs(np.asarray(image.convert("RGB"), np.int32) - (200, 100, 50)).max() <= 4


def test_a_page_that_fails_leaves_nothing(tmp_path):
    def pictures():
        yield "a.png", BEFORE, AFTER
        raise UserError("b.png: damaged")

    with pytest.raises(UserError, match="damaged"):
        write_comparison(tmp_path / "page.html", pictures())
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot write into this folder"):
        write_comparison(tmp_path / "file" / "page.html", [])
