"""Runs the autoencoder on pictures of any size with constant device memory.

docs/reference/sampling.md, Large pictures, has measurements.

A picture is processed in tiles with a border. The inner parts of the tiles are blended into each other. Two operations
are not local:

- Group norms: all tiles share one set of statistics, computed from the picture reduced to the size of a tile. So no
  tile gets its own brightness or contrast.
- The attention in the middle: each tile attends only to itself. This causes most of the difference from the untiled
  result.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

from xpsr_jax.inference.tiling import Piece, lay, plan_pieces
from xpsr_jax.models.autoencoder import Autoencoder

Direction = Literal["encode", "decode"]

# Latent cells around a tile's inner part: most of the reach of the convolutions. With 20 the result is not closer to
# the untiled one.
BORDER = 12
# Latent cells to each side of the line where two inner parts meet, over which one blends into the other.
FADE = 6


class Statistics(NamedTuple):
    """Statistics of each group of each group norm, in the order in which the norms run. On the host, numpy arrays."""

    mean: Float[Any, "norms groups"]
    variance: Float[Any, "norms groups"]


@dataclass(frozen=True)
class TiledAutoencoder:
    """An `Autoencoder`, split by nnx.

    Attributes:
        graph, weights: the two parts of the split.
        factor: side of a latent cell, in pixels.
        tile: side of a tile with its border, in latent cells. A picture of up to tile² cells is one piece, and is
            computed exactly like in the autoencoder itself. 0: every picture is one piece.
        together: number of tiles that are computed at once.
        place: puts a batch of that many tiles on the devices.
        fetch: copies the results to the host.
    """

    graph: nnx.GraphDef[Autoencoder]
    weights: nnx.State
    factor: int
    tile: int
    together: int = 1
    place: Callable[[np.ndarray], np.ndarray | Array] = np.asarray
    fetch: Callable[[Any], Any] = jax.device_get

    def encode(
        self, image: UInt8[np.ndarray, "H W 3"]
    ) -> tuple[Float[np.ndarray, "h w c"], Float[np.ndarray, "h w c"]]:
        """The mean and the log variance of the posterior of the unscaled latents, like `Autoencoder.moments`."""
        moments, _ = self._through("encode", image, before=self.factor, after=1)
        mean, log_variance = np.split(moments, 2, axis=-1)
        return mean, log_variance

    def decode(self, latents: Float[np.ndarray, "h w c"]) -> tuple[UInt8[np.ndarray, "H W 3"], bool]:
        """The 8-bit image of scaled latents, and whether all its values were finite."""
        return self._through("decode", latents, before=1, after=self.factor)

    def _through(self, direction: Direction, picture: np.ndarray, *, before: int, after: int) -> tuple[Any, bool]:
        """Runs a picture through one half.

        Args:
            before: points of the picture per latent cell, along each axis.
            after: points of the result per latent cell, along each axis.
        """
        height, width = (side // before for side in picture.shape[:2])
        shape = self.shape(height, width)
        whole = shape == (height, width)
        rows, columns = self._pieces(height, width)

        def run(parts: list[np.ndarray], statistics: Statistics | None) -> tuple[np.ndarray, np.ndarray, Statistics]:
            batch = self.place(np.stack(parts + parts[-1:] * (self.together - len(parts))))
            known, given = statistics is not None, statistics or self.no_statistics(direction)
            computed: tuple[np.ndarray, np.ndarray, Statistics] = self.fetch(
                run_autoencoder(self.graph, direction, self.weights, batch, given, known)
            )
            return computed

        statistics = None
        if not whole:
            reduced = _reduced(picture, shape[0] * before, shape[1] * before)
            *_, found = run([reduced], None)
            statistics = Statistics(found.mean[0], found.variance[0])
        result: np.ndarray | None = None
        all_finite = True
        for y in rows:
            # The band's axes are (x, y, channel), because `lay` works along the first axis.
            band: np.ndarray | None = None
            for first in range(0, len(columns), self.together):
                group = columns[first : first + self.together]
                corner = before * y.start, [before * x.start for x in group]
                parts = [picture[corner[0] :, x:][: before * shape[0], : before * shape[1]] for x in corner[1]]
                outs, finite, _ = run(parts, statistics)
                all_finite &= bool(finite[: len(group)].all())
                for x, out in zip(group, outs, strict=False):
                    band = lay(band, out.swapaxes(0, 1), x, length=width, scale=after, fade=FADE)
            assert band is not None
            result = lay(result, band.swapaxes(0, 1), y, length=height, scale=after, fade=FADE)
        return result, all_finite

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) of a picture's tiles, all in latent cells. The picture's own size if it is one piece."""
        if not self.tile or height * width <= self.tile * self.tile:
            return height, width
        return min(self.tile, height), min(self.tile, width)

    def tiles(self, height: int, width: int) -> int:
        """The number of tiles for a picture of this size in latent cells."""
        rows, columns = self._pieces(height, width)
        return len(rows) * len(columns)

    def _pieces(self, height: int, width: int) -> tuple[list[Piece], list[Piece]]:
        sizes = self.shape(height, width)
        return (
            plan_pieces(height, size=sizes[0], border=BORDER),
            plan_pieces(width, size=sizes[1], border=BORDER),
        )

    def no_statistics(self, direction: Direction) -> Statistics:
        """Placeholder statistics for a call without known statistics, so that one program serves both cases."""
        autoencoder = nnx.merge(self.graph, self.weights)
        norms = [norm for *_, norm in _norms(_half(autoencoder, direction))]
        return Statistics(*2 * (np.zeros((len(norms), norms[0].num_groups), np.float32),))


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_autoencoder(
    graph: nnx.GraphDef[Autoencoder],
    direction: Direction,
    weights: nnx.State,
    tiles: Array,
    given: Statistics,
    known: Bool[Array, ""],
) -> tuple[Array, Bool[Array, " b"], Statistics]:
    """Runs tiles through one half of the autoencoder.

    Group norms use the given statistics if `known`, and otherwise each tile's own. Returns the results, whether each is
    finite, and each tile's own statistics.
    """
    autoencoder = nnx.merge(graph, weights)
    found: list[Statistics] = []
    for module, name, norm in _norms(_half(autoencoder, direction)):
        setattr(module, name, functools.partial(_normalise, norm, given, known, found))
    if direction == "encode":
        out = jnp.concatenate(autoencoder.moments(2 * (tiles.astype(jnp.float32) / 255) - 1), axis=-1)
        finite = jnp.isfinite(out).all((1, 2, 3))
    else:
        image = autoencoder.decode(tiles)
        finite = jnp.isfinite(image).all((1, 2, 3))
        out = jnp.round(jnp.clip(image / 2 + 0.5, 0, 1) * 255).astype(jnp.uint8)
    return out, finite, Statistics(*(jnp.stack(each, axis=1) for each in zip(*found, strict=True)))


