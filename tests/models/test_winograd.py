"""Convolutions by Winograd's algorithm equal normal convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.golden import error
from xpsr_jax.models import winograd
from xpsr_jax.models.layers import Compute, conv
from xpsr_jax.models.winograd import WinogradConv, transform_kernel, winograd_conv, with_winograd


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1)])
@pytest.mark.parametrize("tiles", [512, 8], ids=["whole", "strips"])
def test_equals_the_convolution(size, tiles, monkeypatch):
    monkeypatch.setattr(winograd, "TILES", tiles)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *size, 320), np.float32)
    kernel = rng.standard_normal((3, 3, 320, 64), np.float32)
    expected = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert error(winograd_conv(jnp.asarray(x), transform_kernel(kernel)), expected) <= 1e-5  # measured: 3.4e-6


@pytest.mark.more
def test_a_network_uses_it_where_it_is_faster(monkeypatch):
    monkeypatch.setattr(winograd, "FEATURES", 8)
    rngs, compute = nnx.Rngs(0), Compute()
    network = nnx.List(
        [
            conv(8, 16, compute=compute, rngs=rngs),
            conv(8, 16, 1, compute=compute, rngs=rngs),
            conv(8, 8, stride=2, compute=compute, rngs=rngs),
            conv(4, 8, compute=compute, rngs=rngs),
        ]
    )
    before = [module.kernel for module in network]
    fast = with_winograd(network)
    assert [type(module) for module in fast] == [WinogradConv, nnx.Conv, nnx.Conv, nnx.Conv]
    assert fast[0].kernel.shape == (16, 8, 16)
    x = jax.random.normal(jax.random.key(0), (1, 6, 6, 8))
    assert error(fast[0](x), network[0](x)) <= 3e-6  # measured: 1.3e-6
    # The given network is unchanged and shares its parameters with the new one.
    assert all(type(module) is nnx.Conv for module in network)
    assert [module.kernel for module in network] == before
    assert all(new.kernel is kernel for new, kernel in zip(fast[1:], before[1:], strict=True))
