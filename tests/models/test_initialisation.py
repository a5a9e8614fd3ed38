"""Initial parameters: PyTorch's defaults, zeros, and the ControlNet's copies of the UNet (method §5)."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xpsr_jax.models.configs import ControlNetConfig, UNetConfig
from xpsr_jax.models.controlnet import initialise_from_unet
from xpsr_jax.models.parameters import parameters, with_parameters
from xpsr_jax.weights import rules
from xpsr_jax.weights.networks import CONTROLNET, UNET, Keys, abstract

pytestmark = pytest.mark.usefixtures("compiled_quickly")

# As deep as the released networks, so that the keys are the same. No width equals the width of the text embeddings.
DEEP = UNetConfig(block_out_channels=(4, 8, 16, 16), cross_attention_dim=6, attention_head_dim=2, norm_num_groups=2)
EMBEDDING = (2, 4, 4, 6)


@pytest.fixture(scope="module")
def rule(vectors):
    """The released code's initialisation of every key: "copy:<key of the UNet>", "zeros" or "default"."""
    return json.loads((vectors / "keys_full.json").read_text())["init_at_training_start"]


@pytest.mark.parametrize(
    "config",
    [DEEP, dataclasses.replace(DEEP, attention_head_dim=(1, 2, 4, 4), use_linear_projection=True)],
    ids=["sd15", "sd21"],
)
def test_copies_of_the_unet(config, rule):
    """Every parameter of both networks gets a different value. The copy changes it to its twin's, or not at all."""

    def filled(network, config, sign, **options):
        module = abstract(network, config, **options)
        shapes = {path: leaf.shape for path, leaf in parameters(module).items()}
        return with_parameters(module, {p: jnp.full(s, sign * (i + 1.0)) for i, (p, s) in enumerate(shapes.items())})

    def values(module):
        return {rules.torch_key(path): np.unique(leaf[...]) for path, leaf in parameters(module).items()}

    unet = filled(UNET, config, 1)
    controlnet_config = ControlNetConfig.like_unet(config, conditioning_embedding_out_channels=EMBEDDING)
    controlnet = filled(CONTROLNET, controlnet_config, -1, with_constraint_heads=True)
    source, before = values(unet), values(controlnet)
    initialise_from_unet(controlnet, unet)
    after = values(controlnet)
    assert after.keys() == rule["controlnet"].keys()
    for key, start in rule["controlnet"].items():
        expected = source[start.removeprefix("copy:")] if start.startswith("copy:") else before[key]
        np.testing.assert_array_equal(after[key], expected, err_msg=key)
    for key, value in values(unet).items():
        np.testing.assert_array_equal(value, source[key], err_msg=f"the UNet's own {key}")


@pytest.fixture(scope="module")
def fresh():
    """New parameters by path: all of a ControlNet, and those of a UNet's Conditional Attention."""
    unet = UNetConfig(
        block_out_channels=(16,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=24,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    controlnet = ControlNetConfig.like_unet(unet, conditioning_embedding_out_channels=(8, 16))

    @jax.jit
    def make(key):
        unet_parameters = parameters(UNET.module(unet, rngs=Keys(key)))
        module = CONTROLNET.module(controlnet, rngs=Keys(key), with_constraint_heads=True)
        return {
            "unet": {path: leaf[...] for path, leaf in unet_parameters.items() if ".pixel_attentions." in path},
            "controlnet": {path: leaf[...] for path, leaf in parameters(module).items()},
        }

    # JAX's default generator takes three times as long to compile for hundreds of tensors.
    return jax.device_get(make(jax.random.key(0, impl="unsafe_rbg")))


def test_the_same_parameters_are_zero_as_in_the_released_code(fresh, rule):
    """The biases of norms are not considered; they are always zero."""
    made = fresh["controlnet"]
    norms = {path for path in made if path.removesuffix("bias") + "scale" in made}
    zeros = {rules.torch_key(path) for path, value in made.items() if path not in norms and not value.any()}
    assert zeros == {key for key in map(rules.torch_key, made) if rule["controlnet"][key] == "zeros"}


@pytest.mark.parametrize("name", ["unet", "controlnet"])
def test_pytorch_defaults(name, fresh):
    """Kernels and biases are uniform in ±1/√fan_in, with the kernel's fan-in. Norms start as the identity."""
    checked = 0
    for path, value in fresh[name].items():
        layer, _, leaf = path.rpartition(".")
        kernel = fresh[name].get(f"{layer}.kernel")
        if kernel is None:
            assert np.unique(value).tolist() == [{"scale": 1.0, "bias": 0.0}[leaf]], path
            continue
        if not kernel.any():  # zero convolutions: the test above
            continue
        bound = 1 / math.sqrt(math.prod(kernel.shape[:-1]))
        assert np.abs(value).max() <= bound, path
        if value.size >= 256:
            # The largest draw is almost certainly above 0.95 of the bound, and the standard deviation is bound/√3.
            assert np.abs(value).max() > 0.95 * bound, path
            assert abs(value.std() * math.sqrt(3) / bound - 1) < 0.15, path
            assert abs(value.mean()) < 0.15 * bound, path
        checked += 1
    assert checked > 20
    kernels = [value.tobytes() for path, value in fresh[name].items() if path.endswith(".kernel") and value.any()]
    assert len(set(kernels)) == len(kernels)  # no two layers draw the same numbers


def test_conditional_attention_does_not_start_at_zero(fresh):
    """So Conditional Attention changes the UNet's output from the first step, as in the released code (method §5)."""
    parts = [path for path in fresh["unet"] if ".pixel_attentions." in path and path.endswith("proj_out.kernel")]
    assert len(parts) == 2
    assert all(fresh["unet"][path].any() for path in parts)
