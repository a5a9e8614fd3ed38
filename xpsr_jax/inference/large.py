"""Restores one picture of any size. The devices never hold more than its latents and some tiles.

docs/reference/sampling.md, Large pictures, has measurements.
"""

import functools
import logging
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8, UInt32

from xpsr_jax.config import Sampling
from xpsr_jax.diffusion.choices import Start
from xpsr_jax.diffusion.process import Latents
from xpsr_jax.diffusion.samplers import (
    Sampler,
    SamplerState,
    Table,
    advance,
    normal,
    start_latents,
    step_noise,
)
from xpsr_jax.inference.color import fix_large_color
from xpsr_jax.inference.image_keys import image_key
from xpsr_jax.inference.on_devices import OnDevices
from xpsr_jax.inference.plan import Run, Steps
from xpsr_jax.inference.programs import Form, NoiseLevel, Texts, positive_half, predict_tiles, predict_tiles_from_kept
from xpsr_jax.inference.tiled_autoencoder import TiledAutoencoder
from xpsr_jax.inference.tiling import Tiles
from xpsr_jax.models.unet import KeptFeatures

# The most memory for the features of all tiles that the host keeps between steps.
KEPT_BYTES = 4 * 2**30

_log = logging.getLogger(__name__)


def restore_large(
    networks: OnDevices,
    steps: Steps,
    sampling: Sampling,
    cache_levels: int,
    pixels: UInt8[np.ndarray, "H W 3"],
    reference: UInt8[np.ndarray, "H W 3"],
    tiles: Tiles,
    texts: Texts,
    digest: UInt32[np.ndarray, "2"],
    seed: UInt32[np.ndarray, "2"],
    on_steps: Callable[[int], None],
) -> tuple[UInt8[np.ndarray, "H W 3"], bool]:
    """Restores a picture in tiles.

    Args:
        cache_levels: as in `Sampling`.
        pixels: the LR image, or the first stage's result for it, at the size that the networks see.
        reference: the picture whose colours the result gets, at the same size.
        tiles: tiles of the latents.
        texts: the picture's texts, once for each tile of a batch.
        digest: digest of the LR image.
        on_steps: called after each step, with 1.

    Returns:
        the restored picture, and whether all its values are finite.
    """
    autoencoder = TiledAutoencoder(
        networks.autoencoder_graph,
        networks.weights[2],
        networks.factor,
        sampling.vae_tile_size,
        together=networks.devices,
        place=networks.spread,
        fetch=networks.fetch,
    )
    state, step_key = begin(
        steps.sampler,
        sampling.start,
        autoencoder.encode(pixels),
        networks.scaling,
        digest,
        seed,
        steps.first_level,
        steps.second_level,
    )
    crops = tiles.cut(pixels, scale=networks.factor)
    predict = TilePredictor(networks, steps, cache_levels, crops, texts)
    for run in steps.runs:
        for index in range(run.first, run.last):
            latents = tiles.cut(np.asarray(state.latents[0]))
            predictions = predict(run, latents, steps.table.timestep[index])
            whole = tiles.blend(predictions, sampling.tile_weights)
            state = step(steps.sampler, state, steps.table, np.int32(index), whole[None], step_key)
            on_steps(1)
    restored, finite = autoencoder.decode(np.asarray(state.latents[0]))
    return fix_large_color(restored, reference, sampling.color_fix), finite


