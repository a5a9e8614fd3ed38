"""Hostile model folders: each is a complete small model with one error. All are refused, except those in `READ`."""

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.hostile.pictures import ESCAPE
from tests.hostile.texts import DEEP, JSON, NOT_FILES

Change = Callable[[Path], object]
WEIGHTS = "diffusion_pytorch_model.safetensors"

# Fields of each file, with invalid values. "layers_per_block": 1e9 would be endless work.
_FIELDS: dict[str, dict[str, list[Any]]] = {
    "unet/config.json": {
        "layers_per_block": [10**9, 0, -1, "2", [1, 1, 1], None, 1e9, 2.5, True],
        "block_out_channels": [[], [10**9], [-8, 8], ["8", "8"], 8, [8] * 10**5, [7, 9], {"0": 8}],
        "down_block_types": [[], ["NoSuchBlock", "DownBlock2D"], ["DownBlock2D"] * 9, "DownBlock2D", [None, None]],
        "cross_attention_dim": [10**12, 0, -8, "8", 2**63],
        "attention_head_dim": [0, -2, 10**9, [2, 2, 2], "2"],
        "norm_num_groups": [0, -4, 3, 10**9],
        "in_channels": [0, 10**9, "4"],
        "transformer_layers_per_block": [[1, 1, 1, 1], 10**9, -1],
        "_class_name": ["NoSuchNetwork", 7, f"{ESCAPE}x"],
    },
    "controlnet/config.json": {
        "conditioning_embedding_out_channels": [[], [10**9], [0, 0, 0], "4"],
        "block_out_channels": [[8], [16, 8]],
    },
    "vae/config.json": {
        "latent_channels": [0, -4, 10**9, "4"],
        "scaling_factor": [0, -1, "x", 1e400],
        "layers_per_block": [10**9, -1],
        "norm_num_groups": [0, 3],
    },
    "text_encoder/config.json": {
        "num_hidden_layers": [10**9, -1, 0, "1"],
        "vocab_size": [0, -1, 10**12],
        "hidden_size": [0, 10**9, 7],
        "num_attention_heads": [0, 3, 10**9],
        "hidden_act": ["no_such_function", 7],
        "max_position_embeddings": [0, 10**12],
    },
    "scheduler/scheduler_config.json": {
        "num_train_timesteps": [0, -1, 10**12, "1000"],
        "beta_start": [-1, 2, "x", 0],
        "beta_end": [-1, 2, None],
        "beta_schedule": ["no_such_schedule", 7],
        "prediction_type": ["no_such_type"],
    },
}


def _field(file: str, name: str, value: object) -> Change:
    def change(folder: Path) -> None:
        _replace(folder / file, json.dumps(json.loads((folder / file).read_text()) | {name: value}).encode())

    return change


def _replace(file: Path, content: bytes) -> None:
    file.unlink(missing_ok=True)  # it may be a link to the complete model's file
    file.write_bytes(content)


def _content(file: str, content: bytes) -> Change:
    return lambda folder: _replace(folder / file, content)


def _not_a_file(file: str, make: Change) -> Change:
    def change(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        make(folder / file)

    return change


def _without(file: str) -> Change:
    return lambda folder: (folder / file).unlink()


def _tensors(file: str, change: Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]]) -> Change:
    def apply(folder: Path) -> None:
        tensors = change(load_file(folder / file))
        (folder / file).unlink()
        save_file(dict(tensors), folder / file)

    return apply


