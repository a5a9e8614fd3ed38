"""All attention kernels for CPUs give the same results and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from tests.marks import marked_more
from tests.models.golden import error
from xpsr_jax.models.attention import CHUNK, attention
from xpsr_jax.models.flash import flash_attention
from xpsr_jax.models.two_pass import two_pass_attention

# Fewer queries than a chunk, whole chunks only, and a last chunk that is not full.
SIZES = {"short": (5, 7), "whole-chunks": (2 * CHUNK, 30), "ragged": (2 * CHUNK + 3, 2 * CHUNK + 3)}


def inputs(queries, keys, dtype=jnp.float32):
    a, b, c = jax.random.split(jax.random.key(queries), 3)
    shapes = (2, queries, 3, 8), (2, keys, 3, 8), (2, keys, 3, 8)
    # Sharp attention: with scores of about ±10, a wrong softmax or scale has a large effect.
    return [3 * jax.random.normal(key, shape).astype(dtype) for key, shape in zip((a, b, c), shapes, strict=True)]


def attend(kernel, causal=False):
    """A jitted kernel, by name. "two_pass" is used even for few scores."""
    if kernel == "two_pass":
        return jax.jit(lambda q, k, v: two_pass_attention(q, k, v, causal))
    return jax.jit(lambda q, k, v: attention(q, k, v, kernel=kernel, causal=causal))


def exact(q, k, v, causal):
    """The definition, in float64."""
    q, k, v = (np.asarray(x, np.float64).swapaxes(1, 2) for x in (q, k, v))
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    if causal:
        scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(1, 2)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("size", marked_more(SIZES, ["whole-chunks"]))
def test_kernels_equal_the_definition(size, causal):
    q, k, v = inputs(*SIZES[size])
    expected = exact(q, k, v, causal)
    for kernel in ("plain", "chunked", "two_pass", "auto"):
        output = attend(kernel, causal)(q, k, v)
        assert error(output, expected) <= 2e-5  # measured: 6e-6


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_kernels_have_equal_gradients(causal):
    q, k, v = inputs(*SIZES["ragged"])
    weights = jax.random.normal(jax.random.key(9), q.shape)

    def gradients(kernel):
        loss = lambda q, k, v: jnp.sum(weights * attend(kernel, causal)(q, k, v))  # noqa: E731
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)

    expected = gradients("plain")
    for kernel in ("chunked", "two_pass"):
        for ours, theirs in zip(gradients(kernel), expected, strict=True):
            assert error(ours, theirs) <= 3e-5  # measured: 9e-6, two passes 1.9e-5


@pytest.mark.parametrize("sharpness", [pytest.param(0.1, marks=pytest.mark.more), 1])
def test_gradients_in_bfloat16_are_near_the_exact_ones(sharpness):
    """For them the two passes keep the roots of the weights in 8 bits. The reference has the same inputs in float32."""
    q, k, v = inputs(256, 300, jnp.bfloat16)
    q = sharpness * q
    weights = jax.random.normal(jax.random.key(9), q.shape).astype(jnp.bfloat16)

    def gradients(kernel, *inputs):
        def loss(*x):
            return jnp.sum((weights * attend(kernel)(*x)).astype(jnp.float32))

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*inputs)

    expected = gradients("plain", *(x.astype(jnp.float32) for x in (q, k, v)))
    for ours, theirs in zip(gradients("two_pass", q, k, v), expected, strict=True):
        assert ours.dtype == jnp.bfloat16
        assert error(ours, theirs) <= 0.08  # measured: 0.066; plain attention in bfloat16 0.038
        assert jnp.linalg.norm(ours - theirs) <= 6.5e-3 * jnp.linalg.norm(theirs)  # 5.5e-3; plain attention 2.4e-3


@pytest.mark.parametrize("keys", [77, 5000])
def test_softmax_is_float32_in_bfloat16(keys):
    """Even with sharp attention over many keys, only weights and result are rounded to bfloat16 (2⁻⁹ each)."""
    q, k, v = inputs(4, keys, jnp.bfloat16)
    for kernel in ("plain", "two_pass"):
        output = attend(kernel)(q, k, v)
        assert output.dtype == jnp.bfloat16
        assert error(output, exact(q, k, v, causal=False)) <= 1.2e-2  # measured: 0.8e-2


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(jnp.bfloat16, 1.2e-2), (jnp.float16, 3e-3)],  # measured: 3.6e-3, 1.1e-3
)
def test_scores_are_float32_for_every_compute_dtype(dtype, tolerance):
    """As with `upcast_attention`: scores of several hundred, as in Stable Diffusion 2.1, stay exact.

    Kernels are compared with the exact result of the same inputs, and with scores rounded to the compute dtype.
    """
    q, k, v = inputs(CHUNK + 16, 77, dtype)
    q, k = 4 * q, 8 * k
    expected = exact(q, k, v, causal=False)
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k) * q.shape[-1] ** -0.5
    assert scores.dtype == dtype
    rounded = jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(scores, axis=-1), v)
    for kernel in ("plain", "chunked", "two_pass"):
        ours = error(attend(kernel)(q, k, v), expected)
        assert ours <= tolerance
        assert ours < error(rounded, expected) / 4  # measured: 1.2 and 1.8e-2


def test_scores_beyond_float16_do_not_overflow():
    """This is why Stable Diffusion 2.1 sets `upcast_attention`."""
    q, k, v = inputs(4, 77, jnp.float16)
    q, k = 100 * q, 100 * k
    assert not jnp.isfinite(jnp.einsum("bnhd,bmhd->bhnm", q, k)).all()
    assert error(attention(q, k, v), exact(q, k, v, causal=False)) <= 2e-3  # measured: 0, the weights are 0 and 1


def test_chunks_bound_the_memory():
    """At 4096 tokens the chunked kernel holds the scores of one chunk at a time, and not all scores."""
    x = jax.ShapeDtypeStruct((1, 4096, 1, 8), jnp.float32)

    def temporary_bytes(kernel):
        compiled = jax.jit(lambda *x: attention(*x, kernel=kernel)).lower(x, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = 4096 * 4096 * 4
    assert temporary_bytes("plain") >= whole
    assert temporary_bytes("auto") < whole / 8


@pytest.mark.parametrize(
    "size", [pytest.param((256, 128), id="whole blocks", marks=pytest.mark.more), pytest.param((130, 77), id="padded")]
)
def test_flash_kernel_of_tpus_equals_the_definition(size):
    """In interpreted mode, with sizes that need padding, on one device and with the batch split over a mesh."""
    q, k, v = inputs(*size)
    mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    with pltpu.force_tpu_interpret_mode():
        alone = flash_attention(q, k, v, False)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            shared = jax.jit(lambda *x: flash_attention(*x, False))(
                *(jax.device_put(x, jax.NamedSharding(mesh, jax.P("data"))) for x in (q, k, v))
            )
    assert error(alone, exact(q, k, v, False)) <= 2e-5  # measured: 4.1e-6
    np.testing.assert_array_equal(shared, alone)
