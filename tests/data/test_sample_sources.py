"""Image folders: the images found, their order and captions; and clear errors."""

import cv2
import numpy as np
import pytest
from PIL import Image

from xpsr_jax.data.captions import Caption, write_captions
from xpsr_jax.data.image_folder import ImageFolder
from xpsr_jax.data.sample_sources import Cached, Skipping
from xpsr_jax.errors import UserError
from xpsr_jax.images.reading import read_image

NAMES = ["a/img2.png", "a/img10.png", "b.JPG", "c/d/e.webp"]


def color(i: int) -> tuple[int, int, int]:
    return (20 * i, 100, 200 - 20 * i)


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(NAMES):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + i, 6), color(i)).save(path)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.png").write_bytes(b"")
    return tmp_path


def test_finds_images_at_any_depth_in_natural_order(folder):
    source = ImageFolder(folder)
    assert list(source.names) == NAMES and len(source) == 4
    sample = source[1]
    assert sample.image.shape == (6, 9, 3) and sample.image.dtype == np.uint8
    assert sample.image[0, 0].tolist() == list(color(1))
    assert sample.path == "a/img10.png"
    assert sample.caption == Caption("", "") and sample.lr_caption is None
    assert source[-1].path.endswith("e.webp")
    with pytest.raises(IndexError):
        source[4]


@pytest.mark.parametrize("pattern", ["img2.png", "a/img2.png"])
def test_exclude_by_name(folder, pattern):
    assert ImageFolder(folder, exclude=[pattern]).names == tuple(NAMES[1:])


def test_exclude_folders_and_nothing(folder):
    assert ImageFolder(folder, exclude=["a/", "c/d"]).names == ("b.JPG",)
    with pytest.raises(UserError, match=r"exclusion 'img3\.png' matches no image"):
        ImageFolder(folder, exclude=["img3.png"])
    assert (
        ImageFolder(folder, exclude=["img3.png", "a"], missing_exclusions="ignore").names
        == ImageFolder(folder, exclude=["a"]).names
    )
    with pytest.raises(UserError, match="No image is left"):
        ImageFolder(folder, exclude=["a", "b.JPG", "c"])


def test_captions(folder):
    captions = {name: Caption(f"high {name}", f"low {name}") for name in NAMES}
    write_captions(folder / "captions.jsonl", captions)
    for given in (captions, folder / "captions.jsonl"):
        source = ImageFolder(folder, captions=given, lr_captions={"b.JPG": Caption("lr", "bad")})
        assert [sample.caption for sample in source] == list(captions.values())
        assert [sample.lr_caption for sample in source] == [None, None, Caption("lr", "bad"), None]


def test_captions_of_degraded_images_without_a_match(folder):
    with pytest.raises(UserError, match=r"of degraded images match none of the images in .*like 'a/img2\.png'"):
        ImageFolder(folder, lr_captions={"d.png": Caption("lr", "bad")})


def test_missing_captions(folder):
    captions = {"b.JPG": Caption("b", "b")}
    with pytest.raises(UserError, match=r"No caption for 'a/img2\.png' \(and 2 more\)"):
        ImageFolder(folder, captions=captions)
    assert ImageFolder(folder, captions=captions, missing="empty")[0].caption == Caption()
    ImageFolder(folder, captions=captions, exclude=["a", "c"])  # excluded images need no captions


def test_cache_reads_each_image_once(folder):
    source = Cached(ImageFolder(folder))
    image = source[0].image
    (folder / NAMES[0]).unlink()
    assert source[0].image is image
    with pytest.raises(ValueError, match="read-only"):
        image[:] = 0


def test_no_folder_and_no_images(tmp_path):
    with pytest.raises(UserError, match="no such image folder"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no image in"):
        ImageFolder(tmp_path)


def test_broken_images_are_named(folder):
    (folder / "b.JPG").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"b\.JPG: (damaged|not an image)"):
        ImageFolder(folder)[2]
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "b.JPG")
    whole = (folder / "b.JPG").read_bytes()
    (folder / "b.JPG").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"b\.JPG: (damaged|not an image)"):
        ImageFolder(folder)[2]
    with pytest.raises(UserError, match=r"gone\.png cannot be read"):
        read_image(folder / "gone.png")


def test_modes_and_orientation(tmp_path):
    path = tmp_path / "x.png"
    cv2.imwrite(str(path), np.full((4, 5), 0x8040, np.uint16))
    assert (read_image(path) == 0x80).all() and read_image(path).shape == (4, 5, 3)
    Image.new("L", (5, 4), 7).save(path)
    assert (read_image(path) == 7).all()
    Image.new("RGBA", (5, 4), (1, 2, 3, 0)).save(path)
    assert read_image(path)[0, 0].tolist() == [1, 2, 3]
    picture = Image.new("RGB", (5, 4))
    exif = picture.getexif()
    exif[0x0112] = 6  # rotated by 90 degrees
    picture.save(tmp_path / "y.jpg", exif=exif)
    assert read_image(tmp_path / "y.jpg").shape == (5, 4, 3)


def test_the_next_image_replaces_one_that_cannot_be_read(folder, capsys):
    (folder / "a/img10.png").write_bytes(b"")
    (folder / "c/d/e.webp").write_bytes(b"")
    source = Skipping(ImageFolder(folder))
    paths = [sample.path for sample in (*(source[i] for i in range(4)), *(source[i] for i in range(4)), source[-1])]
    assert paths == [*(["a/img2.png", "b.JPG", "b.JPG", "a/img2.png"] * 2), "a/img2.png"]
    *_, first, second = capsys.readouterr().err.splitlines()
    assert "img10.png: not an image" in first and "(1 so far)" in first
    assert "e.webp: not an image" in second and "(2 so far)" in second
    for name in NAMES:
        (folder / name).write_bytes(b"")
    with pytest.raises(UserError, match="no image can be read"):
        Skipping(ImageFolder(folder))[0]


def test_names_with_accents_match_in_any_unicode_form(tmp_path):
    decomposed = "cafe\u0301.png"
    Image.new("RGB", (4, 4)).save(tmp_path / decomposed)
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    write_captions(tmp_path / "captions.jsonl", {"caf\u00e9.png": Caption("a cup", ""), "b.png": Caption("b", "")})
    source = ImageFolder(tmp_path, captions=tmp_path / "captions.jsonl")
    assert [(each.path, each.caption.high) for each in source] == [("b.png", "b"), (decomposed, "a cup")]
    assert ImageFolder(tmp_path, exclude=["caf\u00e9.png"]).names == ("b.png",)
