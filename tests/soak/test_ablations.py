"""Every variant of configs/ablations.py: two steps with small networks, and the full-size step with shapes only."""

import dataclasses

import jax
import numpy as np
import pytest

from configs.ablations import VARIANTS
from tests.marks import marked_long
from tests.training import tiny
from xpsr_jax import sharding
from xpsr_jax.config import Images, Mesh, load_config
from xpsr_jax.data.pipeline import make_pipeline
from xpsr_jax.models.configs import ControlNetConfig, UNetConfig
from xpsr_jax.training.export import tokenizer_of
from xpsr_jax.training.images import open_images
from xpsr_jax.training.plan import make_plan

EVERYTHING = ("unet", "controlnet", "autoencoder", "text_encoder")
# One down block with attention to both captions, and Conditional Attention in the decoder.
UNET = dataclasses.replace(
    tiny.UNET, down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",)
)
# All but the complete method and attention in series.
SIMILAR = [variant for variant in VARIANTS if variant not in ("default", "serial")]


def small(variant):
    """The variant's config with very small networks. The varied settings are unchanged."""
    config, own = load_config(f"configs/ablations.py:{variant}"), tiny.config()
    controlnet = {
        name: getattr(config.networks.controlnet, name) for name in ("fusion", "return_rgbs", "use_latent_pred")
    }
    unet = dataclasses.replace(UNET, conditional_attention=config.networks.unet.conditional_attention)
    networks = dataclasses.replace(
        own.networks,
        unet=unet,
        controlnet=dataclasses.replace(own.networks.controlnet, down_block_types=UNET.down_block_types, **controlnet),
    )
    return dataclasses.replace(own, networks=networks, trained=config.trained, loss=config.loss)


@pytest.fixture(scope="module")
def batches(photos):
    config = tiny.config()
    data = make_pipeline(
        open_images(Images(folder=photos)), config.data, tokenizer=tokenizer_of(config.networks), batch_size=8
    )
    return [batch for batch, _ in zip(data, range(2), strict=False)]


@pytest.mark.parametrize("variant", marked_long(VARIANTS, SIMILAR))
def test_two_small_steps(variant, batches):
    run = tiny.Run(small(variant), 1)
    before = {path: np.asarray(array) for path, array in run.state.trained.items()}
    terms = [run.advance(batch) for batch in batches]
    weight = run.config.loss.constraint
    for term in terms:
        assert all(np.isfinite(value) for value in term.values())
        assert term["loss"] == pytest.approx(term["mse"] + weight * term["constraint"], rel=1e-6)
    heads = {name.partition("_")[0] for name in terms[0]} & {"rgb", "latent"}
    assert heads == {"unconstrained": set(), "pixel": {"rgb"}, "latent": {"latent"}}.get(variant, {"rgb", "latent"})
    still = [path for path, array in run.state.trained.items() if np.array_equal(array, before[path])]
    assert still == []
    assert any(".pixel_attentions." in path for path in before) == (variant != "unconditional")


@pytest.mark.parametrize("variant", marked_long(VARIANTS, VARIANTS[1:]))
def test_the_step_at_full_size_as_shapes(variant):
    config = load_config(f"configs/ablations.py:{variant}")
    networks = dataclasses.replace(config.networks, base=(), from_scratch=EVERYTHING)
    config = dataclasses.replace(config, networks=networks, mesh=Mesh(data=1, fsdp=8))
    plan = make_plan(config, sharding.make_mesh(config.mesh))
    networks = plan.structure.networks
    assert isinstance(networks.unet, UNetConfig) and isinstance(networks.controlnet, ControlNetConfig)
    state, terms = jax.eval_shape(plan.step, plan.state, plan.frozen, None, plan.batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), plan.state)
    heads = {"unconstrained": 0, "pixel": 3, "latent": 13}.get(variant, 16)
    assert len([name for name in terms if name.startswith(("rgb_", "latent_"))]) == heads
