"""Every kind of weight file, except PyTorch's pickles (tests/torch): its content, and clear errors for broken files."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from tests.models.golden import error, read, under
from tests.weights.conftest import TINY_TEXT_ENCODER, random_tensors, write_network
from xpsr_jax import sharding
from xpsr_jax.config import Mesh
from xpsr_jax.errors import UserError
from xpsr_jax.models.parameters import parameters
from xpsr_jax.weights import orbax_files
from xpsr_jax.weights.convert import convert
from xpsr_jax.weights.folders import read_folder
from xpsr_jax.weights.model_folder import load
from xpsr_jax.weights.networks import (
    AUTOENCODER,
    CONTROLNET,
    TEXT_ENCODER,
    UNET,
    load_network,
    open_folder,
    read_config,
)
from xpsr_jax.weights.sources import open_source
from xpsr_jax.weights.verify import verify_network

ROOT = Path(__file__).parents[2]
MODEL = "diffusion_pytorch_model.safetensors"


def flax(vectors, network, name, **changes):
    folder = vectors / "flax" / name
    config = dataclasses.replace(read_config(network, folder), **changes)
    io = read(folder / "io.safetensors")
    return load_network(network, folder, config=config), under("in.", io), under("out.", io)


# The differences of UNet and ControlNet come from diffusers' Flax code: tanh GELU, and other epsilons.
def test_flax_unet(vectors):
    unet, x, out = flax(vectors, UNET, "unet", conditional_attention=False)
    result = nnx.jit(lambda unet, *x: unet(*x))(unet, x["latents"], x["timesteps"], x["text"])
    assert error(result, out["result"]) <= 1e-3  # measured: 2.2e-4


def test_flax_controlnet(vectors):
    controlnet, x, out = flax(
        vectors, CONTROLNET, "controlnet", fusion="high", return_rgbs=False, use_latent_pred=False
    )

    @nnx.jit
    def run(controlnet, x):
        features = controlnet.encode_image(x["image"])
        return controlnet(x["latents"], x["timesteps"], x["text"], None, features)

    result = run(controlnet, x)
    assert error(result.mid, out["mid"]) <= 3e-3  # measured: 5.8e-4
    assert all(error(each, out[f"residuals.{i}"]) <= 2e-3 for i, each in enumerate(result.residuals))  # 3.0e-4


def test_flax_autoencoder(vectors):
    vae, x, out = flax(vectors, AUTOENCODER, "autoencoder")
    run = nnx.jit(lambda vae, x: (*vae.moments(x["image"]), vae.decode(x["latents"] * vae.config.scaling_factor)))
    for result, name in zip(run(vae, x), ("mean", "logvar", "image"), strict=True):
        assert error(result, out[name]) <= 1e-5  # measured: 1.7e-6


def test_flax_text_encoder(vectors):
    text, x, out = flax(vectors, TEXT_ENCODER, "text_encoder")
    result = nnx.jit(lambda text, ids: text(ids))(text, x["token_ids"])
    assert error(result, out["result"]) <= 1e-5  # measured: 1.1e-6


def test_broken_flax_files_are_refused(vectors, tmp_path):
    content = (vectors / "flax" / "text_encoder" / "flax_model.msgpack").read_bytes()
    file = tmp_path / "flax_model.msgpack"
    for broken in (content[:-5], content[:100], b"", content + b"\x00", b"\x81\xa1a\xa1b", b"\xc1"):
        file.write_bytes(broken)
        with pytest.raises(UserError, match=r"flax_model\.msgpack"):
            read_folder(tmp_path)


def test_flax_becomes_torch(vectors, tmp_path):
    shutil.copytree(vectors / "flax" / "text_encoder", tmp_path / "flax" / "text_encoder")
    convert([open_source(tmp_path / "flax")], tmp_path / "out", verify=True)
    before = read_folder(vectors / "flax" / "text_encoder")
    after = load_file(tmp_path / "out" / "text_encoder" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key].read(), after[key]) for key in after)


def test_variants(tmp_path):
    plain = {"w": np.zeros(3, np.float32)}
    half, other = {"w": np.ones(3, np.float16)}, {"w": np.full(3, 2, np.float16)}
    save_file(half, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    assert read_folder(tmp_path)["w"].read()[0] == 1  # The only variant is read without a request.
    save_file(other, tmp_path / "diffusion_pytorch_model.non_ema.safetensors")
    with pytest.raises(UserError, match=r"holds only variants: fp16, non_ema; choose one"):
        read_folder(tmp_path)
    assert read_folder(tmp_path, variant="non_ema")["w"].read()[0] == 2
    save_file(plain, tmp_path / MODEL)
    assert read_folder(tmp_path)["w"].read()[0] == 0
    assert read_folder(tmp_path, variant="fp16")["w"].dtype == np.float16
    assert read_folder(tmp_path, variant="bf16")["w"].read()[0] == 0
    for file in tmp_path.iterdir():
        file.unlink()
    save_file(half, tmp_path / "model.fp16-00001-of-00001.safetensors")
    (tmp_path / "model.safetensors.index.fp16.json").write_text(
        '{"weight_map": {"w": "model.fp16-00001-of-00001.safetensors"}}'
    )
    assert read_folder(tmp_path, variant="fp16")["w"].read()[0] == 1


def test_pickles_without_pytorch(tmp_path, monkeypatch):
    (tmp_path / "pytorch_model.bin").write_bytes(b"whatever")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle, which only PyTorch can .*xpsr-jax\[torch\]"):
        read_folder(tmp_path)
    with pytest.raises(UserError, match="is a pickle"):
        open_source((tmp_path / "pytorch_model.bin").rename(tmp_path / "model.ckpt"))


@pytest.fixture(scope="module")
def orbax(base, released, tmp_path_factory):
    folder = tmp_path_factory.mktemp("orbax") / "model"
    convert([open_source(base), open_source(released)], folder, to="orbax")
    return folder


def test_orbax_round_trip_keeps_keys_and_bits(orbax, base, released, tmp_path):
    assert not list(orbax.rglob("*.safetensors"))
    convert([open_source(orbax)], tmp_path / "out")
    for source in (base, released):
        for file in source.rglob("*.safetensors"):
            before, after = load_file(file), load_file(tmp_path / "out" / file.relative_to(source))
            assert before.keys() == after.keys()
            assert all(before[key].tobytes() == after[key].tobytes() for key in before)


@pytest.mark.soak
def test_orbax_restores_directly_into_shardings(orbax, base, released, monkeypatch):
    mesh = sharding.make_mesh(Mesh(data=2, fsdp=4))
    expected = load(base, released)

    def unread(*_):
        raise AssertionError("an Orbax checkpoint is restored, not read on the host")

    monkeypatch.setattr(orbax_files, "_read", unread)
    # With a limit of 0, even small parameters are split.
    monkeypatch.setattr(sharding.parameter_shardings, "__kwdefaults__", {"replicated_bytes": 0})
    model = load(orbax, mesh=mesh)
    kernel = model.unet.conv_in.kernel[...]
    assert kernel.sharding.mesh == mesh and not kernel.is_fully_replicated
    for name in ("unet", "controlnet", "autoencoder", "text_encoder"):
        ours, theirs = parameters(getattr(model, name)), parameters(getattr(expected, name))
        assert all(np.array_equal(ours[path][...], theirs[path][...]) for path in theirs)
    half = load_network(UNET, orbax / "unet")
    assert half.conv_in.kernel[...].sharding == jax.sharding.SingleDeviceSharding(jax.devices()[0])


def test_broken_orbax_checkpoints_are_refused(orbax, released, tmp_path):
    shutil.copytree(orbax / "text_encoder", tmp_path / "text_encoder")
    checkpoint = tmp_path / "text_encoder" / "orbax"
    (checkpoint / "_METADATA").write_text("{")
    with pytest.raises(UserError, match=r"orbax is not an Orbax checkpoint, or is incomplete"):
        load_network(TEXT_ENCODER, tmp_path / "text_encoder")
    shutil.rmtree(checkpoint)
    tensors = {
        path: np.full(param.shape, np.nan if "final" in path else 0, np.float32)
        for path, param in parameters(load_network(TEXT_ENCODER, orbax / "text_encoder")).items()
    }
    orbax_files.write(tensors.items(), checkpoint)
    with pytest.raises(UserError, match=r"2 problems:\n  NaN or infinity: in final_layer_norm\.\w+ \(24,\)"):
        load_network(TEXT_ENCODER, tmp_path / "text_encoder")


def test_verification_finds_one_changed_bit(tmp_path):
    tensors = random_tensors(TEXT_ENCODER, TINY_TEXT_ENCODER)
    write_network(TEXT_ENCODER, TINY_TEXT_ENCODER, tensors, tmp_path / "before")
    source = open_folder(TEXT_ENCODER, tmp_path / "before")
    write_network(TEXT_ENCODER, TINY_TEXT_ENCODER, tensors, tmp_path / "after", dtype=jnp.bfloat16)
    verify_network(TEXT_ENCODER, source, tmp_path / "after", dtype=jnp.bfloat16)
    with (tmp_path / "after" / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    with pytest.raises(UserError, match=r"these tensors differ from the source: final_layer_norm"):
        verify_network(TEXT_ENCODER, source, tmp_path / "after", dtype=jnp.bfloat16)


def test_several_broken_networks_are_one_error(released, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(released, source)
    tensors = load_file(source / "unet" / MODEL)
    del tensors["conv_in.bias"]
    save_file(tensors, source / "unet" / MODEL)
    (source / "controlnet" / MODEL).write_bytes((released / "controlnet" / MODEL).read_bytes()[:1000])
    with pytest.raises(UserError) as wrong:
        convert([open_source(source)], tmp_path / "out")
    assert "missing: conv_in.bias (16,)" in str(wrong.value) and "is truncated, corrupt" in str(wrong.value)
    assert not (tmp_path / "out").exists()


# convert_weights.py with a pause of a minute after its first network.
_SLOW = """
import runpy, sys, time
import xpsr_jax.weights.convert as convert