class TilePredictor:
    """Predicts all tiles of a picture, in batches. Features that are kept between steps are stored on the host."""

    def __init__(
        self,
        networks: OnDevices,
        steps: Steps,
        cache_levels: int,
        crops: Sequence[UInt8[np.ndarray, "H W 3"]],
        texts: Texts,
    ) -> None:
        """
        Args:
            crops: the tiles of the LR image.
            texts: the picture's texts, once for each tile of a batch.
        """
        self._networks, self._steps, self._cache_levels, self._crops = networks, steps, cache_levels, crops
        self._texts = {True: texts, False: positive_half(texts, networks.capacity) if steps.partly_guided else texts}
        self._groups = [slice(i, i + networks.capacity) for i in range(0, len(crops), networks.capacity)]
        self._keeping = any(run.features == "kept" for run in steps.runs)
        self._kept: list[KeptFeatures] = []  # one entry for each group of tiles

    def __call__(
        self, run: Run, latents: Sequence[Float[np.ndarray, "h w c"]], timestep: np.number
    ) -> list[Float[np.ndarray, "h w c"]]:
        """Predicts all tiles of the latents in one step of a run."""
        from_kept = run.features == "used" and bool(self._kept)
        if not from_kept:
            self._kept = []
        predict = self._predict_from_kept if from_kept else self._predict_whole
        predictions: list[Float[np.ndarray, "h w c"]] = []
        for i, group in enumerate(self._groups):
            with self._networks.within():
                prediction = predict(i, run, np.stack(latents[group]), timestep)
            predictions += list(self._networks.fetch(prediction))
        return predictions[: len(latents)]

    def _predict_whole(
        self, group: int, run: Run, latents: Float[np.ndarray, "b h w c"], timestep: np.number
    ) -> Float[Array, "filled h w c"]:
        networks = self._networks
        keep = self._keeping and run.features == "kept"
        crops = networks.fill(np.stack(self._crops[self._groups[group]]))
        inputs = *self._common(run), crops, networks.fill(latents), timestep, self._steps.scales(run)
        prediction: Latents
        kept: KeptFeatures | None
        prediction, kept = predict_tiles(self._form(run, self._cache_levels if keep else 0), *inputs)
        if kept is not None and (group or fits_on_host(kept, len(self._groups))):
            self._kept.append(networks.fetch(kept))
        elif keep:
            self._keeping = False
        return prediction

    def _predict_from_kept(
        self, group: int, run: Run, latents: Float[np.ndarray, "b h w c"], timestep: np.number
    ) -> Float[Array, "filled h w c"]:
        networks = self._networks
        kept = jax.tree.map(networks.spread, self._kept[group])
        inputs = *self._common(run), kept, networks.fill(latents), timestep, self._steps.scales(run)
        prediction: Latents = predict_tiles_from_kept(self._form(run, self._cache_levels), *inputs)
        return prediction

    def _common(self, run: Run) -> tuple[nnx.State, Texts]:
        return self._networks.weights, self._texts[run.guided]

    def _form(self, run: Run, cache_levels: int) -> Form:
        return Form(self._networks.graph, self._steps.sampling.guidance_form if run.guided else None, cache_levels)


def fits_on_host(kept: KeptFeatures, groups: int) -> bool:
    """Whether the kept features of that many groups of tiles fit into `KEPT_BYTES`. Logs a warning if they do not."""
    size: int = groups * sum(feature.nbytes for feature in jax.tree.leaves(kept))
    if size > KEPT_BYTES:
        _log.warning(
            "Every step computes all layers: keeping the features of all tiles would take %.1f GiB of memory, "
            "more than %.1f GiB.",
            size / 2**30,
            KEPT_BYTES / 2**30,
        )
    return size <= KEPT_BYTES


@functools.partial(jax.jit, static_argnums=(0, 1))
def begin(
    sampler: Sampler,
    start: Start,
    moments: tuple[Float[Array, "h w c"], Float[Array, "h w c"]],
    scaling: Float[Array, ""],
    digest: UInt32[Array, "2"],
    seed: UInt32[Array, "2"],
    first_level: NoiseLevel,
    second_level: NoiseLevel,
) -> tuple[SamplerState, Array]:
    """Returns the state before the first step, and the key (1,) of the steps' noise, like `programs.prepare_pictures`.

    Noise is drawn for the whole picture, so it does not depend on the tiles.

    Args:
        moments: mean and log variance for the LR image, from `TiledAutoencoder.encode`.
        scaling: scaling factor of the latents.
    """
    posterior_key, *noise_keys, step_key = jax.random.split(image_key(seed, digest), 4)
    mean, log_variance = moments
    latents_shape = mean.shape
    mean = mean[None]
    if start != "lr_without_noise":
        mean = mean + jnp.exp(0.5 * log_variance) * normal(posterior_key[None], latents_shape)
    lr_latents = scaling * mean
    noises = (normal(key[None], latents_shape) for key in noise_keys)
    latents = start_latents(start, lr_latents, *noises, first_level=first_level, second_level=second_level)
    return sampler.init(latents), step_key[None]


@functools.partial(jax.jit, static_argnums=0)
def step(
    sampler: Sampler,
    state: SamplerState,
    table: Table,
    index: Int[Array, ""],
    prediction: Latents,
    step_keys: Array,
) -> SamplerState:
    """Takes the sampler's step with that index. `prediction` was blended from the tiles' predictions."""
    noise = step_noise(step_keys, prediction.shape[1:])
    return advance(sampler, lambda *_: prediction, state, table, noise, index, index + 1)
