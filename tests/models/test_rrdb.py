"""The first stage's network equals spandrel's (tests/vectors/README.md), and its receptive field."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.golden import channels_last, error
from tests.weights.esrgan_files import tensors_of, write
from xpsr_jax.errors import UserError
from xpsr_jax.models.first_stage_config import RRDBNetConfig
from xpsr_jax.models.layers import Compute
from xpsr_jax.models.rrdb import RRDBNet
from xpsr_jax.weights.networks import FIRST_STAGE, Keys, load_network
from xpsr_jax.weights.sources import open_source

CASES = {
    "x4": RRDBNetConfig(4, 1, 32, 4, 1),
    "x2": RRDBNetConfig(4, 1, 32, 2, 2),
    "x1": RRDBNetConfig(4, 1, 32, 1, 4),
    "x2_plain": RRDBNetConfig(4, 1, 32, 2, 1),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_spandrel(case, tmp_path):
    """Some of the sizes are not multiples of `unshuffle`."""
    tensors = tensors_of(case)
    source = open_source(write(tensors, "first", tmp_path))
    network = load_network(FIRST_STAGE, source.networks["first_stage"]())
    assert network.config == CASES[case]
    image, expected = (jnp.asarray(channels_last(tensors[name])) for name in ("in", "out"))
    assert error(jax.jit(lambda image: network(image))(image), np.asarray(expected)) < 2e-6  # measured at most 7e-7
    half = load_network(
        FIRST_STAGE, source.networks["first_stage"](), compute=Compute(jnp.bfloat16, param_dtype=jnp.bfloat16)
    )
    computed = jax.jit(lambda image: half(image))(image)
    assert computed.dtype == jnp.float32 and error(computed, np.asarray(expected)) < 0.08  # 0.061


@pytest.mark.more
@pytest.mark.parametrize("config", [RRDBNetConfig(2, 1, 2, 4, 1), RRDBNetConfig(2, 2, 2, 2, 2)])
def test_pixels_beyond_its_reach_have_no_effect(config):
    network = RRDBNet(config, rngs=Keys(jax.random.key(0)))
    side = 2 * config.reach + 4 * config.unshuffle
    image = jax.random.uniform(jax.random.key(1), (1, 2 * config.unshuffle, side, 3))
    column = config.scale * (side // 2)
    gradient = jax.jit(jax.grad(lambda image: network(image)[:, :, column].sum()))(image)
    first, *_, last = np.flatnonzero(np.abs(gradient).sum((0, 1, 3)))
    assert config.reach - 2 * config.unshuffle <= side // 2 - first <= config.reach
    assert config.reach - 2 * config.unshuffle <= last - side // 2 <= config.reach


def test_impossible_sizes_are_refused():
    with pytest.raises(UserError, match="more than three doublings"):
        RRDBNetConfig(scale=8, unshuffle=2)
    with pytest.raises(UserError, match="blocks"):
        RRDBNetConfig(blocks=10**9)