def write(*args, **options):
    write_folder(*args, **options)
    print("written", flush=True)
    time.sleep(60)

write_folder, convert.write_folder = convert.write_folder, write
sys.argv = ["convert_weights.py", *sys.argv[1:]]
runpy.run_path("convert_weights.py", run_name="__main__")
"""


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGKILL, marks=pytest.mark.more), pytest.param(signal.SIGTERM, marks=pytest.mark.soak)],
)
def test_a_killed_conversion_leaves_no_partial_model(number, released, tmp_path):
    """It is killed between two networks. SIGKILL leaves a temporary folder, which the next conversion removes."""
    command = [sys.executable, "-c", _SLOW, str(released), "--output", str(tmp_path / "out")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "written\n"
    assert [path.name for path in tmp_path.iterdir()] != []
    process.send_signal(number)
    process.communicate()
    assert not (tmp_path / "out").exists()
    assert bool(list(tmp_path.iterdir())) == (number == signal.SIGKILL)
    if number == signal.SIGKILL:
        convert([open_source(released)], tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_array_larger_than_the_write_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(orbax_files, "_CONCURRENT_BYTES", 1000)
    arrays = {"large": np.arange(1000, dtype=np.float32), "small": np.ones(3, np.float16)}
    orbax_files.write(arrays.items(), tmp_path / "orbax")
    tensors = orbax_files.read(tmp_path / "orbax")
    assert tensors.keys() == arrays.keys()
    for path, array in arrays.items():
        read = tensors[path].read()
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("name", ["[1]", "*?", "100%"])
def test_orbax_folders_can_have_any_name(name, tmp_path):
    arrays = {"a.b": np.arange(6.0, dtype=np.float32).reshape(2, 3)}
    folder = tmp_path / name / "orbax"
    folder.parent.mkdir()
    orbax_files.write(arrays.items(), folder)
    np.testing.assert_array_equal(orbax_files.read(folder)["a.b"].read(), arrays["a.b"])
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = orbax_files.restore(folder, {"a.b": jax.ShapeDtypeStruct((2, 3), np.float32, sharding=where)})
    np.testing.assert_array_equal(placed["a.b"], arrays["a.b"])