def safetensors(header: Mapping[str, Any] | bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file with this header, which may be invalid."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _entry(dtype: object = "F32", shape: object = (2, 2), offsets: object = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SAFETENSORS: dict[str, bytes] = {
    "empty": b"",
    "seven-bytes": b"\0" * 7,
    "header-of-exabytes": safetensors({}, length=2**63),
    "header-beyond-its-end": safetensors({}, length=1000),
    "header-of-nothing": safetensors(b""),
    "header-deep": safetensors(DEEP),
    "header-a-list": safetensors(b"[]"),
    "header-not-utf-8": safetensors(b'{"\xff": 1}'),
    "offsets-beyond-its-end": safetensors({"a": _entry(offsets=(0, 2**40))}, bytes(16)),
    "offsets-backwards": safetensors({"a": _entry(offsets=(16, 0))}, bytes(16)),
    "offsets-negative": safetensors({"a": _entry(offsets=(-16, 0))}, bytes(16)),
    "offsets-shared": safetensors({"a": _entry(), "b": _entry()}, bytes(16)),
    "offsets-text": safetensors({"a": _entry(offsets="0,16")}, bytes(16)),
    "shape-huge": safetensors({"a": _entry(shape=(2**40, 2**40), offsets=(0, 16))}, bytes(16)),
    "shape-overflows": safetensors({"a": _entry(shape=(2**62, 4), offsets=(0, 16))}, bytes(16)),
    "shape-negative": safetensors({"a": _entry(shape=(-2, -2))}, bytes(16)),
    "shape-text": safetensors({"a": _entry(shape="22")}, bytes(16)),
    "dtype-unknown": safetensors({"a": _entry(dtype="F7")}, bytes(16)),
    "dtype-a-number": safetensors({"a": _entry(dtype=7)}, bytes(16)),
    "name-with-escapes": safetensors({f"{ESCAPE}a": _entry()}, bytes(16)),
    "name-half-a-character": safetensors(b'{"\\ud83d":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}', bytes(16)),
    "zeros": bytes(4096),
    "noise": np.random.default_rng(0).bytes(4096),
}

MSGPACK: dict[str, bytes] = {
    "empty": b"",
    "deep": b"\x91" * 200_000,
    "map-of-billions": b"\xdf\xff\xff\xff\xff",
    "array-of-billions": b"\xdd\xff\xff\xff\xff",
    "bytes-beyond-its-end": b"\x81\xa1a\xc6\xff\xff\xff\xff",
    "tensor-beyond-its-end": b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",
    "extension-of-noise": b"\x81\xa1a\xc7\x08\x01" + b"\x93\xff\xff\xff\xff\xff\xff\xff",
    "keys-are-numbers": b"\x81\x01\x02",
    "reserved": b"\xc1",
    "a-number": b"\x07",
    "noise": np.random.default_rng(1).bytes(4096),
}


