"""Writes captions for many images. Equal images are captioned only once, and existing captions are kept."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from xpsr_jax.caption.captions_file import CaptionsFile, content_of
from xpsr_jax.caption.in_flight import in_flight
from xpsr_jax.caption.sentences import count_tokens, first_sentences
from xpsr_jax.data.by_path import ByPath
from xpsr_jax.data.captions import Caption, CaptionRecord, read_caption_records
from xpsr_jax.data.tokens import MAX_TOKENS
from xpsr_jax.errors import UserError, printable, say
from xpsr_jax.files import write_text
from xpsr_jax.images.listing import Input, list_inputs
from xpsr_jax.images.reading import decode_picture, read_bytes

READERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class LoadedImage:
    """An image file that was read.

    Attributes:
      name: its path in the captions file.
      data: the bytes of the file.
      pixels: RGB pixels, upright.
      sha256: hash of the bytes.
      as_stored: every decoder gets these pixels from `data`, because nothing was rotated, converted or filled.
    """

    name: str
    data: bytes
    pixels: UInt8[np.ndarray, "h w 3"]
    sha256: str
    as_stored: bool = False


# Takes images one by one as it needs them. Yields each image with its caption or its error, in any order.
Captioner = Callable[[Iterable[LoadedImage]], Iterator[tuple[LoadedImage, Caption | UserError]]]


@dataclass
class Tally:
    """The outcome for all images.

    Attributes:
      captioned: images with a new caption.
      known: images that had a caption already.
      duplicates: images that got the caption of another image with the same content, without a new request.
      changed: images whose content changed after they were captioned. They are captioned again.
      shortened: new captions that were longer than CLIP's 77 tokens and were shortened to their first sentences.
      cut: new captions whose first sentence alone is longer than 77 tokens. CLIP does not read its end.
      failed: the reason why an image has no caption, by the image's name.
    """

    captioned: int = 0
    known: int = 0
    duplicates: int = 0
    changed: int = 0
    shortened: int = 0
    cut: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{self.captioned} captioned"]
        parts += [f"{self.known} known"] if self.known else []
        parts += [f"{self.duplicates} duplicates"] if self.duplicates else []
        parts += [f"{self.changed} of them changed since"] if self.changed else []
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        return ", ".join(parts)


def caption_images(
    inputs: Sequence[Input],
    captioner: Captioner,
    file: CaptionsFile,
    *,
    source: str,
    rest: Path | None = None,
    on_error: Literal["skip", "stop"] = "skip",
) -> Tally:
    """Appends a line to `file` for each image that has none: `{"image", "high", "low", "source", "sha256"}`.

    A caption that CLIP would cut is shortened to its first sentences. Then the whole caption is in `high_whole` or
    `low_whole`. Failed images are listed in `NAME.failed.txt` beside the file. The next run tries them again.

    Args:
      inputs: the images.
      captioner: makes the captions.
      file: the open captions file. It may have captions already.
      source: the captioner's name, for the captions' "source".
      rest: a captions file that fills empty captions. Its captions are looked up by content, then by path.
      on_error: what to do with an image that cannot be read or captioned: "skip" counts it, "stop" ends the work.

    Raises:
      UserError: two inputs have the same name, the output is invalid or cannot be written, or an error ends the work.
    """
    by_name = _by_name(inputs)
    tally = Tally()
    others = _Others(rest)
    with _failures_written(file.path, tally.failed):
        if file.repaired:
            say(f"{file.path}: the last line was incomplete and was removed", to_stderr=True)
        changed = _changed(by_name, file.records)
        if changed:
            file.remove(changed)
        tally.changed = len(changed)
        todo = [name for name in by_name if name not in file.records]
        tally.known = len(by_name) - len(todo)
        known = {record["sha256"]: record for record in file.records.values() if content_of(record)}
        waiting: dict[str, list[str]] = {}  # by content that is being captioned: names of other images with it

        with tqdm(total=len(by_name), initial=tally.known, unit="image", desc="captions", disable=None) as bar:

            def done(name: str) -> None:
                bar.set_postfix_str(printable(name), refresh=False)
                bar.update()

            def fail(name: str, error: UserError) -> None:
                tally.failed[name] = str(error)
                if on_error == "stop":
                    raise error
                say(f"{name}: {error}", to_stderr=True)
                done(name)

            def copy(name: str, record: CaptionRecord) -> None:
                file.append(_shortened(others.fill(record | {"image": name})))
                tally.duplicates += 1
                done(name)

            def fresh() -> Iterator[LoadedImage]:
                for name, image in in_flight(lambda name: _read(name, by_name[name]), todo, READERS, ordered=True):
                    if isinstance(image, UserError):
                        fail(name, image)
                    elif image.sha256 in known:
                        copy(name, known[image.sha256])
                    elif image.sha256 in waiting:
                        waiting[image.sha256].append(name)
                    else:
                        waiting[image.sha256] = []
                        yield image

            for image, caption in captioner(fresh()):
                duplicates = waiting.pop(image.sha256)
                if isinstance(caption, UserError):
                    for name in (image.name, *duplicates):
                        fail(name, caption)
                    continue
                record = {"image": image.name, "high": caption.high, "low": caption.low}
                record = _shortened(others.fill(record | {"source": source, "sha256": image.sha256}))
                known[image.sha256] = record
                file.append(record)
                tally.captioned += 1
                tally.shortened += sum(f"{level}_whole" in record for level in ("high", "low"))
                tally.cut += sum(count_tokens(record[level]) > MAX_TOKENS for level in ("high", "low"))
                done(image.name)
                for name in duplicates:
                    copy(name, record)
    return tally


def find_images(paths: Sequence[Path], *, shard: tuple[int, int] = (0, 1), limit: int | None = None) -> list[Input]:
    """Lists the image files of one shard. Folders are searched with their subfolders.

    An image's shard depends only on its name. So new images do not move other images to another shard.

    Args:
      paths: image files and folders.
      shard: (number, count): the number of the wanted shard, and how many shards there are.
      limit: the most images to return.
    """
    number, count = shard
    found = list_inputs(paths)
    if count > 1:
        found = [each for each in found if _hash(os.fsencode(each.name.as_posix()), 8) % count == number]
    return found[:limit]


def parse_shard(text: str) -> tuple[int, int]:
    """Parses "2/16" to (2, 16). Valid are 0/16 to 15/16. Raises UserError for other texts."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise UserError(f"--shard {text}: expected i/n with i from 0 to n - 1, such as 0/16")
    return int(number), int(count)


