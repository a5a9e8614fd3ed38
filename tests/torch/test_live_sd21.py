"""Compares networks like Stable Diffusion 2.1's with the installed PyTorch libraries.

Names are compared at full size, numbers with small networks.
"""

import json

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

import xpsr_jax
from tests.models.golden import VECTORS, assert_close, channels_last, under
from tests.models.test_sd21 import STOCK, run_small, summary
from tests.vectors.make_sd21_vectors import make, released_key
from tests.vectors.make_stock_vectors import write_component


def config(name):
    return json.loads((VECTORS / "sd21" / name / "config.json").read_text())


def test_full_size_keys_and_shapes_equal_the_libraries():
    """The libraries give the keys and shapes that tests/models/test_sd21.py has for the same config.json files."""
    unet = config("unet")
    shared = ("attention_head_dim", "cross_attention_dim", "upcast_attention", "use_linear_projection")
    with torch.device("meta"):
        models = {
            "unet": UNet2DConditionModel.from_config(unet),
            "controlnet": ControlNetModel(**{name: unet[name] for name in shared}),
            "vae": AutoencoderKL.from_config(config("vae")),
            "text_encoder": CLIPTextModel(CLIPTextConfig.from_dict(config("text_encoder"))),
        }
    for name, model in models.items():
        prefix = "text_model." if name == "text_encoder" else ""
        assert summary({prefix + key: tuple(value.shape) for key, value in model.state_dict().items()}) == STOCK[name]


def test_xpsr_with_other_settings(tmp_path):
    """Three levels with different head sizes and two layers each, and an odd number of text channels."""
    changes = {"layers_per_block": 2, "attention_head_dim": [2, 1, 8], "cross_attention_dim": 7}
    controlnet, unet, io = make((1, 4, 4, 8), seed=3, **changes)
    write_component(controlnet, tmp_path / "controlnet", released_key)
    write_component(unet, tmp_path / "unet", released_key)
    io = {name: channels_last(tensor.float().numpy()) for name, tensor in io.items()}
    inputs = under("in.", io) | {"timesteps": io["in.timesteps"].astype("int32")}
    assert_close(run_small(*xpsr_jax.load_networks(tmp_path), **inputs), under("out.", io), 1e-4)
