"""The compiled programs that restore images (method §7). They take the networks as graph and weights of `OnDevices`."""

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

# The networks of `OnDevices`, and their nnx graph.
Networks = tuple[UNet, ControlNet, Autoencoder, TextEncoder]
Graph = nnx.GraphDef[Networks]
NoiseLevel = tuple[Float[Array, ""], Float[Array, ""]]


class Texts(NamedTuple):
    """Keys and values of every text cross-attention, which depend neither on the step nor on the picture.

    The positive and the negative half of an image are next to each other. Without guidance there is only the positive
    half. If both halves share the low-level text, the ControlNet's low-level text is there once per image.

    Attributes:
        unet: the result of `UNet.project_text`.
        controlnet: the result of `ControlNet.project_text`, for the high-level and the low-level text.
    """

    unet: Text
    controlnet: Text


class Pictures(NamedTuple):
    """Values that depend on the pictures, but not on the step.

    Attributes:
        start: the latents from which sampling starts.
        features: the ControlNet's features of the LR images.
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
        graph, weights: the four networks, from `OnDevices`.
        high: token ids of the high-level texts, n = 77 each. The halves are positive and negative in this order, or
            positive alone.
        low: token ids of the low-level texts, in the same form. There is one half if both halves share the text.

    Returns:
        Keys and values of b · halves texts. The halves of an image are next to each other.
    """
    unet, controlnet, _, text_encoder = nnx.merge(graph, weights)
    # The two halves of an image are next to each other, so they are on the same device.
    high_embedding = text_encoder(high.reshape(-1, high.shape[-1]))
    low_embedding = text_encoder(low.reshape(-1, low.shape[-1]))
    controlnet_text = Text(controlnet.project_text(high_embedding).high, controlnet.project_text(low_embedding).low)
    return Texts(unet.project_text(high_embedding), controlnet_text)


@functools.partial(jax.jit, static_argnums=1)
def positive_half(texts: Texts, images: int) -> Texts:
    """Removes the negative halves from the texts of that many images."""
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
        graph, weights: the four networks, from `OnDevices`.
        start: see `start_latents`.
        pixels: the LR images, enlarged to H x W, which are multiples of the autoencoder's factor.
        digests: hashes of the LR images' content (`content_digest`). The noise depends on them and on the seed.
        seed: the result of `seed_words`.
        first_level: signal and sigma before the first step that is run.
        second_level: signal and sigma of the second noising, for the start "lr_noised_twice".
    """
    _, controlnet, autoencoder, _ = nnx.merge(graph, weights)
    keys = jax.vmap(lambda digest: jax.random.split(image_key(seed, digest), 4), out_axes=1)(digests)
    posterior_keys, first_keys, second_keys, step_keys = keys
    image = pixels.astype(jnp.float32) / 255
    lr_latents = autoencoder.encode(2 * image - 1, posterior_keys if start != "lr_without_noise" else None)
    noises = (normal(keys, lr_latents.shape[1:]) for keys in (first_keys, second_keys))
    latents = start_latents(start, lr_latents, *noises, first_level=first_level, second_level=second_level)
    return Pictures(latents, controlnet.encode_image(image)._replace(rgb_predictions=()), step_keys)


class Form(NamedTuple):
    """The static arguments of a program of steps. Each form is compiled as its own program.

    Attributes:
        graph: graph of the four networks, from `OnDevices`.
        guidance: how the negative half is used. None: the texts have no negative half.
        cache_levels: as in `Sampling`. 0: no features are kept.
    """

    graph: Graph
    guidance: GuidanceForm | None
    cache_levels: int = 0


class Inputs(NamedTuple):
    """The inputs that all steps of a run share.

    Attributes:
        weights: weights of the four networks.
        texts: the result of `prepare_texts`, or its `positive_half`.
        pictures: the result of `prepare_pictures`, for the same number of images.
        table: the sampler's table with all its steps.
        scales: the scales of all these steps.
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
        form: its `cache_levels` must be 0, because other values would only compile the same program again.
        sampler: the sampler. Each sampler is compiled as its own program.
        inputs: the inputs of all these steps.
        state: the sampler's state before step `first`.
        first, last: row indices of the table. They are traced, so one program runs any part of the table.

    Returns:
        The sampler's state after step `last` - 1. Its latents are (b, h, w, c), scaled, float32.
    """
    networks, (_, texts, pictures, table, scales) = nnx.merge(form.graph, inputs.weights), inputs

    def denoise(latents: Latents, timestep: Timestep) -> Latents:
        return _predict(networks, form, texts, pictures.features, latents, timestep, scales)[0]

    return advance(sampler, denoise, state, table, _noise(pictures), first, last)


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_whole_step(
    form: Form, sampler: Sampler, inputs: Inputs, state: SamplerState, index: Int[Array, ""]
) -> tuple[SamplerState, KeptFeatures]:
    """Runs one step like `run_steps`, row `index` of the table. Also returns the features for `run_outer_steps`."""
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
    """Runs steps like `run_steps`, but only the UNet's outermost layers, from the features of an earlier whole step.

    Args:
        kept: features from `run_whole_step` with the same form.
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
    """The guided prediction for tiles of a large picture. For each tile the networks see only that tile (method §7).

    The tiles' image features are computed again in each step. That takes less than 1 % of the step's time. Keeping them
    for all tiles would need memory that grows with the picture.

    Args:
        form: the form of the program.
        weights: weights of the four networks, from `OnDevices`.
        texts: the picture's texts once for each of the b tiles, from `prepare_texts` or `positive_half`.
        pixels: the tiles of the LR image.
        latents: the same tiles of the latents, scaled, at the noise level of `timestep`.
        timestep: timestep of the step, the same for all tiles.
        scales: scales of the step.

    Returns:
        The prediction, float32, of the kind that the schedule's `prediction_type` says. And the features for
        `predict_tiles_from_kept`, or None if the form keeps none.
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
    """The guided prediction for tiles, from the features that an earlier `predict_tiles` of the same form returned."""
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
    """Decodes latents to images with the colours of the LR images (method §7, §8).

    The decoded images are rounded to 8 bits before the colour fix.

    Args:
        graph, weights: the four networks, from `OnDevices`.
        color: see `fix_color`.
        latents: scaled latents after the last step.
        pixels: the images whose colours the results get, at the size of the images that `prepare_pictures` encoded.

    Returns:
        The images, and for each whether all values of the autoencoder's result were finite.
    """
    _, _, autoencoder, _ = nnx.merge(graph, weights)
    decoded = autoencoder.decode(latents)
    rounded = jnp.round(jnp.clip(decoded / 2 + 0.5, 0, 1) * 255)
    finite = jnp.isfinite(decoded).all((1, 2, 3))
    if color == "none":
        return rounded.astype(jnp.uint8), finite
    return truncate_to_uint8(fix_color(rounded / 255, pixels.astype(jnp.float32) / 255, color)), finite
