"""A tiled run of the released code (method §7)."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.golden import error, read, under
from xpsr_jax.diffusion.ddpm import Ddpm
from xpsr_jax.diffusion.guidance import guide
from xpsr_jax.diffusion.samplers import advance
from xpsr_jax.diffusion.schedule import Schedule
from xpsr_jax.inference.tiling import plan_tiles

pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.mark.more
def test_the_released_codes_tiled_run(networks, vectors):
    """12 x 20 cells in six tiles of 8 x 8, two steps with guidance; each tile sees its own part of the LR image."""
    about = json.loads((vectors / "xpsr" / "sampling.json").read_text())["tiled"]
    stored = under("tiled.", read(vectors / "xpsr" / "sampling.safetensors"))
    latents, noises = (jnp.moveaxis(stored[name], -3, -1) for name in ("latents", "step_noise"))
    tiles = plan_tiles(12, 20, size=8, overlap=2)
    crops = jnp.stack(tiles.cut(stored["in.image"][0], scale=8))
    graph, weights = nnx.split(networks)

    @jax.jit
    def predict(weights, parts, timestep):
        """Predicts all tiles together, first with the positive and then with the negative texts."""
        unet, controlnet = nnx.merge(graph, weights)
        features = controlnet.encode_image(crops)

        def half(which):
            high, low = (jnp.repeat(stored[f"in.{kind}_{which}"], len(parts), axis=0) for kind in ("high", "low"))
            timesteps = jnp.full(len(parts), timestep)
            control = controlnet(parts, timesteps, high, low, features, scale=about["conditioning_scale"])
            return unet(parts, timesteps, high, control.residuals, control.mid)

        return guide(half("pos"), half("neg"), scale=about["guidance_scale"], form="released")

    sampler = Ddpm(Schedule())
    table = sampler.table(about["steps"])
    assert list(table.timestep) == about["timesteps"]
    state = sampler.init(jnp.asarray(stored["in.init_latents"]))
    errors = []
    for i, timestep in enumerate(table.timestep):
        parts = predict(weights, np.stack(tiles.cut(np.asarray(state.latents[0]))), timestep)
        blended = jnp.asarray(tiles.blend(list(np.asarray(parts)), "released")[None])
        state = advance(sampler, lambda *_: blended, state, table, lambda _: noises[i], i, i + 1)  # noqa: B023
        errors.append(error(state.latents, latents[i]))
    print(errors)
    assert max(errors) < 5e-5, errors