def _normalise(
    norm: nnx.GroupNorm,
    given: Statistics,
    known: Bool[Array, ""],
    found: list[Statistics],
    x: Float[Array, "b h w c"],
) -> Float[Array, "b h w c"]:
    """Applies the group norm with the next of the given statistics, or with x's own. Adds x's own to `found`."""
    grouped = x.astype(jnp.float32).reshape(*x.shape[:3], norm.num_groups, -1)
    mean = grouped.mean((1, 2, 4))
    variance = jnp.square(grouped - mean[:, None, None, :, None]).mean((1, 2, 4))
    at = len(found)
    found.append(Statistics(mean, variance))
    mean, variance = jnp.where(known, given.mean[at], mean), jnp.where(known, given.variance[at], variance)
    scaled = (grouped - mean[:, None, None, :, None]) * jax.lax.rsqrt(variance + norm.epsilon)[:, None, None, :, None]
    assert norm.scale is not None and norm.bias is not None
    return (scaled.reshape(x.shape) * norm.scale[...] + norm.bias[...]).astype(x.dtype)


def _half(autoencoder: Autoencoder, direction: Direction) -> nnx.Module:
    return autoencoder.encoder if direction == "encode" else autoencoder.decoder


def _norms(part: nnx.Module) -> list[tuple[nnx.Module, str, nnx.GroupNorm]]:
    """All group norms: the module that holds the norm, the name of its attribute, and the norm."""
    return [
        (module, name, child)
        for _, module in nnx.iter_modules(part)
        for name, child in vars(module).items()
        if isinstance(child, nnx.GroupNorm)
    ]


def _reduced(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Reduces a picture to evenly spaced points, because averages of points would have less contrast."""
    rows, columns = ((np.arange(new) * old) // new for new, old in zip((height, width), picture.shape, strict=False))
    reduced: np.ndarray = picture[rows[:, None], columns]
    return reduced
