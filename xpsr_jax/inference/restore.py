"""The whole image path: LR photographs and their captions in, restored photographs out (method §7)."""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt8, UInt32

from xpsr_jax import sharding
from xpsr_jax.config import Sampling
from xpsr_jax.data.captions import Caption
from xpsr_jax.diffusion.guidance import GuidanceForm, guide
from xpsr_jax.diffusion.samplers import (
    Sampler,
    SamplerState,
    Start,
    Table,
    Timestep,
    advance,
    normal,
    start_latents,
    step_noise,
)
from xpsr_jax.diffusion.schedule import Latents
from xpsr_jax.errors import UserError
from xpsr_jax.inference.color import ColorFix, fix_color, to_uint8
from xpsr_jax.inference.plan import first_step, make_sampler, plan_runs
from xpsr_jax.inference.prompts import tokenize
from xpsr_jax.inference.sizes import network_size, to_network_size, to_output_size
from xpsr_jax.models.blocks import Text
from xpsr_jax.models.controlnet import ImageFeatures
from xpsr_jax.weights.model_folder import Model


def restore(
    model: Model,
    images: Sequence[UInt8[np.ndarray, "h w 3"]],
    captions: Sequence[Caption],
    sampling: Sampling | None = None,
    *,
    seed: int = 0,
    batch_size: int = 1,
    mesh: Mesh | None = None,
    names: Sequence[str] | None = None,
) -> list[UInt8[np.ndarray, "h2 w2 3"]]:
    """Restores photographs of any sizes, each `sampling.upscale` times as large as it was.

    An image's result depends on its pixels, its captions, the seed and the settings: not on its place, nor (but for
    rounding) on the batch or the number of devices.

    Args:
        sampling: None: the model's own.
        batch_size: images of one size at once on each device.
        mesh: devices to spread batches over; None: the default device.
        names: what to call the images in errors.

    Raises:
        UserError: the networks computed something that is no number, or a caption or setting cannot be used.
    """
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images but {len(captions)} captions")
    names = names or [f"image {i}" for i in range(len(images))]
    restorer = Restorer(model, sampling, batch_size=batch_size, mesh=mesh)
    results: dict[int, UInt8[np.ndarray, "h w 3"]] = {}
    for batch in plan_batches([restorer.network_size(*image.shape[:2]) for image in images], restorer.capacity):
        restored = restorer([images[i] for i in batch], [captions[i] for i in batch], seed=seed)
        for i, result in zip(batch, restored, strict=True):
            if result is None:
                raise UserError(not_a_number(names[i]))
            results[i] = result
    return [results[i] for i in range(len(images))]


def plan_batches(sizes: Sequence[Hashable], capacity: int) -> list[list[int]]:
    """Indices of images in batches of one size, at most `capacity` each, in the order of their first images."""
    groups: dict[Hashable, list[int]] = {}
    for i, size in enumerate(sizes):
        groups.setdefault(size, []).append(i)
    batches = (group[i : i + capacity] for group in groups.values() for i in range(0, len(group), capacity))
    return sorted(batches, key=lambda batch: batch[0])


def not_a_number(name: str) -> str:
    """What to say of an image that came out as NaN or infinite."""
    return f"{name}: the networks computed NaN or infinity; try float32, lower scales, or other weights"


def content_digest(image: UInt8[np.ndarray, "h w 3"]) -> UInt32[np.ndarray, "2"]:
    """64 bits of SHA-256 of an image's shape and pixels."""
    digest = hashlib.sha256(np.array(image.shape, "<i8").tobytes() + image.tobytes()).digest()
    return np.frombuffer(digest[:8], "<u4").astype(np.uint32)


def full_table(sampler: Sampler, steps: int, first: int) -> Table:
    """A sampler's table, filled up to one length for any number of steps, so that one program serves them all."""
    padding = sampler.schedule.num_train_timesteps - steps
    return jax.tree.map(lambda column: np.pad(column, (0, padding)), sampler.table(steps, first))


class _Prepared(NamedTuple):
    """What does not depend on the step.

    Texts hold an image's positive and negative half side by side, or its positive half alone; the low-level one holds
    what both halves have in common once.
    """

    start: Float[Array, "b h w c"]
    unet_text: Text
    controlnet_text: Text
    image_features: ImageFeatures
    step_keys: Array


