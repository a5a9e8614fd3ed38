"""XPSR on another Stable Diffusion 1.5: trained tensors are kept, frozen ones replaced, other models refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.weights.conftest import random_tensors, write_network
from tests.weights.ldm import single_file
from tests.weights.test_single_file import AUTOENCODER_CONFIG, TEXT_1, UNET_1
from xpsr_jax.cli.convert import Arguments, convert_weights
from xpsr_jax.errors import UserError
from xpsr_jax.models.configs import ControlNetConfig
from xpsr_jax.training.conversion import convert
from xpsr_jax.weights.networks import AUTOENCODER, CONTROLNET, TEXT_ENCODER, UNET
from xpsr_jax.weights.other_base import with_other_base
from xpsr_jax.weights.sources import open_source

OURS = dataclasses.replace(UNET_1, conditional_attention=True)
CONTROL = ControlNetConfig.like_unet(UNET_1, conditioning_embedding_out_channels=(4, 8))
MODEL = "diffusion_pytorch_model.safetensors"


def is_trained(key: str) -> bool:
    return ".pixel_attentions." in key


@pytest.fixture(scope="module")
def xpsr(tmp_path_factory) -> Path:
    """XPSR's own checkpoint, and the autoencoder that it was trained with."""
    folder = tmp_path_factory.mktemp("xpsr")
    write_network(UNET, OURS, random_tensors(UNET, OURS), folder / "unet")
    write_network(CONTROLNET, CONTROL, random_tensors(CONTROLNET, CONTROL), folder / "controlnet")
    vae = random_tensors(AUTOENCODER, AUTOENCODER_CONFIG)
    write_network(AUTOENCODER, AUTOENCODER_CONFIG, vae, folder / "vae")
    return folder


@pytest.fixture(scope="module")
def others() -> dict[str, dict[str, np.ndarray]]:
    """The tensors of another Stable Diffusion model, by network."""
    networks = {
        "unet": (UNET, UNET_1),
        "vae": (AUTOENCODER, AUTOENCODER_CONFIG),
        "text_encoder": (TEXT_ENCODER, TEXT_1),
    }
    return {name: {k: a + 1 for k, a in random_tensors(*each).items()} for name, each in networks.items()}


