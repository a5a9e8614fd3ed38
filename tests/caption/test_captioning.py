"""The captions file in all situations, with a captioner that needs no model."""

import json
import os
import time

import numpy as np
import pytest
from PIL import Image as PillowImage

from xpsr_jax.caption.caption_page import write_caption_page
from xpsr_jax.caption.captioning import caption_images, find_images
from xpsr_jax.caption.captions_file import CaptionsFile, merge_captions
from xpsr_jax.caption.in_flight import Stop, in_flight
from xpsr_jax.caption.sentences import count_tokens, first_sentences
from xpsr_jax.cli.caption import main
from xpsr_jax.data.captions import Caption, read_caption_records, read_captions, write_captions
from xpsr_jax.data.offline_pairs import OfflinePairs
from xpsr_jax.errors import UserError

LONG = "A cat sits on a red sofa. " + "It looks at the old clock on the wall, which has stopped at five. " * 8


def paint(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    PillowImage.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path):
    """Four images in `photos`. Two of them have the same content."""
    for name, seed in (("a.png", 1), ("b/c.png", 2), ("b/d.png", 1), ("e.png", 3)):
        paint(tmp_path / "photos" / name, seed)
    return tmp_path / "photos"


def by_number(seen):
    """Returns a captioner whose captions are running numbers. It adds the names of its images to `seen`."""

    def captioner(images):
        for image in images:
            seen.append(image.name)
            yield image, Caption(f"number {len(seen)}", "clear")

    return captioner


def work(folder, seen, captioner=None, **options):
    output = folder.parent / "captions.jsonl"
    inputs = find_images([folder])
    with CaptionsFile(output) as file:
        return caption_images(inputs, captioner or by_number(seen), file, source="test", **options), output


def test_equal_images_are_captioned_once_and_work_is_resumed(folder):
    seen = []
    tally, output = work(folder, seen)
    assert (tally.captioned, tally.duplicates, tally.known) == (3, 1, 0) and len(seen) == 3
    records = read_caption_records(output)
    assert records.keys() == {"a.png", "b/c.png", "b/d.png", "e.png"}
    assert records["a.png"] | {"image": "b/d.png"} == records["b/d.png"]  # the duplicate has the same caption
    assert records["a.png"]["source"] == "test" and len(records["a.png"]["sha256"]) == 64

    tally, _ = work(folder, seen)
    assert (tally.captioned, tally.known, len(seen)) == (0, 4, 3)

    paint(folder / "e.png", 4)  # another picture with the same name
    paint(folder / "f.png", 2)  # a known picture with another name
    tally, _ = work(folder, seen)
    assert (tally.captioned, tally.known, tally.changed, tally.duplicates) == (1, 3, 1, 1)
    assert seen[3:] == ["e.png"] and str(tally) == "1 captioned, 3 known, 1 duplicates, 1 of them changed since"
    assert read_captions(output)["e.png"].high == "number 4"


def test_hand_written_captions_stay(folder):
    write_captions(folder.parent / "captions.jsonl", {"a.png": Caption("by hand", ""), "gone.png": Caption("x", "y")})
    seen = []
    tally, output = work(folder, seen)
    assert (tally.known, tally.captioned) == (1, 3) and "a.png" not in seen
    assert read_captions(output)["a.png"] == Caption("by hand", "") and "gone.png" in read_captions(output)


def test_failures_are_counted_named_and_tried_again(folder):
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:60])

    def moody(images):
        for image in images:
            yield image, UserError("no idea") if image.name in ("a.png", "b/d.png") else Caption("a", "b")

    tally, output = work(folder, [], moody)
    assert tally.captioned == 2 and tally.failed.keys() == {"broken.png", "a.png", "b/d.png"}
    lines = (folder.parent / "captions.failed.txt").read_text().splitlines()
    assert "a.png\tno idea" in lines and len(lines) == 3

    def stopped(images):
        next(images)
        raise Stop("the server is down")
        yield

    (folder.parent / "captions.failed.txt").unlink()
    with pytest.raises(Stop, match="is down"):
        work(folder, [], stopped)
    assert not (folder.parent / "captions.failed.txt").exists()
    with pytest.raises(UserError, match=r"broken\.png: damaged"):
        work(folder, [], on_error="stop")
    assert (folder.parent / "captions.failed.txt").read_text().startswith("broken.png\t")
    (folder / "broken.png").unlink()
    tally, _ = work(folder, [])
    assert not tally.failed and not (folder.parent / "captions.failed.txt").exists()
    assert len(read_captions(output)) == 4


