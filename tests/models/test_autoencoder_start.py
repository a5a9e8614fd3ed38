"""The initialisation with which a small autoencoder learns quickly: its changes, and the effect of its key."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xpsr_jax.models.autoencoder import initialise_near_linear
from xpsr_jax.models.configs import AutoencoderConfig
from xpsr_jax.models.parameters import parameters, with_parameters
from xpsr_jax.weights.networks import AUTOENCODER, abstract

TINY = AutoencoderConfig(
    latent_channels=2,
    block_out_channels=(4, 8),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    layers_per_block=1,
    norm_num_groups=1,
)
# The last layer of every residual branch: of ten resnets and two attentions.
BRANCH_ENDS = ("conv2", "to_out")
# Layers that add a bias to the main path: those ten resnets, two conv_in, two shortcuts, a downsampler, an upsampler.
MAIN_PATH = ("conv_in", "conv_shortcut", "conv2", "downsamplers.0.conv", "upsamplers.0.conv")


@pytest.fixture(scope="module")
def autoencoder():
    """An autoencoder with random parameters. Initialising one would compile for longer than these tests run."""
    module = abstract(AUTOENCODER, TINY)
    rng = np.random.default_rng(0)
    filled = {path: rng.uniform(0.01, 1, leaf.shape).astype(np.float32) for path, leaf in parameters(module).items()}
    return with_parameters(module, {path: jnp.asarray(value) for path, value in filled.items()})


@pytest.fixture(scope="module")
def before(autoencoder):
    return values(autoencoder)


@pytest.fixture(scope="module")
def start(autoencoder):
    """`start(seed)` gives every parameter after `initialise_near_linear` with this key."""

    def make(seed):
        module = nnx.clone(autoencoder)
        initialise_near_linear(module, jax.random.key(seed))
        return values(module)

    return make


@pytest.fixture(scope="module")
def after(start):
    return start(1)


def values(module):
    return {path: np.asarray(param[...]) for path, param in parameters(module).items()}


def ending(parameters, modules, leaf):
    return [path for path in parameters if path.endswith(tuple(f".{module}.{leaf}" for module in modules))]


def test_residual_branches_start_at_a_tenth_and_other_convolutions_keep_their_inputs_scale(before, after):
    ends = ending(before, BRANCH_ENDS, "kernel")
    assert len(ends) == 12
    for path in ends:
        np.testing.assert_allclose(after[path], 0.1 * before[path], rtol=2e-7, err_msg=path)  # 1.2e-7
    # New kernels have variance 1 / (3 fan_in) (test_initialisation.py). With 1 / fan_in they keep the scale.
    for path in {path for path in before if before[path].ndim == 4} - set(ends):
        np.testing.assert_allclose(after[path], math.sqrt(3) * before[path], rtol=2e-7, err_msg=path)  # 1.2e-7


def test_biases_of_the_main_path_are_spread_over_half_a_unit(before, after):
    biases = ending(before, MAIN_PATH, "bias")
    assert len(biases) == 16
    drawn = np.concatenate([after[path] for path in biases])
    assert np.abs(drawn).max() <= 0.5
    assert len(np.unique(drawn)) == len(drawn)
    np.testing.assert_allclose(np.quantile(drawn, (0.1, 0.5, 0.9)), (-0.4, 0, 0.4), atol=0.1)


def test_all_other_parameters_are_unchanged(before, after):
    assert after.keys() == before.keys()
    changed = {path for path in before if not np.array_equal(after[path], before[path])}
    kernels = {path for path in before if before[path].ndim == 4} | set(ending(before, BRANCH_ENDS, "kernel"))
    assert changed == kernels | set(ending(before, MAIN_PATH, "bias"))


def test_the_key_changes_only_the_biases(before, after, start):
    again, other = start(1), start(2)
    for path in before:
        np.testing.assert_array_equal(after[path], again[path], err_msg=path)
    differ = {path for path in before if not np.array_equal(after[path], other[path])}
    assert differ == set(ending(before, MAIN_PATH, "bias"))
