"""The autoencoder on pictures of any size, in memory that does not grow with them.

A picture goes through it in tiles with a border, whose inner parts are faded into each other. What is not local is
handled so:

- Group norms: all tiles are normalised by one set of statistics, those of the picture reduced to the size of a tile. So
  no tile has a brightness or contrast of its own.
- The attention in the middle: each tile attends to itself. That leaves most of the difference to the untiled result.
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

# Latent cells around a tile's inner part: most of what convolutions can reach. With 20 the result is no closer to the
# untiled one.
BORDER = 12
# Latent cells before and after where two inner parts meet, in which one passes into the other.
FADE = 6


class Statistics(NamedTuple):
    """Of each group of each group norm, in the order in which the norms are applied; of numpy on the host."""

    mean: Float[Any, "norms groups"]
    variance: Float[Any, "norms groups"]


@dataclass(frozen=True)
class TiledAutoencoder:
    """An `Autoencoder`, split by nnx.

    Attributes:
        graph, weights: its parts.
        factor: pixels a latent cell.
        tile: side of a tile with its border, in latent cells. Up to tile² cells, or with 0, a picture is one piece,
            and computed as the autoencoder itself does it.
        together: tiles that are computed at once.
        place: puts that many on the devices.
        fetch: gets what was computed.
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
        """Mean and log variance of the unscaled latents' posterior, as `Autoencoder.moments`."""
        moments, _ = self._through("encode", image, before=self.factor, after=1)
        mean, log_variance = np.split(moments, 2, axis=-1)
        return mean, log_variance

    def decode(self, latents: Float[np.ndarray, "h w c"]) -> tuple[UInt8[np.ndarray, "H W 3"], bool]:
        """The image of scaled latents in 8 bits, and whether it was finite."""
        return self._through("decode", latents, before=1, after=self.factor)

    def _through(self, direction: Direction, picture: np.ndarray, *, before: int, after: int) -> tuple[Any, bool]:
        """`before` and `after`: points of the picture and of the result a latent cell."""
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
            # Its axes are (x, y, channel): pieces are laid along the first.
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
        """(height, width) of the tiles of a picture, all in latent cells; the picture's own if it is one piece."""
        if not self.tile or height * width <= self.tile * self.tile:
            return height, width
        return min(self.tile, height), min(self.tile, width)

    def tiles(self, height: int, width: int) -> int:
        """Their number."""
        rows, columns = self._pieces(height, width)
        return len(rows) * len(columns)

    def _pieces(self, height: int, width: int) -> tuple[list[Piece], list[Piece]]:
        sizes = self.shape(height, width)
        return (
            plan_pieces(height, size=sizes[0], border=BORDER),
            plan_pieces(width, size=sizes[1], border=BORDER),
        )

    def no_statistics(self, direction: Direction) -> Statistics:
        """Statistics that stand in where none are known: one program serves for both."""
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
    """Tiles by the statistics given, or each by its own; and what its own are."""
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
    """The group norm, by the next of the given statistics or by x's own, which are added to `found`."""
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
    """The module and the name by which it has a group norm, and that."""
    return [
        (module, name, child)
        for _, module in nnx.iter_modules(part)
        for name, child in vars(module).items()
        if isinstance(child, nnx.GroupNorm)
    ]


def _reduced(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Evenly spaced points: means of points would have less contrast than the picture."""
    rows, columns = ((np.arange(new) * old) // new for new, old in zip((height, width), picture.shape, strict=False))
    reduced: np.ndarray = picture[rows[:, None], columns]
    return reduced
