"""Activations inside the released networks, module by module. An error here shows in which module it begins."""

import jax.numpy as jnp
import pytest

from tests.marks import marked_more
from tests.models.golden import error, read
from xpsr_jax.models.layers import timestep_embedding

pytestmark = pytest.mark.usefixtures("compiled_quickly")

WHERE_OURS_DIFFER = {
    # Our up blocks return before the resize, because only the UNet knows its size.
    "unet.up_blocks.0": "unet.up_blocks.0.upsamplers.0",
    "unet.up_blocks.1": "unet.up_blocks.1.upsamplers.0",
    "unet.up_blocks.2": "unet.up_blocks.2.upsamplers.0",
}


def test_sinusoidal_time_embedding(vectors):
    taps = read(vectors / "xpsr" / "taps_B.safetensors")
    for name in ("unet.time_proj", "controlnet.time_proj"):
        assert error(timestep_embedding(jnp.array([501, 501]), 16), taps[name]) <= 1e-6  # measured: 0.1e-6


@pytest.mark.parametrize("network", marked_more(["controlnet", "unet"], ["controlnet"]))
def test_activations(network, forward, vectors):
    taps = read(vectors / "xpsr" / "taps_B.safetensors")
    names = [name for name in taps if name.startswith(network) and not name.endswith(".time_proj")]
    assert len(names) == {"controlnet": 12, "unet": 22}[network]
    _, ours = forward("B")
    errors = {name: error(ours[WHERE_OURS_DIFFER.get(name, name)], taps[name]) for name in names}
    assert {name: value for name, value in errors.items() if not value <= 2e-5} == {}  # measured: 6.0e-6