def shard_file(output: Path, shard: tuple[int, int]) -> Path:
    """The output file of one shard, for example captions.00002-of-00016.jsonl."""
    number, count = shard
    return output if count == 1 else output.with_name(f"{output.stem}.{number:05}-of-{count:05}{output.suffix}")


def failures_file(output: Path) -> Path:
    """The file that lists failed images: captions.failed.txt beside captions.jsonl."""
    return output.with_name(f"{output.stem}.failed.txt")


class _Others:
    """Other captions, which fill empty ones."""

    def __init__(self, file: Path | None):
        self._by_name = ByPath(read_caption_records(file) if file else {})
        self._by_content = {record["sha256"]: record for record in self._by_name.values() if content_of(record)}

    def fill(self, record: CaptionRecord) -> CaptionRecord:
        other = self._by_content.get(record["sha256"]) or self._by_name.get(record["image"])
        if other is None:
            return record
        return record | {level: record[level] or other[level].strip() for level in ("high", "low")}


def _by_name(inputs: Sequence[Input]) -> dict[str, Path]:
    by_name: dict[str, Path] = {}
    for each in inputs:
        name = each.name.as_posix()
        if name in by_name:
            raise UserError(f"{by_name[name]} and {each.path} would both be {name!r}: caption one folder at a time")
        by_name[name] = each.path
    return by_name


def _changed(by_name: dict[str, Path], records: dict[str, CaptionRecord]) -> list[str]:
    """Names of images whose content differs from the hash in their captions. Hand-written captions have no hash."""
    names = [name for name in by_name if content_of(records.get(name, {}))]
    changed = []
    with tqdm(total=len(names), unit="image", desc="checking", disable=None) as bar:
        for name, data in in_flight(lambda name: hashlib.sha256(read_bytes(by_name[name])).hexdigest(), names, READERS):
            if isinstance(data, str) and data != records[name]["sha256"]:
                changed.append(name)
            bar.update()
    return changed


def _read(name: str, path: Path) -> LoadedImage:
    data = read_bytes(path)
    picture = decode_picture(data, path)
    return LoadedImage(name, data, picture.rgb, hashlib.sha256(data).hexdigest(), picture.as_stored)


def _shortened(record: CaptionRecord) -> CaptionRecord:
    """Shortens captions to their first sentences for CLIP. The record also keeps the whole caption."""
    for level in ("high", "low"):
        first = first_sentences(record[level])
        if first != record[level]:
            record |= {level: first, f"{level}_whole": record[level]}
    return record


@contextlib.contextmanager
def _failures_written(output: Path, failed: dict[str, str]) -> Iterator[None]:
    """Writes the list of failed images, also if the work ends early.

    The list of an earlier run stays if this run ends before an image fails.
    """
    file = failures_file(output)
    finished = False
    try:
        file.lstat()
    except FileNotFoundError:
        pass
    except OSError as error:  # the file name is too long
        raise UserError(f"{file} cannot be written: {error.strerror}") from error
    try:
        yield
        finished = True
    finally:
        if failed:
            write_text("".join(f"{printable(name)}\t{reason}\n" for name, reason in failed.items()), file)
        elif finished:
            file.unlink(missing_ok=True)


def _hash(data: bytes, length: int) -> int:
    return int.from_bytes(hashlib.sha256(data).digest()[:length], "big")
