import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xpsr_jax.errors import UserError
from xpsr_jax.images.formats import endings
from xpsr_jax.images.listing import list_images, list_inputs, natural_order
from xpsr_jax.images.reading import read_image
from xpsr_jax.images.writing import write_png

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def test_inputs_are_listed_in_natural_order(tmp_path):
    for name in ("img10.png", "img2.JPG", "sub/img1.png", "notes.txt", ".hidden.png", ".cache/a.png", "out/img2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(RGB).save(tmp_path / name, format="PNG")
    names = [str(each.name) for each in list_inputs([tmp_path], exclude=tmp_path / "out")]
    assert names == ["img2.JPG", "img10.png", "sub/img1.png"]
    both = list_inputs([tmp_path / "img10.png", tmp_path], exclude=tmp_path / "out")  # a file named twice is one input
    assert [str(each.name) for each in both] == ["img10.png", "img2.JPG", "sub/img1.png"]


def test_a_link_is_a_separate_input(tmp_path):
    write_png(tmp_path / "a.png", RGB)
    (tmp_path / "b.png").symlink_to("a.png")
    assert [each.name.name for each in list_inputs([tmp_path])] == ["a.png", "b.png"]
    again = [tmp_path / "a.png", tmp_path / "." / "a.png", tmp_path / ".." / tmp_path.name / "a.png"]
    assert len(list_inputs(again)) == 1


@pytest.mark.parametrize(("name", "reason"), [("nothing", "no image in this folder"), ("nowhere", "no such file")])
def test_inputs_without_an_image_are_refused(tmp_path, name, reason):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match=reason):
        list_inputs([tmp_path / name])
    with pytest.raises(UserError, match="no input"):
        list_inputs([])


def test_patterns(tmp_path):
    for name in ("a/img10.png", "a/img2.png", "b/c/img1.png", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RGB).save(tmp_path / name, format="PNG")
    found = list_inputs([tmp_path / "**" / "*.png"])
    assert [each.path.relative_to(tmp_path).as_posix() for each in found] == [
        "a/img2.png",
        "a/img10.png",
        "b/c/img1.png",
    ]
    assert [str(each.name) for each in found] == ["a/img2.png", "a/img10.png", "b/c/img1.png"]
    assert [str(each.name) for each in list_inputs([tmp_path / "b*"])] == ["b/c/img1.png"]  # a folder
    assert [str(each.name) for each in list_inputs([tmp_path / "a" / "img?.png"])] == ["img2.png"]


def test_patterns_follow_links_but_not_loops(tmp_path):
    write_png(tmp_path / "photos" / "a.png", RGB)
    (tmp_path / "photos" / "round").symlink_to("../photos")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "linked").symlink_to("../photos")
    for pattern in ("photos/**/*.png", "photos/*"):
        assert [str(each.name) for each in list_inputs([tmp_path / pattern])] == ["a.png"]
    assert [str(each.name) for each in list_inputs([tmp_path / "elsewhere" / "*" / "a.png"])] == ["linked/a.png"]


def test_patterns_ignore_the_output_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/1.png", "2.png", "out/a/1.png", "out/2.png", "outside/3.png"):
        write_png(tmp_path / name, RGB)
    for pattern in ("**/*.png", tmp_path / "**" / "*.png", "*"):
        names = [str(each.name) for each in list_inputs([Path(pattern)], exclude=tmp_path / "out")]
        assert sorted(names) == ["2.png", "a/1.png", "outside/3.png"]
    with pytest.raises(UserError, match="no such file"):
        list_inputs([Path("out*/a/*.png")], exclude=tmp_path / "out")
    # An output folder that contains the inputs is allowed.
    assert [str(each.name) for each in list_inputs([Path("a/*.png")], exclude=tmp_path)] == ["1.png"]


@pytest.mark.parametrize("path", ["photos", "photos/*", "photos/**", "photos/*.j*"])
def test_the_output_must_not_be_found_by_the_next_run(tmp_path, path):
    """Otherwise the results of the first run would be inputs of the second."""
    write_png(tmp_path / "photos" / "a.jpg", RGB)
    with pytest.raises(UserError, match=r"photos.*: its results would be among the inputs.*such as .*photos/restored"):
        list_inputs([tmp_path / path], exclude=tmp_path / "photos")
    # These would not find a.png in the next run.
    for fine in ("photos/*.jpg", "photos/a.jpg"):
        assert len(list_inputs([tmp_path / fine], exclude=tmp_path / "photos")) == 1


def test_natural_order_of_odd_digits():
    """² is a digit, but int() cannot parse it. Bengali digits are decimal."""
    names = ["1²2.png", "1²10.png", "2.png", "৩.png"]
    assert sorted(reversed(names), key=natural_order) == names


def test_ignored_files_are_counted(tmp_path, capsys):
    for name in ("one.jpg", "two.jfif", "three.JPE", "four.jp2", "five.mpo", "sub/six.PNG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    list_inputs([tmp_path])
    assert capsys.readouterr().err == ""
    for name in ("a.dng", "sub/b.DNG", "notes.txt", "README", "captions.jsonl", ".hidden.txt"):
        (tmp_path / name).touch()
    for search in (list_images, lambda folder: list_inputs([folder])):
        assert len(search(tmp_path)) == 6
        assert capsys.readouterr().err == f"{tmp_path}: 4 files ignored: .dng (2), .txt (1), no suffix (1)\n"
    for image in list_images(tmp_path):
        (tmp_path / image).unlink()
    with pytest.raises(UserError, match=r"no image in this folder \(.*, and found \.dng \(2\)"):
        list_inputs([tmp_path])


def test_suffixes_are_those_of_supported_formats():
    from PIL import features

    assert {".png", ".jpg", ".jfif", ".jpe", ".jp2", ".webp", ".tiff", ".gif", ".pgm", ".mpo"} <= set(endings())
    assert (".avif" in endings()) == bool("avif" in features.get_supported())
    assert not {".eps", ".ico", ".icns", ".pdf", ".dng", ".heic"} & set(endings())


def test_links_between_folders_do_not_loop(tmp_path):
    write_png(tmp_path / "a" / "x.png", RGB)
    write_png(tmp_path / "b" / "y.png", RGB)
    (tmp_path / "a" / "to_b").symlink_to("../b")
    (tmp_path / "b" / "to_a").symlink_to("../a")
    (tmp_path / "loop").symlink_to("loop")
    assert list_images(tmp_path) == ["a/to_b/y.png", "a/x.png", "b/to_a/x.png", "b/y.png"]


def test_an_existing_path_is_not_a_pattern(tmp_path):
    folder = tmp_path / "photos [2024]*"
    write_png(folder / "a.png", RGB)
    write_png(folder / "b[1].png", RGB)
    assert [str(each.name) for each in list_inputs([folder])] == ["a.png", "b[1].png"]
    assert [str(each.name) for each in list_inputs([folder / "b[1].png"])] == ["b[1].png"]
    assert [str(each.name) for each in list_inputs([folder / "*.png"])] == ["a.png", "b[1].png"]
    assert [str(each.name) for each in list_inputs([folder / "b[[]*"])] == ["b[1].png"]


def test_names_that_are_not_utf_8(tmp_path, capsys):
    name = os.fsdecode(b"caf\xe9.png")
    write_png(tmp_path / name, RGB)
    (tmp_path / os.fsdecode(b"x.\xff")).touch()
    [found] = list_inputs([tmp_path])
    assert found.path == tmp_path / name
    assert capsys.readouterr().err == f"{tmp_path}: 1 file ignored: .\\xff (1)\n"
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"caf\\xe9\.png: not an image"):
        read_image(found.path)
