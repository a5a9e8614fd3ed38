"""The settings in `Compute` change a network's results only by rounding."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests.models.golden import VECTORS, error, read
from xpsr_jax.models.layers import Compute
from xpsr_jax.models.parameters import parameters
from xpsr_jax.weights.networks import UNET, load_network, read_config

pytestmark = pytest.mark.usefixtures("compiled_quickly")

FOLDER = VECTORS / "stock" / "unet_two_levels"
INPUTS = ("in.latents", "in.timesteps", "in.high")


@pytest.fixture(scope="module")
def io():
    return read(FOLDER / "io.safetensors")


def load(**compute):
    config = dataclasses.replace(read_config(UNET, FOLDER), conditional_attention=False)
    return load_network(UNET, FOLDER, config=config, compute=Compute(**compute))


def test_bfloat16(io):
    """Parameters and activations are bfloat16. The result is float32 and close to the expected one."""
    unet = load(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    assert {leaf[...].dtype for leaf in parameters(unet).values()} == {jnp.dtype(jnp.bfloat16)}
    output = nnx.jit(lambda unet, *args: unet(*args))(unet, *(io[key] for key in INPUTS))
    assert output.dtype == jnp.float32
    assert 1e-4 < error(output, io["out.prediction"]) < 1e-1  # measured: 5.3e-2


@pytest.fixture(scope="module")
def differentiated(io):
    """For a network without and with remat: the gradient, the stored numbers, and the number of convolutions."""
    inputs = [jnp.asarray(io[key]) for key in INPUTS]

    def of(remat):
        graph, state = nnx.split(load(remat=remat, attention="two_pass"))
        loss = lambda state: jnp.mean(nnx.merge(graph, state)(*inputs) ** 2)  # noqa: E731
        # The backward pass stores what the vjp closes over. (XLA's memory figure for a CPU does not show remat.)
        kept = jax.eval_shape(lambda state: jax.vjp(loss, state)[1], state)
        gradient = jax.jit(jax.grad(loss))
        products = gradient.lower(state).as_text().count("stablehlo.convolution")
        return gradient(state), sum(leaf.size for leaf in jax.tree.leaves(kept)), products

    return of(False), of(True)


@pytest.mark.soak
def test_remat_changes_no_gradient_and_keeps_fewer_activations(differentiated):
    (plain, plain_kept, products), (remat, remat_kept, remat_products) = differentiated
    for one, other in zip(jax.tree.leaves(remat), jax.tree.leaves(plain), strict=True):
        assert error(one, other) <= 1e-4  # measured: 1.1e-5
    parameter_count = sum(leaf.size for leaf in jax.tree.leaves(plain))
    assert remat_kept - parameter_count < 0.25 * (plain_kept - parameter_count)  # measured 0.242
    assert products == remat_products  # no convolution is recomputed
