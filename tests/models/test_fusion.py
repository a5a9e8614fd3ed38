"""The four ways to fuse two captions (paper, Table 3; method §3), at one site of the released ControlNet."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.golden import assert_close, error, read, under
from xpsr_jax.models.blocks import Text, context_at
from xpsr_jax.models.layers import flatten_tokens
from xpsr_jax.models.parameters import parameters, with_parameters
from xpsr_jax.weights.networks import CONTROLNET, abstract

pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    shapes = {"x": (1, 4, 6, 32), "high": (1, 9, 24), "low": (1, 9, 24)}
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def reference(networks, inputs):
    """The results of the mid block's three transformers, called directly."""
    mid = networks[1].mid_block

    @nnx.jit
    def run(attend_high, attend_low, fuse, x, high, low):
        only_high, only_low = attend_high(x, high), attend_low(x, low)
        serial = attend_low(only_high, low)
        return {"high": only_high, "low": only_low, "serial": serial, "sfa": fuse(only_high, flatten_tokens(only_low))}

    kinds = (mid.attentions[0], mid.attentions_lowlevel[0], mid.attentions_connect[0])
    return run(*kinds, **inputs)


def with_fusion(networks, fusion):
    """A ControlNet with another fusion and the same weights, of which it may have fewer."""
    config = dataclasses.replace(networks[1].config, fusion=fusion)
    return with_parameters(abstract(CONTROLNET, config), parameters(networks[1]))


def attend(controlnet, x, high, low):
    run = nnx.jit(lambda block, x, high, low: block.attend(0, x, high, low, path="mid_block"))
    return run(controlnet.mid_block, x, high, low)


@pytest.mark.parametrize("fusion", ["sfa", "serial", "high", "low"])
def test_each_fusion(fusion, networks, inputs, reference):
    assert error(attend(with_fusion(networks, fusion), **inputs), reference[fusion]) <= 1e-6


def test_fusions_differ(reference):
    for one in reference:
        for other in reference:
            assert one == other or error(reference[one], reference[other]) > 0.1


@pytest.mark.parametrize("fusion", ["sfa", "serial", "high"])
def test_without_low_level_caption_the_result_is_the_high_level_one(fusion, networks, inputs, reference):
    output = attend(with_fusion(networks, fusion), **inputs | {"low": None})
    assert error(output, reference["high"]) <= 1e-6


def test_low_alone_needs_a_low_level_caption(networks, inputs):
    with pytest.raises(ValueError, match="low"):
        attend(with_fusion(networks, "low"), **inputs | {"low": None})


@pytest.mark.parametrize(
    ("fusion", "kinds"),
    [
        ("sfa", {"attentions", "attentions_lowlevel", "attentions_connect"}),
        ("serial", {"attentions", "attentions_lowlevel"}),
        ("high", {"attentions"}),
        ("low", {"attentions_lowlevel"}),
    ],
)
def test_each_fusion_has_only_the_transformers_it_uses(fusion, kinds, networks):
    paths = parameters(abstract(CONTROLNET, dataclasses.replace(networks[1].config, fusion=fusion)))
    assert {part for path in paths for part in path.split(".") if part.startswith("attentions")} == kinds


def test_projected_text_is_looked_up_by_the_path_of_the_transformer(networks):
    """The order of the projections has no effect, and there is exactly one for each transformer."""
    unet, controlnet = networks
    embedding = jnp.zeros((1, 77, controlnet.config.cross_attention_dim))
    text = controlnet.project_text(embedding)
    paths = {path.partition(".transformer_blocks.")[0] for path in parameters(controlnet) if ".attn2." in path}
    assert text.high.keys() == {path for path in paths if ".attentions." in path}
    assert text.low.keys() == {path for path in paths if ".attentions_lowlevel." in path}
    assert unet.project_text(embedding).low == {}
    path = "mid_block.attentions.0"
    assert context_at(text, "high", path) is text.high[path] and context_at(embedding, "low", path) is embedding
    with pytest.raises(KeyError):
        context_at(Text(), "high", path)


def test_projected_text_equals_the_embedding(networks, vectors):
    """In both networks, keys and values computed once per caption give the same results as the embeddings."""
    tensors = read(vectors / "xpsr" / "forward.safetensors")

    @nnx.jit
    def run(unet, controlnet, *, sample, cond, high, low, timestep, conditioning_scale):
        t = jnp.broadcast_to(timestep, sample.shape[:1])
        texts = controlnet.project_text(high), controlnet.project_text(low)
        steering = controlnet(sample, t, *texts, controlnet.encode_image(cond), scale=conditioning_scale)
        return steering, unet(sample, t, unet.project_text(high), steering.residuals, steering.mid)

    steering, prediction = run(*networks, **under("B.in.", tensors))
    residuals = {f"down.{i}": x for i, x in enumerate(steering.residuals)}
    expected = {key: tensors[f"B.out.{key}"] for key in (*residuals, "mid", "noise_pred")}
    assert_close(residuals | {"mid": steering.mid, "noise_pred": prediction}, expected, 2e-5)  # measured: 5.2e-6