class Restorer:
    """A model made ready to restore batches. Programs are compiled once for each batch shape and sampler.

    If the mesh is of several processes, all have to ask for the same, and each is given all of it.

    Attributes:
        capacity: images that one batch can hold: `batch_size` on each device.
        steps: sampling steps that are run for an image.
    """

    def __init__(
        self, model: Model, sampling: Sampling | None = None, *, batch_size: int = 1, mesh: Mesh | None = None
    ) -> None:
        self.sampling = sampling or model.defaults
        self.capacity = batch_size * (mesh.size if mesh else 1)
        self._tokenizer = model.tokenizer
        self._factor = model.autoencoder.factor
        spacing = self.sampling.spacing or model.schedule.timestep_spacing
        schedule = dataclasses.replace(model.schedule, timestep_spacing=spacing)
        self._sampler = make_sampler(self.sampling, schedule)
        # No more than a tenth of the steps between two looks at the progress.
        self._runs = list(plan_runs(self.sampling, at_most=max(self.sampling.steps // 10, 1)))
        self._guided = any(run.guided for run in self._runs)
        first, steps = first_step(self.sampling), self.sampling.steps
        self.steps = steps - first
        self._table = full_table(self._sampler, steps, first)
        self._first_level = self._table.signal[first], self._table.sigma[first]
        self._second_level = schedule.levels(jnp.int32(self.sampling.added_noise_level))
        self._graph, weights = nnx.split((model.unet, model.controlnet, model.autoencoder, model.text_encoder))
        # The batch is split over all devices. Weights that are there already stay as they are (training may have split
        # them), others are put on each; XLA shards everything between.
        self._batch_sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names)) if mesh else None
        self._weights = _on_mesh(weights, mesh) if mesh else weights
        self._within = functools.partial(sharding.gathering_kernels, mesh) if mesh else contextlib.nullcontext

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) at which the networks see an LR image: images of one batch have this in common."""
        return network_size(height, width, **self._size_rule)

    def __call__(
        self,
        images: Sequence[UInt8[np.ndarray, "h w 3"]],
        captions: Sequence[Caption],
        *,
        seed: int = 0,
        on_steps: Callable[[int], None] | None = None,
    ) -> list[UInt8[np.ndarray, "h2 w2 3"] | None]:
        """Restores a batch of at most `capacity` images of one `network_size`.

        Args:
            on_steps: called with the number of steps done since the last call, for progress bars.

        Returns:
            the restored images, None for one whose result is not finite.
        """
        if not 0 < len(images) == len(captions) <= self.capacity:
            raise ValueError(f"{len(images)} images and {len(captions)} captions in a batch of {self.capacity}")
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
                raise ValueError(f"an image must be uint8 of shape (height, width, 3), not {image.dtype} {image.shape}")
        pixels = self._placed(np.stack([to_network_size(image, **self._size_rule) for image in images]))
        digests = self._placed(np.stack([content_digest(image) for image in images]))
        high, low = (self._placed(tokens) for tokens in self._tokens(captions))

        sampling = self.sampling
        seed_words = np.array([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF], np.uint32)
        inputs = pixels, high, low, digests, seed_words, self._first_level, self._second_level
        prepared = prepare(self._graph, sampling.start, self._weights, *inputs)
        positive = prepared if all(run.guided for run in self._runs) or not self._guided else _positive_half(prepared)
        state = self._sampler.init(prepared.start)
        for run in self._runs:
            with self._within():
                state = run_steps(
                    self._graph,
                    self._sampler,
                    sampling.guidance_form if run.guided else None,
                    self._weights,
                    prepared if run.guided else positive,
                    state,
                    self._table,
                    np.int32(run.first),
                    np.int32(run.last),
                    guidance_scale=float(sampling.guidance_scale),
                    guidance_rescale=float(sampling.guidance_rescale),
                    conditioning_scale=float(sampling.conditioning_scale if run.conditioned else 0),
                )
            if on_steps is not None:
                jax.block_until_ready(state)
                on_steps(run.last - run.first)
        finished = _finish(self._graph, sampling.color_fix, self._weights, state.latents, pixels)
        if self._batch_sharding is not None and not self._batch_sharding.is_fully_addressable:
            finished = multihost_utils.process_allgather(finished, tiled=True)
        restored, finite = jax.device_get(finished)
        return [
            to_output_size(result, image.shape, upscale=sampling.upscale) if is_finite else None
            for image, result, is_finite in zip(images, restored, finite, strict=False)
        ]

    @property
    def _size_rule(self) -> dict[str, Any]:
        return {"upscale": self.sampling.upscale, "process_size": self.sampling.process_size, "factor": self._factor}

    def _tokens(
        self, captions: Sequence[Caption]
    ) -> tuple[Int[np.ndarray, "b halves n"], Int[np.ndarray, "b halves n"]]:
        """Token ids of the high- and low-level prompts; halves: positive and negative, or positive without guidance.

        Without a negative low-level prompt the two halves' low-level captions are one.
        """
        sampling = self.sampling
        high = [
            tokenize(self._tokenizer, [caption.high for caption in captions], positive_words=sampling.positive_words)
        ]
        low = [tokenize(self._tokenizer, [caption.low for caption in captions])]
        if self._guided:
            high.append(np.repeat(tokenize(self._tokenizer, [sampling.negative_high]), len(captions), axis=0))
            if sampling.negative_low is not None:
                low.append(np.repeat(tokenize(self._tokenizer, [sampling.negative_low]), len(captions), axis=0))
        return np.stack(high, axis=1), np.stack(low, axis=1)

    def _placed(self, array: np.ndarray) -> np.ndarray | Array:
        """Fills a batch up to `capacity` with its last image, and spreads it over the devices."""
        padding = [(0, self.capacity - len(array))] + [(0, 0)] * (array.ndim - 1)
        array = np.pad(array, padding, mode="edge")
        return array if self._batch_sharding is None else jax.device_put(array, self._batch_sharding)


def _on_mesh(weights: Any, mesh: Mesh) -> Any:
    everywhere, devices = NamedSharding(mesh, PartitionSpec()), set(mesh.devices.flat)

    def place(weight: Any) -> Array:
        there = isinstance(weight, jax.Array) and weight.sharding.device_set == devices
        return weight if there else jax.device_put(weight, everywhere)

    return jax.tree.map(place, weights)


@functools.partial(jax.jit, static_argnums=(0, 1))
def prepare(
    graph: Any,
    start: Start,
    weights: Any,
    pixels: UInt8[Array, "b H W 3"],
    high: Int[Array, "b high_halves n"],
    low: Int[Array, "b low_halves n"],
    digests: UInt32[Array, "b 2"],
    seed: UInt32[Array, "2"],
    first_level: tuple[Float[Array, ""], Float[Array, ""]],
    second_level: tuple[Float[Array, ""], Float[Array, ""]],
) -> _Prepared:
    """Everything that is computed once for an image: text, image features, start latents."""
    unet, controlnet, autoencoder, text_encoder = nnx.merge(graph, weights)
    keys = jax.vmap(lambda digest: jax.random.split(_image_key(seed, digest), 4), out_axes=1)(digests)
    posterior_keys, first_keys, second_keys, step_keys = keys
    image = pixels.astype(jnp.float32) / 255
    lr_latents = autoencoder.encode(2 * image - 1, posterior_keys)
    noises = (normal(keys, lr_latents.shape[1:]) for keys in (first_keys, second_keys))
    latents = start_latents(start, lr_latents, *noises, first_level=first_level, second_level=second_level)

    # An image's two halves are neighbours, so that they are on one device.
    high_embedding = text_encoder(high.reshape(-1, high.shape[-1]))
    low_embedding = text_encoder(low.reshape(-1, low.shape[-1]))
    controlnet_text = Text(controlnet.project_text(high_embedding).high, controlnet.project_text(low_embedding).low)
    features = controlnet.encode_image(image)._replace(rgb_predictions=())
    return _Prepared(latents, unet.project_text(high_embedding), controlnet_text, features, step_keys)


@jax.jit
def _positive_half(prepared: _Prepared) -> _Prepared:
    images = prepared.start.shape[0]
    both = prepared.unet_text, prepared.controlnet_text
    unet_text, controlnet_text = jax.tree.map(lambda array: array[:: array.shape[0] // images], both)
    return prepared._replace(unet_text=unet_text, controlnet_text=controlnet_text)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def run_steps(
    graph: Any,
    sampler: Sampler,
    guidance: GuidanceForm | None,
    weights: Any,
    prepared: _Prepared,
    state: SamplerState,
    table: Table,
    first: Int[Array, ""],
    last: Int[Array, ""],
    *,
    guidance_scale: Float[Array, ""],
    guidance_rescale: Float[Array, ""],
    conditioning_scale: Float[Array, ""],
) -> SamplerState:
    """Some steps of the sampler, with a negative half if `guidance` says how."""
    unet, controlnet, *_ = nnx.merge(graph, weights)

    def denoise(latents: Latents, timestep: Timestep) -> Latents:
        timesteps = jnp.full(latents.shape[0], timestep)
        text = prepared.controlnet_text
        control = controlnet(latents, timesteps, text, text, prepared.image_features, scale=conditioning_scale)
        prediction = unet(latents, timesteps, prepared.unet_text, control.residuals, control.mid)
        if guidance is None:
            return prediction
        pairs = prediction.reshape(-1, 2, *prediction.shape[1:])
        return guide(pairs[:, 0], pairs[:, 1], scale=guidance_scale, form=guidance, rescale=guidance_rescale)

    noise = step_noise(prepared.step_keys, prepared.start.shape[1:])
    return advance(sampler, denoise, state, table, noise, first, last)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _finish(
    graph: Any, color: ColorFix, weights: Any, latents: Latents, pixels: UInt8[Array, "b H W 3"]
) -> tuple[UInt8[Array, "b H W 3"], Bool[Array, "b"]]:
    """Latents to images with the LR's colours, and which are finite. 8-bit before the colour fix (method §7)."""
    _, _, autoencoder, _ = nnx.merge(graph, weights)
    decoded = autoencoder.decode(latents)
    rounded = jnp.round(jnp.clip(decoded / 2 + 0.5, 0, 1) * 255)
    finite = jnp.isfinite(decoded).all((1, 2, 3))
    if color == "none":
        return rounded.astype(jnp.uint8), finite
    return to_uint8(fix_color(rounded / 255, pixels.astype(jnp.float32) / 255, color)), finite


def _image_key(seed: UInt32[Array, "2"], digest: UInt32[Array, "2"]) -> Array:
    """One image's key from the seed and its content."""
    key = jax.random.key(0, impl="threefry2x32")
    return functools.reduce(jax.random.fold_in, [*seed, *digest], key)
