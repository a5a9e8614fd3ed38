"""Forecasts the cost of restoring pictures: network evaluations, tiles, memory. Nothing is computed or compiled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xpsr_jax.inference.first_stage import run_first_stage
from xpsr_jax.inference.large import KEPT_BYTES, step
from xpsr_jax.inference.live_bytes import expected_bytes
from xpsr_jax.inference.programs import (
    Form,
    Inputs,
    finish,
    positive_half,
    predict_tiles,
    predict_tiles_from_kept,
    prepare_pictures,
    prepare_texts,
    run_outer_steps,
    run_steps,
    run_whole_step,
)
from xpsr_jax.inference.restore import Restorer
from xpsr_jax.inference.tiled_autoencoder import Direction, TiledAutoencoder, run_autoencoder

Size = tuple[int, int]


class Evaluations(NamedTuple):
    """How often the networks predict the noise of one picture or tile. A step with guidance needs two predictions.

    Attributes:
        whole: predictions by the UNet and the ControlNet.
        outer: predictions by the UNet's outermost layers alone, from features that were kept.
    """

    whole: int
    outer: int

    def __mul__(self, count: Any) -> "Evaluations":
        """The evaluations for `count` pictures or tiles."""
        return Evaluations(self.whole * count, self.outer * count)


class TileCounts(NamedTuple):
    """The number of tiles in which the networks see a picture. 1: they see the whole picture at once.

    Attributes:
        steps: tiles in each sampling step.
        autoencoder: tiles for encoding, and the same number again for decoding.
        first_stage: tiles of the first stage. 0: the model has no first stage.
    """

    steps: int
    autoencoder: int
    first_stage: int


@dataclass(frozen=True)
class Memory:
    """Bytes on each device.

    Attributes:
        weights: bytes of the networks' weights.
        working: bytes that the largest program needs in addition: its inputs, and an estimate for its results
            (`live_bytes.expected_bytes`).
    """

    weights: int
    working: int


class Forecast:
    """Forecasts the work of a `Restorer`. Its model may hold shapes instead of arrays.

    Attributes:
        evaluations: evaluations for one picture that is seen whole, or for one tile.
    """

    def __init__(self, restorer: Restorer) -> None:
        self._restorer = restorer
        self._steps, self._networks = restorer.planned, restorer.networks
        runs = self._steps.runs if restorer.steps else ()
        counts = {used: 0 for used in (False, True)}
        for run in runs:
            counts[run.features == "used"] += (run.last - run.first) * (2 if run.guided else 1)
        self.evaluations = Evaluations(counts[False], counts[True])

    def tiles(self, size: Size) -> TileCounts:
        """The tiles of an LR picture of this (height, width)."""
        restorer, network_size = self._restorer, self._restorer.network_size(*size)
        first_stage = restorer.first_stage.tiles(*size) if restorer.first_stage else 0
        if not restorer.steps:
            return TileCounts(0, 0, first_stage)
        if not restorer.is_large(network_size):
            return TileCounts(1, 1, first_stage)
        return TileCounts(
            len(restorer.tiles(network_size).starts), self._autoencoder.tiles(*self._cells(network_size)), first_stage
        )

    def of_batch(self, sizes: Sequence[Size]) -> Evaluations:
        """The evaluations for a batch of LR pictures of these (height, width), as `Restorer.plan` makes batches.

        A batch is padded to its capacity. The padding is computed too, so it counts.
        """
        if not self._restorer.steps:
            return Evaluations(0, 0)
        capacity, tiles = self._restorer.capacity, self.tiles(sizes[0]).steps
        computed = -(-tiles // capacity) * capacity
        network_size = self._restorer.network_size(*sizes[0])
        if self.evaluations.outer and self._restorer.is_large(network_size) and not self._keeps(network_size):
            return Evaluations(sum(self.evaluations), 0) * computed
        return self.evaluations * computed

    def memory(self, size: Size) -> Memory:
        """The memory for a batch of LR pictures of this (height, width)."""
        weights = self._networks.weights
        total = _bytes(weights)
        traced = _Traced()
        if self._networks.first_stage is not None:
            graph, first_weights, _ = self._networks.first_stage
            assert self._restorer.first_stage is not None
            side = self._restorer.first_stage.seen(*size)
            traced(run_first_stage, graph, first_weights, self._batch((*side, 3), jnp.uint8), weights=first_weights)
            total += _bytes(first_weights)
        if self._restorer.steps:
            network_size = self._restorer.network_size(*size)
            texts = self._texts(traced)
            if self._restorer.is_large(network_size):
                self._large(traced, network_size, texts)
            else:
                self._whole(traced, network_size, texts)
        return Memory(total, traced.most)

    def _texts(self, traced: "_Traced") -> Any:
        low_halves = self._steps.guided and self._restorer.sampling.negative_low is not None
        high, low = (self._batch((halves, 77), jnp.int32) for halves in (1 + self._steps.guided, 1 + low_halves))
        return traced(prepare_texts, self._networks.graph, self._networks.weights, high, low, weights=self._weights)

    def _whole(self, traced: "_Traced", network_size: Size, texts: Any) -> None:
        networks, steps, sampling = self._networks, self._steps, self._restorer.sampling
        graph, weights = networks.graph, networks.weights
        pixels, digests = self._batch((*network_size, 3), jnp.uint8), self._batch((2,), jnp.uint32)
        seed = jax.ShapeDtypeStruct((2,), jnp.uint32)
        noised = steps.first_level, steps.second_level
        pictures = traced(
            prepare_pictures, graph, sampling.start, weights, pixels, digests, seed, *noised, weights=weights
        )
        state, kept = jax.eval_shape(steps.sampler.init, pictures.start), None
        for run in {run.guided: run for run in steps.runs}.values():
            own = texts if run.guided or not steps.partly_guided else self._positive(traced, texts)
            inputs = Inputs(weights, own, pictures, steps.table, steps.scales(run))
            part = np.int32(run.first), np.int32(run.last)
            features = {each.features for each in steps.runs if each.guided == run.guided}
            if "unused" in features:
                traced(run_steps, self._form(run.guided, 0), steps.sampler, inputs, state, *part, weights=weights)
            form = self._form(run.guided, self._restorer.cache_levels)
            if "kept" in features:
                _, kept = traced(run_whole_step, form, steps.sampler, inputs, state, part[0], weights=weights)
            if "used" in features:
                traced(run_outer_steps, form, steps.sampler, inputs, kept, state, *part, weights=weights)
        traced(finish, graph, sampling.color_fix, weights, pictures.start, pixels, weights=weights)

    def _large(self, traced: "_Traced", network_size: Size, texts: Any) -> None:
        networks, steps = self._networks, self._steps
        for direction in ("encode", "decode"):
            self._autoencoder_program(traced, direction, network_size)
        for guided in {run.guided for run in steps.runs}:
            own = texts if guided or not steps.partly_guided else self._positive(traced, texts)
            kept = self._predict_tiles(traced, network_size, guided, own)
            if kept is not None:
                form = self._form(guided, self._restorer.cache_levels)
                given = networks.weights, own, kept, self._tile_latents(network_size), np.int32(0)
                scales = steps.scales(steps.runs[0])
                traced(predict_tiles_from_kept, form, *given, scales, weights=networks.weights)
        latents = jax.ShapeDtypeStruct((1, *self._cells(network_size), self._channels), jnp.float32)
        state = jax.eval_shape(steps.sampler.init, latents)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
        traced(step, steps.sampler, state, steps.table, np.int32(0), latents, keys, weights=())

    def _predict_tiles(self, traced: "_Traced", network_size: Size, guided: bool, texts: Any) -> Any:
        """Returns the shapes of the features kept for a group of tiles, or None if none are kept."""
        keeps = any(run.features == "kept" for run in self._steps.runs)
        form = self._form(guided, self._restorer.cache_levels if keeps else 0)
        height, width = (side * self._networks.factor for side in self._restorer.tiles(network_size).shape)
        crops, latents = self._batch((height, width, 3), jnp.uint8), self._tile_latents(network_size)
        given = self._networks.weights, texts, crops, latents, np.int32(0), self._steps.scales(self._steps.runs[0])
        return traced(predict_tiles, form, *given, weights=self._networks.weights)[1]

    def _keeps(self, network_size: Size) -> bool:
        """Whether the host can keep the features of all tiles of a picture."""
        traced = _Traced()
        texts = self._texts(traced)
        guided = self._steps.runs[0].guided
        own = texts if guided or not self._steps.partly_guided else self._positive(traced, texts)
        kept = self._predict_tiles(traced, network_size, guided, own)
        groups = -(-len(self._restorer.tiles(network_size).starts) // self._restorer.capacity)
        return groups * _bytes(kept) <= KEPT_BYTES

    def _autoencoder_program(self, traced: "_Traced", direction: Direction, network_size: Size) -> None:
        autoencoder = self._autoencoder
        height, width = autoencoder.shape(*self._cells(network_size))
        factor = self._networks.factor
        seen = (
            jax.ShapeDtypeStruct((1, factor * height, factor * width, 3), jnp.uint8)
            if direction == "encode"
            else jax.ShapeDtypeStruct((1, height, width, self._channels), jnp.float32)
        )
        statistics = autoencoder.no_statistics(direction)
        given = autoencoder.weights, seen, statistics, np.bool_(False)
        traced(run_autoencoder, autoencoder.graph, direction, *given, weights=autoencoder.weights)

    def _positive(self, traced: "_Traced", texts: Any) -> Any:
        return traced(positive_half, texts, self._restorer.capacity, weights=())

    def _form(self, guided: bool, cache_levels: int) -> Form:
        return Form(self._networks.graph, self._restorer.sampling.guidance_form if guided else None, cache_levels)

    def _batch(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self._restorer.capacity, *shape), dtype)

    def _tile_latents(self, network_size: Size) -> jax.ShapeDtypeStruct:
        return self._batch((*self._restorer.tiles(network_size).shape, self._channels), jnp.float32)

    def _cells(self, network_size: Size) -> Size:
        height, width = (side // self._networks.factor for side in network_size)
        return height, width

    @property
    def _weights(self) -> Any:
        return self._networks.weights

    @property
    def _channels(self) -> int:
        return self._networks.latent_channels

    @property
    def _autoencoder(self) -> TiledAutoencoder:
        networks = self._networks
        tile = self._restorer.sampling.vae_tile_size
        return TiledAutoencoder(networks.autoencoder_graph, networks.weights[2], networks.factor, tile)


class _Traced:
    """Traces programs and remembers the memory of the largest.

    Attributes:
        most: bytes of its inputs without the weights, plus the expected bytes of its results.
    """

    def __init__(self) -> None:
        self.most = 0

    def __call__(self, program: Any, *given: Any, weights: Any) -> Any:
        """Returns the shapes of a program's results. `weights`: the weights among its inputs."""
        traced = program.trace(*given)
        inputs = sum(_bytes(aval) for aval in traced.jaxpr.in_avals) - _bytes(weights)
        self.most = max(self.most, inputs + expected_bytes(traced.jaxpr.jaxpr))
        return traced.out_info


def _bytes(tree: Any) -> int:
    leaves = (leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape"))
    return sum(int(np.prod(leaf.shape)) * int(leaf.dtype.itemsize) for leaf in leaves)
