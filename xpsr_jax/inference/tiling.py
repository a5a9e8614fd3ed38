"""Divides a large picture into tiles, and joins the tiles' results into one picture again (method §7)."""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped, UInt8

TileWeights = Literal["centred", "released"]


@dataclass(frozen=True)
class Tiles:
    """Overlapping tiles of one shape that cover a picture. Everything is in latent cells.

    Attributes:
        canvas: (height, width) of the picture.
        shape: (height, width) of a tile.
        starts: (row, column) of the upper left cell of each tile, row by row.
    """

    canvas: tuple[int, int]
    shape: tuple[int, int]
    starts: tuple[tuple[int, int], ...]

    def cut(
        self, picture: UInt8[np.ndarray, "H W c"] | Float[np.ndarray, "H W c"], *, scale: int = 1
    ) -> list[UInt8[np.ndarray, "H2 W2 c"]] | list[Float[np.ndarray, "H2 W2 c"]]:
        """Cuts a picture with `scale` pixels per cell along each axis into tiles. Its type does not change."""
        height, width = (scale * side for side in self.shape)
        return [picture[scale * y : scale * y + height, scale * x : scale * x + width] for y, x in self.starts]

    def blend(
        self, parts: Sequence[Float[np.ndarray, "h2 w2 c"]], weights: TileWeights = "centred"
    ) -> Float[np.ndarray, "h w c"]:
        """Joins tiles into one picture: each cell is the weighted mean of all tiles that cover it.

        The mean is computed from the tiles' differences from one of them. So a cell is exact, bit for bit, where all
        tiles agree and where only one tile covers it.
        """
        height, width = self.shape
        placed = [(slice(y, y + height), slice(x, x + width)) for y, x in self.starts]
        one = np.empty((*self.canvas, parts[0].shape[-1]), parts[0].dtype)
        for where, part in zip(placed, parts, strict=True):
            one[where] = part
        weight = gaussian(height, width, weights)[..., None]
        total, difference = np.zeros((*self.canvas, 1), np.float32), np.zeros_like(one)
        for where, part in zip(placed, parts, strict=True):
            total[where] += weight
            difference[where] += weight * (part - one[where])
        return one + difference / total


def plan_tiles(height: int, width: int, *, size: int, overlap: int) -> Tiles:
    """Plans square tiles for a picture of more than `size`² cells. A smaller picture is one tile.

    A tile's side is `size`, or the picture's shorter side if that is less. Along each axis neighbouring tiles overlap
    by `overlap` cells, or by half a tile's side if that is less. Otherwise a thin picture would have a tile for each
    cell. The last tile is moved back so that it ends at the picture's edge. `size` 0: always one tile.
    """
    if not size or height * width <= size * size:
        return Tiles((height, width), (height, width), ((0, 0),))
    side = min(size, height, width)
    rows, columns = (_starts(length, side, side - min(overlap, side // 2)) for length in (height, width))
    return Tiles((height, width), (side, side), tuple(itertools.product(rows, columns)))


@functools.cache
def gaussian(height: int, width: int, kind: TileWeights) -> Float[np.ndarray, "h w"]:
    """Weights of a tile's cells: a Gaussian around the tile's centre. Its deviation is a tenth of each side.

    In the released code the centre is wrong by half a cell in y.
    """

    def axis(length: int, middle: float) -> np.ndarray:
        return np.exp(-(((np.arange(length) - middle) / length) ** 2) / 0.02) / math.sqrt(0.02 * math.pi)

    middle = height / 2 if kind == "released" else (height - 1) / 2
    return np.outer(axis(height, middle), axis(width, (width - 1) / 2)).astype(np.float32)


class Piece(NamedTuple):
    """The extent of a tile along one axis. Of the tile's result, only the inner part without the border is used.

    Attributes:
        start: where the tile begins.
        begin, end: where its inner part begins and ends. Inner parts meet without overlap.
    """

    start: int
    begin: int
    end: int


def plan_pieces(length: int, *, size: int, border: int) -> list[Piece]:
    """Divides an axis into pieces of `size`. A piece has a border of at least `border`, except at the ends of the axis.

    If the axis is not longer than `size`, it is one piece.
    """
    if length <= size:
        return [Piece(0, 0, length)]
    starts = list(_starts(length, size, size - 2 * border))
    meetings = [(before + size + after) // 2 for before, after in itertools.pairwise(starts)]
    return [Piece(*each) for each in zip(starts, [0, *meetings], [*meetings, length], strict=True)]


def lay(
    target: Shaped[np.ndarray, "_ ..."] | None,
    part: Shaped[np.ndarray, "_ ..."],
    piece: Piece,
    *,
    length: int,
    scale: int,
    fade: int,
) -> Shaped[np.ndarray, "_ ..."]:
    """Writes one piece into `target` along the first axis, blended into the piece before it.

    Args:
        target: the result so far. None: a new array of that length is made.
        part: the computed values of the piece.
        piece, length: position of the piece and length of the whole axis, in cells.
        scale: points per cell.
        fade: cells to each side of the line where two inner parts meet, over which one blends into the other.
    """
    if target is None:
        target = np.empty((scale * length, *part.shape[1:]), part.dtype)
    points = fade * scale if piece.begin else 0
    first = scale * piece.begin - points
    part = part[first - scale * piece.start :]
    rising = ((np.arange(2 * points) + 0.5) / (2 * points or 1)).reshape(-1, 1, 1).astype(np.float32)
    there = target[first : first + 2 * points]
    mixed = there + rising * (part[: 2 * points].astype(np.float32) - there)
    target[first : first + 2 * points] = np.round(mixed) if part.dtype == np.uint8 else mixed
    target[first + 2 * points : first + len(part)] = part[2 * points :]
    return target


def _starts(length: int, size: int, step: int) -> Iterator[int]:
    for start in range(0, length, step):
        yield min(start, length - size)
        if start + size >= length:
            return
