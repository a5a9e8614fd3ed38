"""Randomly damaged files, and their readers. `read` runs in a forked process, so that a crash or a hang is noticed."""

import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tests.hostile.pictures import PNG, apng, deep_png, encoded, exif, jpeg_with, plain_tiff
from tests.hostile.texts import PLAIN

# The most seconds for one file.
SECONDS = 5.0
_NASTY = (b"\0", b"\xff", b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b'"', b"{", b"[" * 9, b"\\ud800")


def picture_seeds() -> dict[str, bytes]:
    kinds = {"PNG": "png", "JPEG": "jpg", "TIFF": "tif", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "PPM": "ppm"}
    seeds = {f"{kind}.{ending}": encoded(kind, i) for i, (kind, ending) in enumerate(kinds.items())}
    return seeds | {
        "animated.png": apng(),
        "deep.png": deep_png(2, 3),
        "progressive.jpg": encoded("JPEG", 9, progressive=True),
        "with-exif.jpg": jpeg_with(3, (0xE1, b"Exif\0\0" + exif({0x0112: 6}))),
        "plain.tif": plain_tiff(),
    }


def safetensors_seeds() -> dict[str, bytes]:
    from safetensors.numpy import save

    arrays = {f"block.{i}.weight": np.arange(6, dtype=kind) for i, kind in enumerate(("f4", "f2", "i8", "u1"))}
    return {"a.safetensors": save(arrays), "b.safetensors": save({"a": np.zeros((2, 3), np.float32)}, {"format": "pt"})}


def msgpack_seeds() -> dict[str, bytes]:
    from flax.serialization import msgpack_serialize

    tree = {"conv": {"kernel": np.zeros((3, 3, 2, 4), np.float32), "bias": np.zeros(4, np.float32)}}
    return {"flax_model.msgpack": msgpack_serialize(tree)}


def json_seeds() -> dict[str, bytes]:
    folder = Path(__file__).parents[1] / "vectors" / "sd21"
    return {f"{part}.json": (folder / part / "config.json").read_bytes() for part in ("unet", "vae", "text_encoder")}


def captions_seeds() -> dict[str, bytes]:
    lines = [PLAIN.replace(b"a.png", b"%d.png" % i) for i in range(5)]
    return {"captions.jsonl": b"".join(lines) + json.dumps({"image": "ü", "high": "é\U0001f600", "low": ""}).encode()}


def pickle_seeds() -> dict[str, bytes]:
    """Files in PyTorch's format. Without PyTorch: a plain pickle, which is refused."""
    import io
    import pickle

    try:
        import torch
    except ImportError:
        return {"a.bin": pickle.dumps({"a": [1.0, 2.0]})}
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.float16)}, buffer)
    return {"a.bin": buffer.getvalue(), "a.ckpt": buffer.getvalue()}


SEEDS: dict[str, Callable[[], dict[str, bytes]]] = {
    "pictures": picture_seeds,
    "safetensors": safetensors_seeds,
    "msgpack": msgpack_seeds,
    "json": json_seeds,
    "captions": captions_seeds,
    "pickles": pickle_seeds,
}


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The data with one to four random changes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(7):
            case 0 | 1:
                if at < len(changed):
                    changed[at] ^= 1 << rng.randrange(8)
            case 2:
                del changed[at:]
            case 3:
                del changed[at : at + rng.randint(1, 40)]
            case 4:
                changed[at:at] = changed[at : at + rng.randint(1, 40)]
            case 5:
                nasty = rng.choice(_NASTY)
                changed[at : at + len(nasty)] = nasty
            case 6:
                changed[at:at] = rng.randbytes(rng.randint(1, 30))
    return bytes(changed)


def read(words: Sequence[str]) -> int:
    """Makes mutated files of a kind from a seed, and reads each. Prints errors and the number of refused files.

    Args:
      words: kind, seed, count, folder, and "without" to hide PyTorch.
    """
    kind, seed, count, folder, *options = words
    if "without" in options:
        sys.modules["torch"] = None  # type: ignore[assignment]
    from xpsr_jax.errors import UserError

    rng, seeds, reader, refused = random.Random(f"{kind}{seed}"), SEEDS[kind](), _reader(kind), 0
    for i in range(int(count)):
        name = rng.choice(sorted(seeds))
        data = mutated(seeds[name], rng)
        file = Path(folder) / f"{i}-{name}"
        file.write_bytes(data)
        print(file.name, file=sys.stderr, flush=True)  # after a crash, the last name is the file that caused it
        began = time.monotonic()
        try:
            wrong = reader(file, seeds[name])
        except UserError as error:
            refused += 1
            wrong = "not printable" if not str(error).replace("\n", "").isprintable() else ""
        if time.monotonic() - began > SECONDS:
            wrong = f"{time.monotonic() - began:.1f} s"
        if wrong:
            print(f"{kind} {seed} {file.name}: {wrong}")
        os.unlink(file)
    print(f"refused {refused}")
    return 0


def _reader(kind: str) -> Callable[[Path, bytes], str]:
    """A function of a mutated file and its original bytes. It reads the file and returns an error text, or ""."""
    from xpsr_jax.data.captions import read_caption_records
    from xpsr_jax.images.reading import decode_image, read_image
    from xpsr_jax.weights import flax_files, networks, pickles, torch_files

    def picture(file: Path, whole: bytes) -> str:
        pixels = read_image(file)
        # A PNG has checksums, so pixels that are read must equal the original's.
        if whole.startswith(PNG) and not np.array_equal(pixels, decode_image(whole, "it")):
            return "damaged, but read as if it were whole"
        return ""

    def tensors(read_file: Callable[[Path], dict]) -> Callable[[Path, bytes], str]:
        def of_file(file: Path, _: bytes) -> str:
            for tensor in read_file(file).values():
                tensor.read()
            return ""

        return of_file

    def config(file: Path, _: bytes) -> str:
        from xpsr_jax.json_files import read_json

        network = {"unet": networks.UNET, "vae": networks.AUTOENCODER, "text_encoder": networks.TEXT_ENCODER}
        part = file.stem.partition("-")[2]
        networks.parse_config(network[part], read_json(file), file)
        return ""

    def captions(file: Path, _: bytes) -> str:
        for record in read_caption_records(file).values():
            json.dumps(record).encode()
        return ""

    return {
        "pictures": picture,
        "safetensors": tensors(torch_files.read_file),
        "msgpack": tensors(flax_files.read_msgpack),
        "pickles": tensors(pickles.read_pickle),
        "json": config,
        "captions": captions,
    }[kind]