def test_empty_captions_are_filled_from_another_file(folder):
    write_captions(folder / "others.jsonl", {"a.png": Caption("a high one", "not this"), "e.png": Caption("", "")})
    _, output = work(folder, [], lambda images: ((image, Caption("", "low")) for image in images))
    assert set(read_captions(output).values()) == {Caption("", "low")}
    output.unlink()
    work(folder, [], lambda images: ((i, Caption("", "low")) for i in images), rest=folder / "others.jsonl")
    assert read_captions(output)["a.png"] == Caption("a high one", "low")
    # Captions are found by content, even if the image has another name now.
    os.rename(output, folder / "others.jsonl")
    os.rename(folder / "a.png", folder / "z.png")
    work(folder, [], lambda images: ((i, Caption("", "lower")) for i in images), rest=folder / "others.jsonl")
    assert read_captions(output)["z.png"] == Caption("a high one", "lower")


def test_first_sentences_are_kept(folder):
    tally, output = work(folder, [], lambda images: ((image, Caption(LONG, "short")) for image in images))
    record = read_caption_records(output)["a.png"]
    assert (tally.shortened, tally.cut) == (3, 0)
    assert count_tokens(LONG) > 77 >= count_tokens(record["high"]) > 60
    assert record["high_whole"] == LONG and LONG.startswith(record["high"]) and record["high"].endswith("five.")
    assert "low_whole" not in record
    endless = "very " * 100
    assert first_sentences(f"{endless}. End.") == f"{endless}."
    output.unlink()
    tally, _ = work(folder, [], lambda images: ((image, Caption(f"{endless}. End.", endless)) for image in images))
    assert (tally.shortened, tally.cut) == (3, 6)


def test_an_incomplete_line_is_removed(folder):
    _, output = work(folder, [])
    whole = output.read_bytes()
    lines = whole.splitlines(keepends=True)
    for ending in (lines[3][:20], b'{"image": "\xc3', b'{"image": "a {sign}'):
        output.write_bytes(b"".join(lines[:3]) + ending)
        with CaptionsFile(output) as file:
            assert file.repaired and len(file.records) == 3
        assert output.read_bytes() == b"".join(lines[:3])
    output.write_bytes(whole.rstrip())  # only the newline is missing
    with CaptionsFile(output) as file:
        assert not file.repaired and len(file.records) == 4
        with pytest.raises(UserError, match="being written by another process"):
            CaptionsFile(output)
        file.append({"image": "n", "high": "ü", "low": ""})
    assert output.read_bytes() == whole + '{"image": "n", "high": "ü", "low": ""}\n'.encode()


