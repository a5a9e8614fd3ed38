"""The whole path of an image: from LR photographs and their captions to restored photographs (method §7)."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Int, UInt8, UInt32

from xpsr_jax.config import Sampling
from xpsr_jax.data.captions import Caption
from xpsr_jax.errors import UserError
from xpsr_jax.inference.color import keep_grey
from xpsr_jax.inference.first_stage import FirstStage
from xpsr_jax.inference.image_keys import content_digest, seed_words
from xpsr_jax.inference.large import restore_large
from xpsr_jax.inference.on_devices import OnDevices
from xpsr_jax.inference.plan import plan_batches, plan_steps
from xpsr_jax.inference.programs import (
    Form,
    Inputs,
    finish,
    positive_half,
    prepare_pictures,
    prepare_texts,
    run_outer_steps,
    run_steps,
    run_whole_step,
)
from xpsr_jax.inference.prompts import prompt_tokens
from xpsr_jax.inference.sizes import enlarged_size, network_size, to_network_size, to_output_size
from xpsr_jax.inference.tiling import Tiles, plan_tiles
from xpsr_jax.models.unet import KeptFeatures
from xpsr_jax.weights.model_folder import Model


def restore(
    model: Model,
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    captions: Sequence[Caption],
    sampling: Sampling | None = None,
    *,
    seed: int = 0,
    batch_size: int = 1,
    mesh: Mesh | None = None,
    names: Sequence[str] | None = None,
) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """Restores photographs of any size. Each result is `sampling.upscale` times as large.

    If the model has a first stage, that runs first, and the other networks see its result.

    An image's result depends on its pixels, its captions, the seed and the settings. It does not depend on its
    position, nor (except for rounding) on the batch or the number of devices. A grey image (R = G = B) gives a grey
    result.

    Args:
        model: the model.
        images: the photographs.
        captions: one caption for each photograph.
        sampling: the settings. None: the model's own settings.
        seed: seed of the noise, 64 bits.
        batch_size: images of equal size at once on each device.
        mesh: devices over which batches are split. None: the default device.
        names: names of the images in error messages.

    Raises:
        UserError: the networks computed NaN or infinity, or a caption or setting cannot be used.
    """
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images but {len(captions)} captions")
    names = names or [f"image {i}" for i in range(len(images))]
    restorer = Restorer(model, sampling, batch_size=batch_size, mesh=mesh)
    results: dict[int, UInt8[np.ndarray, "_ _ 3"]] = {}
    for batch in restorer.plan([restorer.network_size(*image.shape[:2]) for image in images]):
        restored = restorer([images[i] for i in batch], [captions[i] for i in batch], seed=seed)
        for i, result in zip(batch, restored, strict=True):
            if result is None:
                raise UserError(not_finite(names[i]))
            results[i] = result
    return [results[i] for i in range(len(images))]


def not_finite(name: str) -> str:
    """The message for an image whose result contains NaN or infinity."""
    return f"{name}: the networks computed NaN or infinity; try float32, lower scales, or other weights"


class Restorer:
    """A model that is ready to restore batches. Programs are compiled once for each batch shape and sampler.

    If the mesh spans several processes, all of them must make the same calls, and each gets all results.

    Attributes:
        sampling: the settings.
        capacity: images that one batch can hold: `batch_size` on each device.
        steps: number of sampling steps that are run for an image.
        networks: the networks on their devices.
        first_stage: the first stage. None: the model has none.
        planned: the planned steps.
        cache_levels: the value in the settings, or the largest possible value if the settings have none.
    """

    def __init__(
        self, model: Model, sampling: Sampling | None = None, *, batch_size: int = 1, mesh: Mesh | None = None
    ) -> None:
        """Makes the model ready.

        Args:
            model: the model.
            sampling: the settings. None: the model's own settings.
            batch_size: images of equal size, or tiles of a large image, at once on each device.
            mesh: devices over which batches are split. None: the default device.

        Raises UserError for settings that the model's noise schedule or its UNet do not allow.
        """
        self.sampling = sampling or model.defaults
        most = model.unet.config.layers_per_block + 1
        self.cache_levels = self.sampling.cache_levels or most
        if self.cache_levels > most:
            raise UserError(f"cache_levels can be at most {most} with this UNet, not {self.cache_levels}")
        self.networks = OnDevices(model, batch_size=batch_size, mesh=mesh)
        self.first_stage: FirstStage | None = None
        if model.first_stage is not None:
            self.first_stage = FirstStage(self.networks, tile=self.sampling.first_stage_tile)
        elif self.sampling.steps == 0:
            raise UserError("0 steps need a model with a first stage, but this model has none: set steps to 1 or more")
        # With 0 steps, the plan is not used.
        self.planned = plan_steps(dataclasses.replace(self.sampling, steps=self.sampling.steps or 1), model.schedule)
        self._tokenizer = model.tokenizer
        self.capacity, self.steps = self.networks.capacity, self.planned.count if self.sampling.steps else 0

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) at which the networks see an LR image. It is the same for all images of a batch."""
        return network_size(height, width, **self._size_rule, multiple=self.sampling.size_multiple)

    def enlarged_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) of the image itself within `network_size`, without the padding."""
        return enlarged_size(height, width, **self._size_rule)

    def is_large(self, network_size: tuple[int, int]) -> bool:
        """Whether an image of this `network_size` is restored in tiles. Such an image has a batch to itself."""
        cells = network_size[0] // self.networks.factor, network_size[1] // self.networks.factor
        vae_tile = self.sampling.vae_tile_size
        return len(self.tiles(network_size).starts) > 1 or 0 < vae_tile**2 < cells[0] * cells[1]

    def plan(self, network_sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
        """Groups images of these `network_size`s into batches of indices, in the order of their first images."""
        return plan_batches(network_sizes, self.capacity, self.is_large)

    def cells(self, network_size: tuple[int, int]) -> int:
        """The number of latent cells that a step computes for an image of this `network_size`.

        Each tile counts in full, even where tiles overlap.
        """
        tiles = self.tiles(network_size)
        return len(tiles.starts) * tiles.shape[0] * tiles.shape[1]

    def tiles(self, network_size: tuple[int, int]) -> Tiles:
        """The tiles of an image of this `network_size`, in latent cells. One tile if each step sees the whole image."""
        height, width = (side // self.networks.factor for side in network_size)
        return plan_tiles(height, width, size=self.sampling.tile_size, overlap=self.sampling.tile_overlap)

    def __call__(
        self,
        images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
        captions: Sequence[Caption],
        *,
        seed: int = 0,
        on_steps: Callable[[int], None] | None = None,
        clean: Sequence[UInt8[np.ndarray, "_ _ 3"] | None] | None = None,
    ) -> list[UInt8[np.ndarray, "_ _ 3"] | None]:
        """Restores a batch of at most `capacity` images of one `network_size`.

        Args:
            on_steps: called with the number of steps done since the last call, for progress bars.
            clean: the first stage's results for the images, if they are known. None: they are computed.

        Returns:
            the restored images. None for an image whose result contains NaN or infinity.
        """
        if not 0 < len(images) == len(captions) <= self.capacity:
            raise ValueError(f"{len(images)} images and {len(captions)} captions for a batch of {self.capacity}")
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
                raise ValueError(f"an image must be uint8 of shape (height, width, 3), not {image.dtype} {image.shape}")
        if not self.first_stage:
            clean = images
        elif clean is None:
            clean = self.first_stage(images)
        pairs = list(zip(clean, images, strict=True))
        if not self.sampling.steps:
            return [None if picture is None else self._finished(picture, image) for picture, image in pairs]
        seen = self._seen([image if picture is None else picture for picture, image in pairs], images)
        own_colors = self.first_stage is not None and self.sampling.color_reference == "lr"
        reference = self._seen(images, images) if own_colors else seen
        digests = np.stack([content_digest(image) for image in images])
        inputs = seen, reference, digests, *self._tokens(captions), seed_words(seed), on_steps or (lambda _: None)
        restored, finite = (
            self._restore_in_tiles(*inputs) if self.is_large(seen.shape[1:3]) else self._restore_batch(*inputs)
        )
        results: list[UInt8[np.ndarray, "_ _ 3"] | None] = []
        for (picture, image), result, is_finite in zip(pairs, restored, finite, strict=False):
            height, width = self.enlarged_size(*image.shape[:2])
            results.append(
                self._finished(result[:height, :width], image) if is_finite and picture is not None else None
            )
        return results

    def _seen(
        self, pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]], images: Sequence[UInt8[np.ndarray, "_ _ 3"]]
    ) -> UInt8[np.ndarray, "b H W 3"]:
        """The networks' inputs: the pictures at `network_size`. They are the LR images or the first stage's results."""
        rule = self._size_rule | {"multiple": self.sampling.size_multiple}
        pairs = zip(pictures, images, strict=True)
        return np.stack([to_network_size(picture, **rule, lr_shape=image.shape) for picture, image in pairs])

    def _finished(
        self, restored: UInt8[np.ndarray, "_ _ 3"], image: UInt8[np.ndarray, "h w 3"]
    ) -> UInt8[np.ndarray, "h2 w2 3"]:
        return keep_grey(to_output_size(restored, image.shape, upscale=self.sampling.upscale), image)

    def _restore_batch(
        self,
        seen: UInt8[np.ndarray, "b H W 3"],
        reference: UInt8[np.ndarray, "b H W 3"],
        digests: UInt32[np.ndarray, "b 2"],
        high: Int[np.ndarray, "b high_halves n"],
        low: Int[np.ndarray, "b low_halves n"],
        seed: UInt32[np.ndarray, "2"],
        on_steps: Callable[[int], None],
    ) -> tuple[UInt8[np.ndarray, "b2 H W 3"], Bool[np.ndarray, "b2"]]:
        networks, steps, sampling = self.networks, self.planned, self.sampling
        graph, weights = networks.graph, networks.weights
        pixels = networks.fill(seen)
        texts = prepare_texts(graph, weights, networks.fill(high), networks.fill(low))
        noised = steps.first_level, steps.second_level
        pictures = prepare_pictures(graph, sampling.start, weights, pixels, networks.fill(digests), seed, *noised)
        positive = positive_half(texts, self.capacity) if steps.partly_guided else texts
        state = steps.sampler.init(pictures.start)
        kept: KeptFeatures
        for run in steps.runs:
            levels = 0 if run.features == "unused" else self.cache_levels
            form = Form(graph, sampling.guidance_form if run.guided else None, levels)
            inputs = Inputs(weights, texts if run.guided else positive, pictures, steps.table, steps.scales(run))
            part = np.int32(run.first), np.int32(run.last)
            with networks.within():
                if run.features == "kept":
                    state, kept = run_whole_step(form, steps.sampler, inputs, state, part[0])
                elif run.features == "used":
                    state = run_outer_steps(form, steps.sampler, inputs, kept, state, *part)
                else:
                    state = run_steps(form, steps.sampler, inputs, state, *part)
            jax.block_until_ready(state)
            on_steps(run.last - run.first)
        colors = pixels if reference is seen else networks.fill(reference)
        finished: tuple[np.ndarray, np.ndarray] = networks.fetch(
            finish(graph, sampling.color_fix, weights, state.latents, colors)
        )
        return finished

    def _restore_in_tiles(
        self,
        seen: UInt8[np.ndarray, "1 H W 3"],
        reference: UInt8[np.ndarray, "1 H W 3"],
        digests: UInt32[np.ndarray, "1 2"],
        high: Int[np.ndarray, "1 high_halves n"],
        low: Int[np.ndarray, "1 low_halves n"],
        seed: UInt32[np.ndarray, "2"],
        on_steps: Callable[[int], None],
    ) -> tuple[list[UInt8[np.ndarray, "H W 3"]], list[bool]]:
        networks = self.networks
        texts = prepare_texts(networks.graph, networks.weights, networks.fill(high), networks.fill(low))
        tiles = self.tiles(seen.shape[1:3])
        restored, finite = restore_large(
            networks,
            self.planned,
            self.sampling,
            self.cache_levels,
            seen[0],
            reference[0],
            tiles,
            texts,
            digests[0],
            seed,
            on_steps,
        )
        return [restored], [finite]

    @property
    def _size_rule(self) -> dict[str, Any]:
        return {
            "upscale": self.sampling.upscale,
            "process_size": self.sampling.process_size,
            "factor": self.networks.factor,
        }

    def _tokens(
        self, captions: Sequence[Caption]
    ) -> tuple[Int[np.ndarray, "b high_halves n"], Int[np.ndarray, "b low_halves n"]]:
        """Token ids of the high-level and low-level prompts, in halves: positive and negative, or positive alone.

        Without a negative low-level prompt the two halves share the low-level caption.
        """
        sampling = self.sampling
        high = [
            prompt_tokens(
                self._tokenizer, [caption.high for caption in captions], positive_words=sampling.positive_words
            )
        ]
        low = [prompt_tokens(self._tokenizer, [caption.low for caption in captions])]
        if self.planned.guided:
            high.append(np.repeat(prompt_tokens(self._tokenizer, [sampling.negative_high]), len(captions), axis=0))
            if sampling.negative_low is not None:
                low.append(np.repeat(prompt_tokens(self._tokenizer, [sampling.negative_low]), len(captions), axis=0))
        return np.stack(high, axis=1), np.stack(low, axis=1)