class _Runs:
    """If it is unpickled, it makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch hacked",)


PICKLES: dict[str, bytes] = {
    "empty": b"",
    "runs-a-program": pickle.dumps({"a": _Runs()}),
    "runs-a-program-early": b"cos\nsystem\n(S'touch hacked'\ntR.",
    "noise": np.random.default_rng(2).bytes(4096),
    "an-archive-of-nothing": b"PK\5\6" + bytes(18),
    "archive-cut": b"PK\3\4" + bytes(400),
    "deep": b"(" * 200_000,
}

# Single files that are named as SOURCE.
FILES: dict[str, Change] = {
    f"{name}.{ending}": (lambda path, content=content: _replace(path, content))
    for ending, contents in (
        ("safetensors", SAFETENSORS),
        ("msgpack", MSGPACK),
        ("ckpt", PICKLES),
        ("bin", PICKLES),
        ("pt", {"zeros": bytes(4096)}),
        ("safetensors.index.json", JSON),
    )
    for name, content in contents.items()
} | {f"{name}.{ending}": make for ending in ("safetensors", "ckpt") for name, make in NOT_FILES.items()}


def _index(content: Mapping[str, Any]) -> Change:
    def change(folder: Path) -> None:
        (folder / "unet" / WEIGHTS).unlink()
        (folder / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps(content))

    return change


def _fields() -> dict[str, Change]:
    found = {}
    for file, fields in _FIELDS.items():
        for name, values in fields.items():
            for i, value in enumerate(values):
                found[f"{Path(file).parent}-{name}-{i}"] = _field(file, name, value)
    return found


_JSON_FILES = (*_FIELDS, "model_index.json")
CHANGES: dict[str, Change] = (
    _fields()
    | {
        f"{file.replace('/', '-')}-{name}": _content(file, content)
        for file in _JSON_FILES
        for name, content in JSON.items()
    }
    | {
        f"{file.replace('/', '-')}-{name}": _not_a_file(file, make)
        for file in ("unet/config.json", f"unet/{WEIGHTS}", "model_index.json", "scheduler/scheduler_config.json")
        for name, make in NOT_FILES.items()
    }
    | {f"unet-weights-{name}": _content(f"unet/{WEIGHTS}", content) for name, content in SAFETENSORS.items()}
    | {
        "unet-without-config": _without("unet/config.json"),
        "unet-without-weights": _without(f"unet/{WEIGHTS}"),
        "vae-without-weights": _without(f"vae/{WEIGHTS}"),
        "tensor-missing": _tensors(f"unet/{WEIGHTS}", lambda t: dict(list(t.items())[1:])),
        "tensor-unknown": _tensors(f"unet/{WEIGHTS}", lambda t: t | {f"{ESCAPE}more": np.zeros(2, np.float32)}),
        "tensor-misshapen": _tensors(f"unet/{WEIGHTS}", lambda t: t | {next(iter(t)): np.zeros((3, 1), np.float32)}),
        "tensor-nan": _tensors(
            f"unet/{WEIGHTS}", lambda t: t | {next(iter(t)): np.full_like(t[next(iter(t))], np.nan)}
        ),
        "tensor-integers": _tensors(f"unet/{WEIGHTS}", lambda t: {key: a.astype(np.int64) for key, a in t.items()}),
        "all-renamed": _tensors(f"unet/{WEIGHTS}", lambda t: {f"strange.{key}": a for key, a in t.items()}),
        "index-elsewhere": _index({"weight_map": {"conv_in.weight": "../../../../etc/passwd"}}),
        "index-absolute": _index({"weight_map": {"conv_in.weight": "/dev/zero"}}),
        "index-to-itself": _index({"weight_map": {"conv_in.weight": f"{WEIGHTS}.index.json"}}),
        "index-missing-shard": _index({"weight_map": {"conv_in.weight": "nothing.safetensors"}}),
        "index-empty": _index({"weight_map": {}}),
        "index-wrong-type": _index({"weight_map": ["a"]}),
        "index-name-a-number": _index({"weight_map": {"conv_in.weight": 7}}),
        "index-nul": _index({"weight_map": {"conv_in.weight": "a\0b"}}),
        "tokenizer-vocabulary-empty": _content("tokenizer/vocab.json", b"{}"),
        "tokenizer-vocabulary-no-json": _content("tokenizer/vocab.json", b"{no"),
        "tokenizer-vocabulary-of-texts": _content("tokenizer/vocab.json", b'{"a": "b"}'),
        "tokenizer-merges-binary": _content("tokenizer/merges.txt", bytes(range(256))),
        "tokenizer-config-deep": _content("tokenizer/tokenizer_config.json", DEEP),
        "nothing-in-it": lambda folder: shutil.rmtree(folder) or folder.mkdir(),
        "only-an-index": lambda folder: [shutil.rmtree(each) for each in folder.iterdir() if each.is_dir()],
        "a-file": lambda folder: shutil.rmtree(folder) or folder.write_bytes(b""),
    }
)
# In these folders, the reader does not need the wrong part. They may be read.
READ = (
    *("unet-_class_name-0", "unet-_class_name-1", "unet-_class_name-2", "tensor-integers"),
    *(f"model_index.json-{name}" for name in JSON),
    *(f"model_index.json-{name}" for name in NOT_FILES),
)


def component(name: str) -> str:
    """The part of the model that a change affects: a subfolder, or "" for the folder itself."""
    parts = ("controlnet", "vae", "text_encoder", "tokenizer", "scheduler")
    found = next((part for part in parts if name.startswith(part)), "unet")
    return "" if name.startswith(("model_index", "nothing", "only", "a-file")) else found


def make_model(base: Path, folder: Path, change: Change, *, part: str = "") -> None:
    """Links the complete model's files, or the files of one part, into a new folder, and changes one thing."""
    for file in (base / part).rglob("*"):
        if file.is_file():
            target = folder / file.relative_to(base)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file)
    change(folder)
