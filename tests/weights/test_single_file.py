"""Stable Diffusion in one file, versions 1 and 2: every tensor gets its current name; unknown tensors are an error."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.weights.conftest import random_tensors
from tests.weights.ldm import single_file
from xpsr_jax.errors import UserError
from xpsr_jax.models.configs import AutoencoderConfig, TextEncoderConfig, UNetConfig
from xpsr_jax.weights.convert import convert
from xpsr_jax.weights.networks import AUTOENCODER, TEXT_ENCODER, UNET
from xpsr_jax.weights.single_file import read_single_file, read_tensors
from xpsr_jax.weights.sources import open_source

WIDTHS = (64, 128)
UNET_1 = UNetConfig(
    block_out_channels=WIDTHS,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=2,
    cross_attention_dim=64,
    conditional_attention=False,
)
AUTOENCODER_CONFIG = AutoencoderConfig(
    block_out_channels=(32, 64),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    layers_per_block=1,
)
TEXT_1 = TextEncoderConfig(
    vocab_size=40, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1
)
CONFIGS = {
    1: {"unet": UNET_1, "autoencoder": AUTOENCODER_CONFIG, "text_encoder": TEXT_1},
    2: {
        "unet": dataclasses.replace(UNET_1, use_linear_projection=True, attention_head_dim=(1, 2)),
        "autoencoder": AUTOENCODER_CONFIG,
        "text_encoder": dataclasses.replace(TEXT_1, hidden_act="gelu"),
    },
}
NETWORKS = {"unet": UNET, "autoencoder": AUTOENCODER, "text_encoder": TEXT_ENCODER}


def make(version):
    """The networks' tensors with their current names, and the tensors of the single file."""
    current = {name: random_tensors(NETWORKS[name], config) for name, config in CONFIGS[version].items()}
    file = single_file(*current.values(), version=version, layers=2, attended_up={1}, levels=2)
    return current, file


@pytest.mark.parametrize("version", [1, 2])
def test_every_tensor_and_setting(version, tmp_path):
    current, file = make(version)
    save_file({key: np.ascontiguousarray(array) for key, array in file.items()}, tmp_path / "model.safetensors")
    content = read_single_file(tmp_path / "model.safetensors", read_tensors(tmp_path / "model.safetensors"))
    assert content.version == version
    for name, (config, _) in content.networks.items():
        expected = CONFIGS[version][name]
        read = NETWORKS[name].config.from_json(config)
        assert dataclasses.replace(read, **({"conditional_attention": False} if name == "unet" else {})) == expected
    done = convert([open_source(tmp_path / "model.safetensors")], tmp_path / "out")
    missing = {1: ("controlnet",), 2: ("controlnet", "tokenizer", "scheduler")}
    assert done.missing == missing[version]
    for name, tensors in current.items():
        network = NETWORKS[name]
        written = load_file(tmp_path / "out" / network.subfolder / f"{network.stem}.safetensors")
        assert written.keys() == tensors.keys()
        assert all(np.array_equal(written[key], tensors[key]) for key in tensors)


def test_the_moving_average_of_the_unet(tmp_path):
    current, file = make(1)
    save_file({key: np.ascontiguousarray(array) for key, array in file.items()}, tmp_path / "model.safetensors")
    _, averaged = read_single_file(
        tmp_path / "model.safetensors", read_tensors(tmp_path / "model.safetensors"), ema=True
    ).networks["unet"]
    assert all(np.array_equal(averaged[key].read(), array + np.float32(1)) for key, array in current["unet"].items())
    save_file(
        {k: np.ascontiguousarray(a) for k, a in file.items() if "model_ema" not in k}, tmp_path / "model.safetensors"
    )
    with pytest.raises(UserError, match="has no moving average of its UNet: no model_ema"):
        read_single_file(tmp_path / "model.safetensors", read_tensors(tmp_path / "model.safetensors"), ema=True)


def test_incomplete_and_unknown_content_is_refused(tmp_path):
    _, file = make(2)
    fused = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias"

    def refused(change, *messages):
        broken = dict(file)
        change(broken)
        save_file({key: np.ascontiguousarray(array) for key, array in broken.items()}, tmp_path / "model.safetensors")
        with pytest.raises(UserError) as error:
            convert([open_source(tmp_path / "model.safetensors")], tmp_path / "out")
        assert all(message in str(error.value) for message in messages), str(error.value)
        assert not (tmp_path / "out").exists()

    refused(lambda f: f.update({"control_model.x": np.zeros(1, np.float32)}), "an unknown network: control_model.x")
    refused(lambda f: f.update({"conditioner.embedders.0.x": np.zeros(1, np.float32)}), "Stable Diffusion XL")

    # Problems in several networks at once, with the names in the file.
    def several(f):
        f["model.diffusion_model.out.2.bias"] = np.zeros(7, np.float32)
        f["first_stage_model.encoder.extra.weight"] = np.zeros(2, np.float32)
        f[fused] = np.full_like(f[fused], np.nan)
        del f["cond_stage_model.model.ln_final.bias"]

    refused(
        several,
        "wrong shape: model.diffusion_model.out.2.bias (current name conv_out.bias) is (7,), expected (4,)",
        "unknown: first_stage_model.encoder.extra.weight",
        "missing: text_model.final_layer_norm.bias (64,)",
        f"NaN or infinity: in {fused}",
    )
    # NaN in a network with correct names and shapes, together with a wrong name in another network.
    refused(
        lambda f: f.update({fused: np.full_like(f[fused], np.nan), "first_stage_model.x": np.zeros(2, np.float32)}),
        f"NaN or infinity: in {fused}",
        "unknown: first_stage_model.x",
    )
    refused(
        lambda f: [f.pop(key) for key in list(f) if key.startswith("model.")], "is not a Stable Diffusion checkpoint"
    )
