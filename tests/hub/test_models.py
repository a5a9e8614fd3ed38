"""A model on the hub instead of a folder: needed files are downloaded once; for local paths the hub is not asked."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.hub.conftest import cached, forget
from xpsr_jax.cli.convert import Arguments, convert_weights
from xpsr_jax.cli.model_options import ModelOptions
from xpsr_jax.cli.restore import used_settings
from xpsr_jax.cli.sampling_options import default_options
from xpsr_jax.config import PAPER
from xpsr_jax.errors import UserError
from xpsr_jax.weights import hub as names
from xpsr_jax.weights import hub_files
from xpsr_jax.weights.model_folder import load, write_index
from xpsr_jax.weights.sampling_defaults import INDEX
from xpsr_jax.weights.sources import SUBFOLDERS, open_source

ROOT = Path(__file__).parents[2]
WEIGHTS = "diffusion_pytorch_model.safetensors"
SD = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.fixture
def stocked(hub, base, released):
    """A repository of Stable Diffusion with files that are not needed, and one with XPSR in a folder."""
    needless = {
        "unet/" + WEIGHTS: b"replaced by XPSR's",
        "unet/config.json": (released / "unet" / "config.json").read_bytes(),
        "unet/diffusion_pytorch_model.bin": b"a pickle",
        "vae/diffusion_pytorch_model.bin": b"a pickle",
        "vae/diffusion_pytorch_model.fp16.safetensors": b"half",
        "safety_checker/model.safetensors": b"not used",
        "v1-5-pruned.ckpt": b"a pickle",
        "README.md": b"---\nlicense: creativeml-openrail-m\n---\n",
    }
    hub.add(SD, base, **needless)
    files = {f"checkpoint-7/{p.relative_to(released)}": p.read_bytes() for p in released.rglob("*") if p.is_file()}
    hub.add("someone/xpsr", base.parent / "nothing", **files)
    return hub


def test_a_model_from_two_repositories(stocked, base, released, capsys):
    model = load(SD, "someone/xpsr:checkpoint-7")
    stored = load_file(base / "vae" / WEIGHTS)["decoder.conv_out.bias"]
    np.testing.assert_array_equal(model.autoencoder.decoder.conv_out.bias[...], stored)
    fetched = set(stocked.fetched())
    assert {f"vae/{WEIGHTS}", "text_encoder/model.safetensors", "tokenizer/vocab.json", "README.md"} <= fetched
    assert {f"checkpoint-7/unet/{WEIGHTS}", f"checkpoint-7/controlnet/{WEIGHTS}"} <= fetched
    needless = {name for name in fetched if name.endswith((".bin", ".ckpt", "fp16.safetensors")) or "safety" in name}
    assert not needless and f"unet/{WEIGHTS}" not in fetched

    count = len(stocked.fetched())
    forget()
    for name in (SD, "someone/xpsr:checkpoint-7"):
        names.complete(names.local(name) / ("vae" if name == SD else "unet"))
    assert len(stocked.fetched()) == count, "all files come from the cache"


def test_conversion_names_the_sources(stocked, base, tmp_path, capsys):
    convert_weights(Arguments((Path(f"{SD}:vae"),), tmp_path / "out"))
    commit = names.pinned(SD)
    assert f"vae/           from {commit}:vae\n" in capsys.readouterr().out
    before, after = load_file(base / "vae" / WEIGHTS), load_file(tmp_path / "out" / "vae" / WEIGHTS)
    assert all(before[key].tobytes() == after[key].tobytes() for key in before)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"- vae/ from {commit}:vae\n" in card and f"- base: {commit}:vae\n" in card
    assert f'license: "creativeml-openrail-m"\nbase_model: "{SD}"\n' in card


def test_revisions(hub, base, tmp_path):
    first = hub.add("a/b", base)
    second = hub.add("a/b", base, **{"model_index.json": b"{}"})
    hub.repositories["a/b"].refs["v1"] = first
    assert names.pinned("a/b") == Path(f"a/b@{second}") and names.pinned("a/b@v1") == Path(f"a/b@{first}")
    for name, commit in (("a/b", second), ("a/b@v1", first), (f"a/b@{first[:40]}", first)):
        assert names.local(name).name == commit
    assert names.pinned(f"a/b@{first}:vae") == Path(f"a/b@{first}:vae")
    assert not (names.local("a/b@v1") / "model_index.json").exists()


def test_without_a_network_the_cache_is_used(stocked, monkeypatch, capsys):
    open_source(Path(SD)).networks["autoencoder"]()
    commit = names.pinned(SD)
    forget()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    count = len(stocked.requests)
    assert open_source(Path(SD)).networks["autoencoder"]().tensors and names.pinned(SD) == commit
    assert "using cached commit " + str(commit).partition("@")[2] in capsys.readouterr().err
    with pytest.raises(UserError, match=rf"{SD}@\w+:unet: its weights are not in the cache"):
        open_source(Path(SD)).networks["unet"]()
    with pytest.raises(
        UserError, match=r"somebody/else is not a local path and not in the hub's cache, .*HF_HUB_OFFLINE"
    ):
        names.local("somebody/else")
    assert len(stocked.requests) == count


def test_one_file_of_a_repository(hub, base, tmp_path):
    hub.add("a/b", base, **{"files/one.safetensors": b"bytes"})
    assert names.local("a/b:files/one.safetensors").read_bytes() == b"bytes"
    assert hub.fetched() == ["files/one.safetensors"]


def test_local_paths_take_precedence(hub, released, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(released, tmp_path / "models" / "xpsr")
    assert open_source(Path("models/xpsr")).networks["unet"]().tensors
    assert names.local("a/b/c") == Path("a/b/c") and names.local(tmp_path / "no") == tmp_path / "no"
    assert names.local("models/no.safetensors") == Path("models/no.safetensors")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a/b", ("a/b", None, "")),
        ("a/b@v1.0", ("a/b", "v1.0", "")),
        ("a/b@refs/pr/1:c/d", ("a/b", "refs/pr/1", "c/d")),
        ("A-1/b_2.c:d", ("A-1/b_2.c", None, "d")),
        ("a", None),
        ("/a/b", None),
        ("a/b/c", None),
        ("../b", None),
        ("gs:/b/c", None),
        ("a/b:../c", None),
        ("a/model.ckpt", None),
    ],
)
def test_names(text, parts):
    assert names.parsed(text) == (None if parts is None else names.HubName(*parts))
    if parts:
        assert str(names.parsed(text)) == text


def test_which_files():
    plain, half, pickle = WEIGHTS, "diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin"
    weights = hub_files.weights
    assert weights([pickle, half, plain, "config.json"]) == [plain]
    assert weights([pickle, half, plain], variant="fp16") == [half] and weights([pickle, plain], variant="x") == [plain]
    assert weights([pickle, "flax_model.msgpack"]) == ["flax_model.msgpack"] and weights([pickle]) == [pickle]
    assert weights([pickle, half]) == [half], "a pickle is the last choice"
    assert weights(["orbax/_METADATA", "orbax/d/1", pickle]) == ["orbax/_METADATA", "orbax/d/1"]
    shards = [f"model-{i:05d}-of-00002.safetensors" for i in (1, 2)]
    index = "model.safetensors.index.json"
    assert weights([*shards, index, "model-00001-of-00002.fp16.safetensors", "pytorch_model.bin"]) == [index, *shards]
    half = ["model.safetensors.index.fp16.json", *(f"model.fp16-{i:05d}-of-00002.safetensors" for i in (1, 2))]
    assert weights([*shards, index, *half], variant="fp16") == half
    assert hub_files.variants_of([*half, *shards, "model.non_ema.bin"]) == {"fp16", "non_ema"}
    assert set(hub_files.COMPONENTS) == set(SUBFOLDERS.values())


def test_variants(hub, released, tmp_path, capsys):
    shutil.copytree(released, tmp_path / "source")
    half = {key: array.astype("float16") for key, array in load_file(released / "unet" / WEIGHTS).items()}
    save_file(half, tmp_path / "source" / "unet" / WEIGHTS.replace(".s", ".fp16.s"))
    hub.add("a/b", tmp_path / "source")
    convert_weights(Arguments((Path("a/b"),), tmp_path / "out", variant="fp16"))
    assert "(it has no fp16 files)" in capsys.readouterr().out
    assert {str(a.dtype) for a in load_file(tmp_path / "out" / "unet" / WEIGHTS).values()} == {"float16"}
    assert f"unet/{WEIGHTS}" not in hub.fetched()


@pytest.mark.more
def test_in_another_process_with_variables(hub, base, tmp_path):
    """The usual environment: HF_ENDPOINT, HF_HOME, and the token that the server requires."""
    hub.add("a/base", base)
    hub.token = "hf_secret"
    command = [sys.executable, "convert_weights.py", "a/base@main", "--output", str(tmp_path / "out")]
    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    environment = os.environ | variables | {"HF_TOKEN": "hf_secret"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["vae"]


def test_the_model_s_settings_are_used_and_its_commit_recorded(hub, base, tmp_path, capsys):
    write_index(tmp_path, dataclasses.replace(PAPER, steps=7), "A note.")
    commit = hub.add("a/b", base, **{INDEX: (tmp_path / INDEX).read_bytes()})
    assert default_options(["--model", "a/b", "--help"]).steps == PAPER.steps and hub.requests == [], (
        "--help sends no request"
    )
    assert default_options(["x.png", "--model", "a/b"]).steps == 7
    assert used_settings(ModelOptions(model=(Path("a/b"),)), PAPER)["model"] == [f"a/b@{commit}"]


def test_weights_are_downloaded_only_when_opened(stocked):
    folder = names.local(SD)
    assert not any(file.endswith((".safetensors", ".bin", ".ckpt")) for file in cached(folder))
    names.complete(folder / "vae")
    assert f"vae/{WEIGHTS}" in cached(folder) and f"unet/{WEIGHTS}" not in cached(folder)