def test_shards_are_merged(folder, tmp_path, capsys):
    output = tmp_path / "out" / "captions.jsonl"
    for i in range(20):
        paint(folder / f"more/{i}.png", 100 + i)
    shards = []
    for i in range(3):
        assert main(["measured", str(folder), "--output", str(output), "--shard", f"{i}/3"]) == 0
        shards.append(output.with_name(f"captions.0000{i}-of-00003.jsonl"))
    parts = [read_captions(shard) for shard in shards]
    assert all(4 <= len(part) <= 12 for part in parts) and sum(map(len, parts)) == 24
    capsys.readouterr()
    assert main(["merge", *map(str, shards), str(shards[0]), "--output", str(output)]) == 0
    assert capsys.readouterr().out.startswith(f"24 captions in {output}; {len(parts[0])} duplicate lines, 0 repl")
    assert read_captions(output) == parts[0] | parts[1] | parts[2]
    # The merged file is complete, so nothing is left to do.
    assert main(["measured", str(folder), "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}: 0 captioned, 24 known\n"
    write_captions(shards[0], {"a.png": Caption("newer", "")})
    assert merge_captions([output, shards[0]], output) == (24, 0, 1)
    assert read_captions(output)["a.png"].high == "newer"
    for wrong in ("3/3", "1", "-1/2", "a/b"):
        assert main(["measured", str(folder), "--output", str(output), f"--shard={wrong}"]) == 1
        assert f"--shard {wrong}: expected i/n" in capsys.readouterr().err


def test_two_images_with_the_same_name_are_refused(folder, tmp_path, capsys):
    paint(tmp_path / "other" / "a.png", 9)
    assert main(["measured", str(folder), str(tmp_path / "other"), "--output", str(tmp_path / "c.jsonl")]) == 1
    assert "would both be 'a.png': caption one folder at a time" in capsys.readouterr().err


def test_the_report(folder, tmp_path):
    (folder / "<b>.png").write_bytes((folder / "a.png").read_bytes())

    def captioner(images):
        return ((image, Caption("" if "c" in image.name else LONG, "a <low> one")) for image in images)

    _, output = work(folder, [], captioner)
    (folder / "e.png").unlink()
    page = tmp_path / "report.html"
    assert write_caption_page(output, folder, page) == f"{page}: 5 of 5 captions"
    html = page.read_text()
    assert html.count("data:image/jpeg;base64,") == 4 and "cannot be read" in html
    assert "<low>" not in html and "a &lt;low&gt; one" in html and "&lt;b&gt;.png" in html
    assert "with the same content as another</td><td>2<" in html
    assert "4 (1 different)" in html and "4 shortened to their first sentences, 0 still too long" in html
    assert '<span class="missing">none</span>' in html and "http" not in html
    write_caption_page(output, folder, page, count=2)
    assert page.read_text().count("<figure>") == 2


def test_the_report_shows_nothing_outside_of_the_folder(folder, tmp_path):
    paint(tmp_path / "secret.png", 0)
    inside = folder / "inside"
    inside.mkdir()
    names = (str(tmp_path / "secret.png"), "../../secret.png", "../a.png")
    assert all((inside / name).exists() for name in names)
    write_captions(tmp_path / "captions.jsonl", {name: Caption("x", "y") for name in names})
    write_caption_page(tmp_path / "captions.jsonl", inside, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert "data:image" not in html and html.count("it is not inside") == 3


def test_in_flight():
    def square(x):
        if x == 3:
            raise UserError("three")
        return x * x

    results = dict(in_flight(square, range(50), 4))
    assert str(results.pop(3)) == "three" and results == {x: x * x for x in range(50) if x != 3}
    with pytest.raises(ZeroDivisionError):
        list(in_flight(lambda x: 1 / x, range(3), 2))
    for error, said in (
        (MemoryError(), "MemoryError"),
        (OverflowError("large"), "OverflowError: large"),
        (RecursionError("deep"), "RecursionError: deep"),
        (UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "odd"), "UnicodeEncodeError: 'utf-8' codec"),
    ):

        def fail(x, error=error):
            if x == 0:
                raise error
            return x

        (_, failed), (_, whole) = in_flight(fail, range(2), 1)
        assert type(failed) is UserError and str(failed).startswith(said) and whole == 1
    slow_first = in_flight(lambda x: time.sleep(0.02 * (5 - x)) or x, range(5), 5, ordered=True)
    assert [item for item, _ in slow_first] == [0, 1, 2, 3, 4]
    taken = []

    def stop(x):
        raise Stop("enough")

    with pytest.raises(Stop):
        list(in_flight(stop, (taken.append(x) or x for x in range(100)), 2))
    assert len(taken) <= 4  # items are taken only when they are needed


def test_each_line_is_written_at_once(folder):
    """Each line is in the file as soon as its caption is made."""

    def captioner(images):
        for number, image in enumerate(images):
            assert (folder.parent / "captions.jsonl").read_text().count("\n") == number
            yield image, Caption(str(number), "")

    (folder / "b/d.png").unlink()
    _, output = work(folder, [], captioner)
    assert [json.loads(line)["high"] for line in output.read_text().splitlines()] == ["0", "1", "2"]


@pytest.mark.parametrize("dataset", ["", "dataset_0/"])
def test_captions_are_written_into_pairs(tmp_path, capsys, dataset):
    for kind in ("HR", "LR"):
        paint(tmp_path / "pairs" / dataset / kind / "a" / "b.png", 0 if kind == "HR" else 1)
    captions = tmp_path / "captions.jsonl"
    assert main(["measured", str(tmp_path / "pairs"), "--output", str(captions), "--high", "noise"]) == 0
    write_captions(
        captions,
        read_captions(captions)
        | {f"{dataset}HR/a/b.png": Caption("sharp noise", ""), f"{dataset}LR/a/b.png": Caption("noise", "poor")},
    )
    assert main(["pairs", str(captions), "--pairs", str(tmp_path / "pairs")]) == 0
    assert capsys.readouterr().out.endswith(f"3 text files written to {tmp_path / 'pairs'}\n")
    [sample] = OfflinePairs(tmp_path / "pairs", missing="empty")
    assert (sample.caption, sample.lr_caption) == (Caption("sharp noise", ""), Caption("noise", "poor"))
    paint(tmp_path / "out.png", 0)
    outside = f"{dataset}LR/../../{'../' if dataset else ''}out.png"
    assert (tmp_path / "pairs" / outside).exists()
    for wrong in ("a/b.png", "LR", f"{dataset}LR/c.png", f"{dataset}XR/a/b.png", outside):
        write_captions(captions, {wrong: Caption("x", "y")})
        assert main(["pairs", str(captions), "--pairs", str(tmp_path / "pairs")]) == 1
        assert f"{wrong} is not an image of the pairs" in capsys.readouterr().err


def test_two_processes_cannot_write_one_file(folder, tmp_path, capsys):
    """The second process is refused before it waits for its server."""
    output = tmp_path / "captions.jsonl"
    command = ["server", str(folder), "--output", str(output), "--url", "http://127.0.0.1:9/v1", "--wait", "600"]
    with CaptionsFile(output):
        assert main(command) == 1
    assert f"{output} is being written by another process" in capsys.readouterr().err
    assert not output.exists()  # nothing was written


def test_an_output_that_is_not_a_file(folder, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for wrong in ("pipe", "folder", "x" * 250 + ".json", "captions.jsonl/x"):
        (tmp_path / "captions.jsonl").touch()
        assert main(["measured", str(folder), "--output", str(tmp_path / wrong)]) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "pipe", "folder", "captions.jsonl"}


def test_names_with_any_bytes(folder, tmp_path, capsys):
    """Names that are not UTF-8, have an escape sequence, are decomposed, or have 255 bytes.

    These images are captioned, or named in one printable line.
    """
    names = [b"\xff\xfe.png", b"\x1b[31mred.png", "u\u0308ber.png".encode(), b"x" * 251 + b".png"]
    for i, name in enumerate(names):
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write((folder / "a.png").read_bytes() if i else b"no image")
    output = tmp_path / "captions.jsonl"
    assert main(["measured", str(folder), "--output", str(output), "--shard", "0/1"]) == 1
    said = capsys.readouterr()
    assert "\\xff\\xfe.png" in said.err and "\x1b" not in said.err + said.out
    assert (tmp_path / "captions.failed.txt").read_text().startswith("\\xff\\xfe.png\t")
    assert {os.fsencode(name) for name in read_caption_records(output)} >= set(names[1:])
    for i in range(2):
        main(["measured", str(folder), "--output", str(output), "--shard", f"{i}/2"])
    assert "Traceback" not in capsys.readouterr().err
    assert main(["report", str(output), "--images", str(folder), "--output", str(tmp_path / "page.html")]) == 0


@pytest.mark.parametrize("odd", [{"sha256": []}, {"sha256": 7}, {"source": {"a": "\x1b"}}, {"high_whole": 3}])
def test_unknown_keys_in_captions_files(folder, tmp_path, odd):
    line = {"image": "a.png", "high": "by hand", "low": ""} | odd
    (tmp_path / "others.jsonl").write_text(json.dumps(line) + "\n")
    output = tmp_path / "captions.jsonl"
    assert main(["measured", str(folder), "--output", str(output), "--rest", str(tmp_path / "others.jsonl")]) == 0
    assert read_captions(output)["a.png"].high == "by hand"
    output.write_text(json.dumps(line) + "\n")
    assert main(["measured", str(folder), "--output", str(output)]) == 0
    assert main(["report", str(output), "--images", str(folder), "--output", str(tmp_path / "page.html")]) == 0
    assert main(["merge", str(output), str(tmp_path / "others.jsonl"), "--output", str(tmp_path / "m.jsonl")]) == 0
