"""The first stage: makes a clean, larger picture from an LR picture of any size, with constant device memory."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

from xpsr_jax.inference.on_devices import OnDevices
from xpsr_jax.inference.tiling import Piece, lay, plan_pieces
from xpsr_jax.models.rrdb import RRDBNet

# In pixels of the LR picture. BORDER surrounds the inner part of a tile. FADE is the distance to each side of the line
# where two inner parts meet, over which one blends into the other. BORDER is less than the reach of 23 blocks;
# docs/reference/sampling.md has the measured difference.
BORDER, FADE = 76, 4
# The sides of the network's input are multiples of this, and so of any `unshuffle`. So pictures of many sizes share a
# few compiled programs.
_MULTIPLE = 16


class FirstStage:
    """A model's first stage, ready for LR pictures.

    Attributes:
        scale: how many times larger its results are.
    """

    def __init__(self, networks: OnDevices, *, tile: int, border: int = BORDER, fade: int = FADE) -> None:
        """
        Args:
            networks: the networks of a model that has a first stage.
            tile: side of a tile with its border, in pixels of the LR picture. A picture of up to tile² pixels is one
                piece. 0: every picture is one piece.
            border: pixels around a tile's inner part, more than `fade`.
            fade: pixels to each side of the line where two inner parts meet, over which one blends into the other.
        """
        assert networks.first_stage is not None
        self._graph, self._weights, config = networks.first_stage
        self._networks, self._tile, self._border, self._fade = networks, tile, min(border, tile // 4), fade
        self.scale = config.scale

    def __call__(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[UInt8[np.ndarray, "_ _ 3"] | None]:
        """Makes a picture `scale` times as large from each LR picture. None for a result with NaN or infinity."""
        results: dict[int, UInt8[np.ndarray, "_ _ 3"] | None] = {}
        whole: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(images):
            if self._is_large(*image.shape[:2]):
                results[i] = self._in_tiles(image)
            else:
                whole.setdefault(tuple(-(-side // _MULTIPLE) for side in image.shape[:2]), []).append(i)
        for group in whole.values():
            for i, clean in zip(group, self._run([self._continued(images[i]) for i in group]), strict=True):
                height, width = (self.scale * side for side in images[i].shape[:2])
                results[i] = None if clean is None else clean[:height, :width]
        return [results[i] for i in range(len(images))]

    def tiles(self, height: int, width: int) -> int:
        """The number of tiles for a picture of this size."""
        rows, columns = self._pieces(height, width)
        return len(rows) * len(columns)

    def seen(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) of the network's input for a picture of this size: one tile, or the whole picture."""
        shape = self._shape(height, width)
        return shape[0] + -shape[0] % _MULTIPLE, shape[1] + -shape[1] % _MULTIPLE

    def _is_large(self, height: int, width: int) -> bool:
        return 0 < self._tile**2 < height * width

    def _shape(self, height: int, width: int) -> tuple[int, int]:
        """The shape of a tile. The tiles of a thin picture are equally thin, and are padded like a small picture."""
        return (min(self._tile, height), min(self._tile, width)) if self._is_large(height, width) else (height, width)

    def _pieces(self, height: int, width: int) -> tuple[list[Piece], list[Piece]]:
        shape = self._shape(height, width)
        rows = plan_pieces(height, size=shape[0], border=self._border)
        return rows, plan_pieces(width, size=shape[1], border=self._border)

    def _continued(self, image: UInt8[np.ndarray, "_ _ 3"]) -> UInt8[np.ndarray, "_ _ 3"]:
        below, right = (-side % _MULTIPLE for side in image.shape[:2])
        return np.pad(image, ((0, below), (0, right), (0, 0)), mode="symmetric")

    def _in_tiles(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "_ _ 3"] | None:
        height, width = image.shape[:2]
        shape = self._shape(height, width)
        rows, columns = self._pieces(height, width)
        result: np.ndarray | None = None
        for y in rows:
            tiles = [image[y.start :, x.start :][: shape[0], : shape[1]] for x in columns]
            # The band's axes are (x, y, channel), because `lay` works along the first axis.
            band: np.ndarray | None = None
            for x, clean in zip(columns, self._run([self._continued(tile) for tile in tiles]), strict=True):
                if clean is None:
                    return None
                clean = clean[: self.scale * shape[0], : self.scale * shape[1]].swapaxes(0, 1)
                band = lay(band, clean, x, length=width, scale=self.scale, fade=self._fade)
            assert band is not None
            result = lay(result, band.swapaxes(0, 1), y, length=height, scale=self.scale, fade=self._fade)
        assert result is not None
        return result

    def _run(self, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> list[UInt8[np.ndarray, "_ _ 3"] | None]:
        """Runs the network on pictures of equal size, in batches of `capacity`."""
        results: list[UInt8[np.ndarray, "_ _ 3"] | None] = []
        capacity = self._networks.capacity
        for first in range(0, len(images), capacity):
            batch = np.stack(images[first : first + capacity])
            with self._networks.within():
                computed = run_first_stage(self._graph, self._weights, self._networks.fill(batch))
            clean, finite = self._networks.fetch(computed)
            results += [picture if fine else None for picture, fine in zip(clean, finite, strict=True)][: len(batch)]
        return results


@functools.partial(jax.jit, static_argnums=0)
def run_first_stage(
    graph: nnx.GraphDef[RRDBNet], weights: nnx.State, pixels: UInt8[Array, "b h w 3"]
) -> tuple[UInt8[Array, "b H W 3"], Bool[Array, "b"]]:
    """Runs LR pictures through the network. Returns 8-bit pictures, and for each whether all its values were finite."""
    clean: Float[Array, "b H W 3"] = nnx.merge(graph, weights)(pixels.astype(jnp.float32) / 255)
    rounded = jnp.round(jnp.clip(clean, 0, 1) * 255).astype(jnp.uint8)
    return rounded, jnp.isfinite(clean).all((1, 2, 3))