@pytest.fixture(scope="module", params=["folder", "single file", "unet alone"])
def other(request, others, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    if request.param == "single file":
        tensors = single_file(*others.values(), version=1, layers=2, attended_up={1}, levels=2)
        save_file({key: np.ascontiguousarray(array) for key, array in tensors.items()}, folder / "style.safetensors")
        return folder / "style.safetensors"
    write_network(UNET, UNET_1, others["unet"], folder / "unet")
    if request.param == "folder":
        write_network(AUTOENCODER, AUTOENCODER_CONFIG, others["vae"], folder / "vae")
        write_network(TEXT_ENCODER, TEXT_1, others["text_encoder"], folder / "text_encoder")
        return folder
    return folder / "unet"


def written(folder: Path, name: str) -> dict[str, np.ndarray]:
    return load_file(next((folder / name).glob("*.safetensors")))


def test_frozen_tensors_are_replaced_and_trained_ones_kept(xpsr, other, others, tmp_path, capsys):
    convert_weights(Arguments((xpsr,), tmp_path / "out", base_unet=other))
    unet, before = written(tmp_path / "out", "unet"), written(xpsr, "unet")
    assert unet.keys() == before.keys() and sum(map(is_trained, unet)) > 20
    for key, value in unet.items():
        assert value.tobytes() == (before if is_trained(key) else others["unet"])[key].tobytes(), key
    for name in ("controlnet", "unet"):
        config = f"{name}/config.json"
        assert (tmp_path / "out" / config).read_bytes() == (xpsr / config).read_bytes()
    controlnet, kept = written(tmp_path / "out", "controlnet"), written(xpsr, "controlnet")
    assert all(controlnet[key].tobytes() == value.tobytes() for key, value in kept.items())
    whole = other.name != "unet"
    vae = others["vae"] if whole else written(xpsr, "vae")
    assert all(vae[key].tobytes() == value.tobytes() for key, value in written(tmp_path / "out", "vae").items())
    assert (tmp_path / "out" / "text_encoder").is_dir() == whole
    if whole:
        text = written(tmp_path / "out", "text_encoder")
        assert all(others["text_encoder"][key].tobytes() == value.tobytes() for key, value in text.items())
    taken = "unet/, vae/, text_encoder/" if whole else "unet/"
    said = capsys.readouterr().out
    assert f"frozen tensors of {other}: " in said and f"trained ones kept; replaced: {taken}\n" in said


@pytest.mark.soak
def test_with_lora_verified(xpsr, others, tmp_path):
    write_network(UNET, UNET_1, others["unet"], tmp_path / "other" / "unet")
    module, rng = "mid_block_attentions_0_proj_in", np.random.default_rng(0)
    width = UNET_1.block_out_channels[-1]
    lora = {f"lora_unet_{module}.lora_down.weight": rng.standard_normal((2, width, 1, 1), np.float32)}
    lora |= {f"lora_unet_{module}.lora_up.weight": rng.standard_normal((width, 2, 1, 1), np.float32)}
    save_file(lora, tmp_path / "lora.safetensors")
    options = dict(base_unet=tmp_path / "other", lora=(f"{tmp_path}/lora.safetensors:0.5",), verify=True)
    convert_weights(Arguments((xpsr,), tmp_path / "out", **options))
    key = "mid_block.attentions.0.proj_in.weight"
    down, up = (value[:, :, 0, 0] for value in lora.values())
    expected = others["unet"][key] + 0.5 * (up @ down)[..., None, None]
    np.testing.assert_allclose(written(tmp_path / "out", "unet")[key], expected, rtol=0, atol=1e-5)


def test_another_xpsr_may_be_the_base(xpsr, tmp_path):
    """The other model's Conditional Attention is not used."""
    shutil.copytree(xpsr, tmp_path / "other")
    tensors = {key: value + 1 for key, value in written(xpsr, "unet").items()}
    save_file(tensors, tmp_path / "other" / "unet" / MODEL)
    merged = with_other_base(open_source(xpsr), tmp_path / "other").networks["unet"]().tensors
    before = written(xpsr, "unet")
    for key, tensor in merged.items():
        assert np.array_equal(tensor.read(), before[key] if is_trained(key) else tensors[key])


def test_other_kinds_are_refused_by_name(xpsr, others, tmp_path):
    def refused(path: Path, match: str, source: Path = xpsr) -> None:
        with pytest.raises(UserError, match=match):
            convert([source], tmp_path / "out", base_unet=path)
        assert not (tmp_path / "out").exists()

    def folder(**changed) -> Path:
        """Stable Diffusion with another config.json."""
        path = tmp_path / "-".join(map(str, changed.values())).replace("[", "").replace(", ", "_")
        write_network(UNET, UNET_1, others["unet"], path / "unet")
        config = UNET_1.to_json() | changed
        (path / "unet" / "config.json").write_text(json.dumps(config))
        return path

    def file(name: str, **changed: np.ndarray) -> Path:
        tensors = single_file(*others.values(), version=1, layers=2, attended_up={1}, levels=2)
        tensors |= {key.replace("__", "."): value for key, value in changed.items()}
        save_file({key: np.ascontiguousarray(array) for key, array in tensors.items()}, tmp_path / name)
        return tmp_path / name

    nine = {"model.diffusion_model.input_blocks.0.0.weight": np.zeros((64, 9, 3, 3), np.float32)}
    refused(
        file("inpainting.safetensors", **nine), r"inpainting\.safetensors is an inpainting model: .* 9 input channels"
    )
    refused(folder(in_channels=9), "is an inpainting model")
    refused(folder(in_channels=8), "is an InstructPix2Pix model")
    refused(folder(in_channels=5), "is not Stable Diffusion 1.5: its UNet has 5 input channels")
    embedder = {"conditioner.embedders.0.x": np.zeros(1, np.float32)}
    refused(file("xl.safetensors", **embedder), r"xl\.safetensors is Stable Diffusion XL")
    label = {"model.diffusion_model.label_emb.0.0.weight": np.zeros((2, 2), np.float32)}
    refused(file("xl_unet.safetensors", **label), r"xl_unet\.safetensors is Stable Diffusion XL")
    refused(folder(addition_embed_type="text_time"), "is Stable Diffusion XL")
    refused(folder(cross_attention_dim=2048), "is Stable Diffusion XL")
    refused(
        folder(cross_attention_dim=1024),
        r"not the kind of model .* trained on \(like Stable Diffusion 2\): .*cross_attention_dim 1024",
    )
    refused(folder(block_out_channels=[64, 64]), r"block_out_channels \(64, 64\) instead of \(64, 128\)")
    refused(folder(attention_head_dim=4), r"heads \(4, 4\) instead of \(8, 8\)")
    refused(xpsr / "vae", r"has no unet/, which --base-unet needs; it has vae/")
    refused(tmp_path / "nowhere", "nowhere does not exist")
    refused(folder(sample_size=32), "name XPSR's folder as a source", source=xpsr / "vae")
    refused(xpsr, "has no Conditional Attention", source=folder(sample_size=16))
    text = dataclasses.replace(TEXT_1, num_hidden_layers=1)
    shutil.copytree(folder(sample_size=8), tmp_path / "deeper")
    write_network(TEXT_ENCODER, text, random_tensors(TEXT_ENCODER, text), tmp_path / "deeper" / "text_encoder")
    shutil.copytree(xpsr, tmp_path / "whole")
    write_network(TEXT_ENCODER, TEXT_1, others["text_encoder"], tmp_path / "whole" / "text_encoder")
    refused(
        tmp_path / "deeper", "its text_encoder/ differs from .* num_hidden_layers 1 instead of 2", tmp_path / "whole"
    )


def test_the_other_model_is_not_overwritten(xpsr, others, tmp_path):
    write_network(UNET, UNET_1, others["unet"], tmp_path / "other" / "unet")
    with pytest.raises(UserError, match="would replace the source"):
        convert([xpsr], tmp_path / "other", base_unet=tmp_path / "other", overwrite=True)
