"""The compiled programs of restoring (method §7). Each takes the networks as `OnDevices` has them: graph, weights."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8, UInt32

from xpsr_jax.diffusion.choices import GuidanceForm, Start
from xpsr_jax.diffusion.guidance import guide
from xpsr_jax.diffusion.process import Latents
from xpsr_jax.diffusion.samplers import (
    Noise,
    Sampler,
    SamplerState,
    Table,
    Timestep,
    advance,
    normal,
    start_latents,
    step_noise,
)
from xpsr_jax.inference.color import ColorFix, fix_color, truncate_to_uint8
from xpsr_jax.inference.image_keys import image_key
from xpsr_jax.inference.plan import Scales
from xpsr_jax.models.autoencoder import Autoencoder
from xpsr_jax.models.blocks import Text
from xpsr_jax.models.controlnet import ControlNet, ImageFeatures
from xpsr_jax.models.text_encoder import TextEncoder
from xpsr_jax.models.unet import KeptFeatures, UNet

# What `OnDevices` has on the devices, and how nnx describes it.
Networks = tuple[UNet, ControlNet, Autoencoder, TextEncoder]
Graph = nnx.GraphDef[Networks]
NoiseLevel = tuple[Float[Array, ""], Float[Array, ""]]


class Texts(NamedTuple):
    """Keys and values of every text cross-attention, which depend neither on the step nor on the picture.

    An image's positive and negative half are neighbours; without guidance there is the positive half alone. The
    ControlNet's low-level text is there once for an image if both halves have it in common.

    Attributes:
        unet: what `UNet.project_text` returned.
        controlnet: what `ControlNet.project_text` returned, for the high- and for the low-level text.
    """

    unet: Text
    controlnet: Text


class Pictures(NamedTuple):
    """What depends on the pictures and not on the step.

    Attributes:
        start: the latents that sampling starts from.
        features: what the ControlNet makes of the LR images.
        step_keys: (b,) random keys of the steps' noise.
    """

    start: Float[Array, "b h w c"]
    features: ImageFeatures
    step_keys: Array


@functools.partial(jax.jit, static_argnums=0)
def prepare_texts(
    graph: Graph, weights: nnx.State, high: Int[Array, "b high_halves n"], low: Int[Array, "b low_halves n"]
) -> Texts:
    """Encodes captions and prompts.

    Args:
        graph, weights: of the four networks, as `OnDevices` has them.
        high: token ids of the high-level texts, n = 77 each; halves: positive and negative in this order, or the
            positive one alone.
        low: the same of the low-level texts; one half also where both have it in common.

    Returns:
        Keys and values of b · halves texts, an image's halves next to each other.
    """
    unet, controlnet, _, text_encoder = nnx.merge(graph, weights)
    # An image's two halves are neighbours, so that they are on one device.
    high_embedding = text_encoder(high.reshape(-1, high.shape[-1]))
    low_embedding = text_encoder(low.reshape(-1, low.shape[-1]))
    controlnet_text = Text(controlnet.project_text(high_embedding).high, controlnet.project_text(low_embedding).low)
    return Texts(unet.project_text(high_embedding), controlnet_text)


@functools.partial(jax.jit, static_argnums=1)
def positive_half(texts: Texts, images: int) -> Texts:
    """The texts of so many images without their negative halves."""
    halves: Texts = jax.tree.map(lambda array: array[:: array.shape[0] // images], texts)
    return halves


@functools.partial(jax.jit, static_argnums=(0, 1))
def prepare_pictures(
    graph: Graph,
    start: Start,
    weights: nnx.State,
    pixels: UInt8[Array, "b H W 3"],
    digests: UInt32[Array, "b 2"],
    seed: UInt32[Array, "2"],
    first_level: NoiseLevel,
    second_level: NoiseLevel,
) -> Pictures:
    """Encodes LR images at the size that the networks see, and draws their noise.

    Args:
        graph, weights: of the four networks, as `OnDevices` has them.
        start: see `start_latents`.
        pixels: the LR images, enlarged to H x W, multiples of the autoencoder's factor.
        digests: hashes of the LR images' content (`content_digest`), from which their noise comes, with the seed.
        seed: of `seed_words`.
        first_level: signal and sigma before the first step that is run.
        second_level: signal and sigma of the second noising, of the start "lr_noised_twice".
    """
    _, controlnet, autoencoder, _ = nnx.merge(graph, weights)
    keys = jax.vmap(lambda digest: jax.random.split(image_key(seed, digest), 4), out_axes=1)(digests)
    posterior_keys, first_keys, second_keys, step_keys = keys
    image = pixels.astype(jnp.float32) / 255
    lr_latents = autoencoder.encode(2 * image - 1, posterior_keys)
    noises = (normal(keys, lr_latents.shape[1:]) for keys in (first_keys, second_keys))
    latents = start_latents(start, lr_latents, *noises, first_level=first_level, second_level=second_level)
    return Pictures(latents, controlnet.encode_image(image)._replace(rgb_predictions=()), step_keys)


class Form(NamedTuple):
    """What a program of steps is compiled for, beside shapes. Static: another form is another program.

    Attributes:
        graph: of the four networks, as `OnDevices` has it.
        guidance: how the negative half is used; None: the texts have none.
        cache_levels: as in `Sampling`; 0: no features are kept.
    """

    graph: Graph
    guidance: GuidanceForm | None
    cache_levels: int = 0


class Inputs(NamedTuple):
    """What all steps of a run read.

    Attributes:
        weights: of the four networks.
        texts: of `prepare_texts`, or their `positive_half`.
        pictures: of `prepare_pictures`, of as many images.
        table: the sampler's, all steps of it.
        scales: of all these steps.
    """

    weights: nnx.State
    texts: Texts
    pictures: Pictures
    table: Table
    scales: Scales


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_steps(
    form: Form, sampler: Sampler, inputs: Inputs, state: SamplerState, first: Int[Array, ""], last: Int[Array, ""]
) -> SamplerState:
    """Runs the steps `first` to `last` - 1 of the sampler.

    Args:
        form: without `cache_levels`: they would only make another program.
        sampler: which one; a program is compiled for each.
        state: the sampler's, before the first of these steps.
        first, last: indices of rows of the table; traced, so any part is run by one program.

    Returns:
        The sampler's state after step `last` - 1; its latents are (b, h, w, c), scaled, float32.
    """
    networks, (_, texts, pictures, table, scales) = nnx.merge(form.graph, inputs.weights), inputs

    def denoise(latents: Latents, timestep: Timestep) -> Latents:
        return _predict(networks, form, texts, pictures.features, latents, timestep, scales)[0]

    return advance(sampler, denoise, state, table, _noise(pictures), first, last)


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_whole_step(
    form: Form, sampler: Sampler, inputs: Inputs, state: SamplerState, index: Int[Array, ""]
) -> tuple[SamplerState, KeptFeatures]:
    """Runs one step, row `index` of the table, as `run_steps`, and keeps what `run_outer_steps` needs."""
    networks, (_, texts, pictures, table, scales) = nnx.merge(form.graph, inputs.weights), inputs
    timestep = jnp.asarray(table.timestep)[index]
    prediction, kept = _predict(networks, form, texts, pictures.features, state.latents, timestep, scales)
    return advance(sampler, lambda *_: prediction, state, table, _noise(pictures), index, index + 1), kept


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_outer_steps(
    form: Form,
    sampler: Sampler,
    inputs: Inputs,
    kept: KeptFeatures,
    state: SamplerState,
    first: Int[Array, ""],
    last: Int[Array, ""],
) -> SamplerState:
    """Runs steps as `run_steps`, with the UNet's outermost layers alone, upon the features of a whole step.

    Args:
        kept: by `run_whole_step`, of the same form.
    """
    networks, (_, texts, pictures, table, scales) = nnx.merge(form.graph, inputs.weights), inputs

    def denoise(latents: Latents, timestep: Timestep) -> Latents:
        return _predict_from_kept(networks, form, texts, kept, latents, timestep, scales)

    return advance(sampler, denoise, state, table, _noise(pictures), first, last)


@functools.partial(jax.jit, static_argnums=0)
def predict_tiles(
    form: Form,
    weights: nnx.State,
    texts: Texts,
    pixels: UInt8[Array, "b H W 3"],
    latents: Latents,
    timestep: Timestep,
    scales: Scales,
) -> tuple[Latents, KeptFeatures | None]:
    """The guided prediction for tiles of a large picture, of which each tile's networks see nothing else (method §7).

    The tiles' image features are computed anew for each step: that takes less than 1 % of its time, and kept for all
    tiles they would grow with the picture.

    Args:
        weights: of the four networks, as `OnDevices` has them.
        texts: of `prepare_texts`, or their `positive_half`: the picture's, once for each of the b tiles.
        pixels: the tiles of the LR image.
        latents: the same tiles of the latents, scaled, at the noise level of `timestep`.
        timestep: of the step, the same for all tiles.
        scales: of the step.

    Returns:
        The prediction, float32, which means what the schedule's `prediction_type` says, and what
        `predict_tiles_from_kept` needs, or None where nothing is kept.
    """
    networks = nnx.merge(form.graph, weights)
    features = networks[1].encode_image(pixels.astype(jnp.float32) / 255)._replace(rgb_predictions=())
    prediction, kept = _predict(networks, form, texts, features, latents, timestep, scales)
    return prediction, kept if form.cache_levels else None


@functools.partial(jax.jit, static_argnums=0)
def predict_tiles_from_kept(
    form: Form,
    weights: nnx.State,
    texts: Texts,
    kept: KeptFeatures,
    latents: Latents,
    timestep: Timestep,
    scales: Scales,
) -> Latents:
    """The guided prediction for tiles upon what an earlier `predict_tiles` of the same form kept of them."""
    return _predict_from_kept(nnx.merge(form.graph, weights), form, texts, kept, latents, timestep, scales)


def _predict(
    networks: Networks,
    form: Form,
    texts: Texts,
    features: ImageFeatures,
    latents: Latents,
    timestep: Timestep,
    scales: Scales,
) -> tuple[Latents, KeptFeatures]:
    unet, controlnet, *_ = networks
    timesteps = jnp.full(latents.shape[0], timestep)
    text = texts.controlnet
    control = controlnet(latents, timesteps, text, text, features, scale=scales.conditioning)
    prediction, kept = unet.predict_and_keep(
        latents, timesteps, texts.unet, control.residuals, control.mid, outer_layers=form.cache_levels or 1
    )
    return _guided(prediction, form.guidance, scales), kept


def _predict_from_kept(
    networks: Networks,
    form: Form,
    texts: Texts,
    kept: KeptFeatures,
    latents: Latents,
    timestep: Timestep,
    scales: Scales,
) -> Latents:
    timesteps = jnp.full(latents.shape[0], timestep)
    prediction = networks[0].predict_from_kept(latents, timesteps, texts.unet, kept, outer_layers=form.cache_levels)
    return _guided(prediction, form.guidance, scales)


def _noise(pictures: Pictures) -> Noise:
    return step_noise(pictures.step_keys, pictures.start.shape[1:])


def _guided(
    prediction: Float[Array, "halves h w c"], guidance: GuidanceForm | None, scales: Scales
) -> Float[Array, "b h w c"]:
    if guidance is None:
        return prediction
    pairs = prediction.reshape(-1, 2, *prediction.shape[1:])
    return guide(pairs[:, 0], pairs[:, 1], scale=scales.guidance, form=guidance, rescale=scales.rescale)


@functools.partial(jax.jit, static_argnums=(0, 1))
def finish(
    graph: Graph, color: ColorFix, weights: nnx.State, latents: Latents, pixels: UInt8[Array, "b H W 3"]
) -> tuple[UInt8[Array, "b H W 3"], Bool[Array, "b"]]:
    """Latents to images with the LR's colours. 8-bit before the colour fix (method §7, §8).

    Args:
        graph, weights: of the four networks, as `OnDevices` has them.
        color: see `fix_color`.
        latents: scaled, after the last step.
        pixels: the images whose colours are taken, at the size of what `prepare_pictures` encoded.

    Returns:
        The images, and for each whether the autoencoder gave neither NaN nor infinity.
    """
    _, _, autoencoder, _ = nnx.merge(graph, weights)
    decoded = autoencoder.decode(latents)
    rounded = jnp.round(jnp.clip(decoded / 2 + 0.5, 0, 1) * 255)
    finite = jnp.isfinite(decoded).all((1, 2, 3))
    if color == "none":
        return rounded.astype(jnp.uint8), finite
    return truncate_to_uint8(fix_color(rounded / 255, pixels.astype(jnp.float32) / 255, color)), finite
