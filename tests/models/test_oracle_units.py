"""Single modules of the released networks on inputs of 1e-3, where the norms' epsilons have an effect (method §2)."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests.models.golden import error, read, under
from xpsr_jax.models.layers import timestep_embedding

PATHS = {
    "resnet": "controlnet.down_blocks.1.resnets.0",
    "low-level transformer": "controlnet.down_blocks.1.attentions_lowlevel.0",
    "fusion transformer": "controlnet.down_blocks.1.attentions_connect.0",
    "conditional attention": "unet.up_blocks.3.pixel_attentions.0",
    "group norm": "unet.conv_norm_out",
}


def module(networks, path):
    name, _, inside = path.partition(".")
    children = {".".join(map(str, where)): child for where, child in nnx.iter_modules(networks[name == "controlnet"])}
    return children[inside]


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_module(path, networks, vectors):
    tensors = under(f"{path}.", read(vectors / "xpsr" / "units.safetensors"))
    expected = tensors.pop("out")
    output = nnx.jit(lambda unit, *args: unit(*args))(module(networks, path), tensors.pop("in.x"), *tensors.values())
    assert error(output, expected) <= 5e-6  # measured: 1.6e-6


def test_time_embedding(networks, vectors):
    tensors = under("unet.time_embedding.", read(vectors / "xpsr" / "units.safetensors"))
    embed = nnx.jit(lambda unit, t: unit(timestep_embedding(t, 16)))
    output = embed(module(networks, "unet.time_embedding"), jnp.asarray(tensors["in.timesteps"]))
    assert error(jax.device_get(output), tensors["out"]) <= 5e-6  # measured: 0.6e-6
