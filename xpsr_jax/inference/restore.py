"""The whole image path: LR photographs and their captions in, restored photographs out (method §7)."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
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
from xpsr_jax.diffusion.choices import GuidanceForm, Start
from xpsr_jax.diffusion.guidance import guide
from xpsr_jax.diffusion.making import make_sampler
from xpsr_jax.diffusion.process import Latents, levels_at
from xpsr_jax.diffusion.samplers import (
    Sampler,
    SamplerState,
    Table,
    Timestep,
    advance,
    normal,
    start_latents,
    step_noise,
)
from xpsr_jax.errors import UserError
from xpsr_jax.inference.color import ColorFix, fix_color, fix_large_color, keep_grey, truncate_to_uint8
from xpsr_jax.inference.image_keys import content_digest, image_key, seed_words
from xpsr_jax.inference.large import Prediction, begin, image_features, step
from xpsr_jax.inference.plan import Run, first_step, full_table, plan_batches, plan_runs
from xpsr_jax.inference.prompts import tokenize
from xpsr_jax.inference.sizes import enlarged_size, network_size, to_network_size, to_output_size
from xpsr_jax.inference.tiled_autoencoder import TiledAutoencoder
from xpsr_jax.inference.tiling import Tiles, plan_tiles
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
    rounding) on the batch or the number of devices. A grey image (R = G = B) comes back grey.

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
    for batch in restorer.plan([restorer.network_size(*image.shape[:2]) for image in images]):
        restored = restorer([images[i] for i in batch], [captions[i] for i in batch], seed=seed)
        for i, result in zip(batch, restored, strict=True):
            if result is None:
                raise UserError(not_finite(names[i]))
            results[i] = result
    return [results[i] for i in range(len(images))]


def not_finite(name: str) -> str:
    """What to say of an image that came out as NaN or infinite."""
    return f"{name}: the networks computed NaN or infinity; try float32, lower scales, or other weights"


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
        self._devices = mesh.size if mesh else 1
        self.capacity = batch_size * self._devices
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
        self._second_level = levels_at(schedule, jnp.int32(self.sampling.added_noise_level))
        self._graph, weights = nnx.split((model.unet, model.controlnet, model.autoencoder, model.text_encoder))
        # The batch is split over all devices. Weights that are there already stay as they are (training may have split
        # them), others are put on each; XLA shards everything between.
        self._batch_sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names)) if mesh else None
        self._weights = sharding.on_every_device(weights, mesh) if mesh else weights
        self._within = functools.partial(sharding.gathering_kernels, mesh) if mesh else contextlib.nullcontext
        self._autoencoder_graph = nnx.graphdef(model.autoencoder)
        self._scaling = model.autoencoder.config.scaling_factor

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) at which the networks see an LR image: images of one batch have this in common."""
        return network_size(height, width, **self._size_rule, multiple=self.sampling.size_multiple)

    def enlarged_size(self, height: int, width: int) -> tuple[int, int]:
        """The part of `network_size` that is the image, not what continues it to one of few sizes."""
        return enlarged_size(height, width, **self._size_rule)

    def is_large(self, network_size: tuple[int, int]) -> bool:
        """Whether an image of this `network_size` is restored in tiles; then it is a batch by itself."""
        cells = network_size[0] // self._factor, network_size[1] // self._factor
        vae_tile = self.sampling.vae_tile_size
        return len(self._tiles(network_size).starts) > 1 or 0 < vae_tile**2 < cells[0] * cells[1]

    def plan(self, network_sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
        """Images of these `network_size`s in batches, by their indices, in the order of their first images."""
        return plan_batches(network_sizes, self.capacity, self.is_large)

    def _tiles(self, network_size: tuple[int, int]) -> Tiles:
        height, width = (side // self._factor for side in network_size)
        return plan_tiles(height, width, size=self.sampling.tile_size, overlap=self.sampling.tile_overlap)

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
        multiple = self.sampling.size_multiple
        seen = np.stack([to_network_size(image, **self._size_rule, multiple=multiple) for image in images])
        digests = np.stack([content_digest(image) for image in images])
        restore_one = self._restore_large if self.is_large(seen.shape[1:3]) else self._restore_batch
        inputs = seen, digests, *self._tokens(captions), seed_words(seed)
        restored, finite = restore_one(*inputs, on_steps or (lambda _: None))
        results: list[UInt8[np.ndarray, "h w 3"] | None] = []
        for image, result, is_finite in zip(images, restored, finite, strict=False):
            height, width = self.enlarged_size(*image.shape[:2])
            output = to_output_size(result[:height, :width], image.shape, upscale=self.sampling.upscale)
            results.append(keep_grey(output, image) if is_finite else None)
        return results

    def _restore_batch(
        self,
        seen: UInt8[np.ndarray, "b H W 3"],
        digests: UInt32[np.ndarray, "b 2"],
        high: Int[np.ndarray, "b halves n"],
        low: Int[np.ndarray, "b halves n"],
        seed: UInt32[np.ndarray, "2"],
        on_steps: Callable[[int], None],
    ) -> tuple[UInt8[np.ndarray, "b H W 3"], Bool[np.ndarray, "b"]]:
        pixels = self._placed(seen)
        prepared = self._prepare(self.sampling.start, pixels, digests, high, low, seed)
        state = self._sampler.init(prepared.start)
        for run in self._runs:
            state = self._run_steps(self._sampler, run, prepared, state, run.first, run.last)
            jax.block_until_ready(state)
            on_steps(run.last - run.first)
        return self._fetch(_finish(self._graph, self.sampling.color_fix, self._weights, state.latents, pixels))

    def _restore_large(
        self,
        seen: UInt8[np.ndarray, "1 H W 3"],
        digests: UInt32[np.ndarray, "1 2"],
        high: Int[np.ndarray, "1 halves n"],
        low: Int[np.ndarray, "1 halves n"],
        seed: UInt32[np.ndarray, "2"],
        on_steps: Callable[[int], None],
    ) -> tuple[list[UInt8[np.ndarray, "H W 3"]], list[bool]]:
        """One picture, of which the devices never hold more than its latents and `capacity` tiles."""
        (pixels,) = seen
        sampling, tiles = self.sampling, self._tiles(pixels.shape[:2])
        autoencoder = TiledAutoencoder(
            self._autoencoder_graph,
            self._weights[2],
            self._factor,
            sampling.vae_tile_size,
            together=self._devices,
            place=self._spread,
            fetch=self._fetch,
        )
        moments = autoencoder.encode(pixels)
        levels = self._first_level, self._second_level
        state, step_keys = begin(self._sampler, sampling.start, moments, self._scaling, digests, seed, levels)
        crops = tiles.cut(pixels, scale=self._factor)
        groups = [slice(i, i + self.capacity) for i in range(0, len(crops), self.capacity)]
        # Of this only the text is used. Image features are computed anew for each step: they take less than 1 % of its
        # time, and together would grow with the picture.
        text = self._prepare("noise", self._placed(np.stack(crops[groups[0]])), digests, high, low, seed)
        for run in self._runs:
            for index in range(run.first, run.last):
                latents, predictions = tiles.cut(np.asarray(state.latents[0])), []
                for group in groups:
                    features = image_features(self._graph, self._weights, self._placed(np.stack(crops[group])))
                    prepared = text._replace(image_features=features)
                    part = SamplerState(jnp.asarray(self._placed(np.stack(latents[group]))))
                    part = self._run_steps(Prediction(self._sampler.schedule), run, prepared, part, index, index + 1)
                    predictions += list(self._fetch(part.latents))
                prediction = tiles.blend(predictions[: len(crops)], sampling.tile_weights)
                state = step(self._sampler, state, self._table, np.int32(index), prediction[None], step_keys)
                on_steps(1)
        restored, finite = autoencoder.decode(np.asarray(state.latents[0]))
        return [fix_large_color(restored, pixels, sampling.color_fix)], [finite]

    def _prepare(self, start: Start, pixels: Any, digests: Any, high: Any, low: Any, seed: Any) -> _Prepared:
        inputs = pixels, self._placed(high), self._placed(low), self._placed(digests), seed
        return prepare(self._graph, start, self._weights, *inputs, self._first_level, self._second_level)

    def _run_steps(
        self, sampler: Sampler, run: Run, prepared: _Prepared, state: SamplerState, first: int, last: int
    ) -> SamplerState:
        sampling = self.sampling
        with self._within():
            return run_steps(
                self._graph,
                sampler,
                sampling.guidance_form if run.guided else None,
                self._weights,
                prepared if run.guided or not self._guided else _positive_half(prepared),
                state,
                self._table,
                np.int32(first),
                np.int32(last),
                guidance_scale=float(sampling.guidance_scale),
                guidance_rescale=float(sampling.guidance_rescale),
                conditioning_scale=float(sampling.conditioning_scale if run.conditioned else 0),
            )

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
        return self._spread(np.pad(array, padding, mode="edge"))

    def _spread(self, array: np.ndarray) -> np.ndarray | Array:
        return array if self._batch_sharding is None else jax.device_put(array, self._batch_sharding)

    def _fetch(self, tree: Any) -> Any:
        if self._batch_sharding is not None and not self._batch_sharding.is_fully_addressable:
            tree = multihost_utils.process_allgather(tree, tiled=True)
        return jax.device_get(tree)


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
    keys = jax.vmap(lambda digest: jax.random.split(image_key(seed, digest), 4), out_axes=1)(digests)
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
    return truncate_to_uint8(fix_color(rounded / 255, pixels.astype(jnp.float32) / 255, color)), finite
