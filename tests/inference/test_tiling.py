"""Positions and blending of tiles. tests/models/test_oracle_tiles.py compares with the released code's tiled run."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from xpsr_jax.inference.tiling import Piece, gaussian, plan_pieces, plan_tiles


def test_positions_of_tiles():
    """The last tile is moved back. Only the area decides whether there are several tiles. A tile is a square."""
    tiles = plan_tiles(12, 20, size=8, overlap=2)
    assert (tiles.canvas, tiles.shape) == ((12, 20), (8, 8))
    assert tiles.starts == ((0, 0), (0, 6), (0, 12), (4, 0), (4, 6), (4, 12))
    assert plan_tiles(8, 8, size=8, overlap=2).starts == ((0, 0),)
    assert plan_tiles(4, 16, size=8, overlap=2).shape == (4, 16)
    assert plan_tiles(4, 17, size=8, overlap=2).starts == tuple((0, x) for x in (0, 2, 4, 6, 8, 10, 12, 13))
    assert plan_tiles(500, 500, size=0, overlap=2).shape == (500, 500)
    # In all, the tiles have twice the cells of the picture, not sixteen times.
    assert len(plan_tiles(16, 4800, size=96, overlap=16).starts) == 599
    assert plan_tiles(1, 90, size=8, overlap=2).starts == tuple((0, x) for x in range(90))


@pytest.mark.parametrize(("length", "size", "border"), [(40, 16, 4), (41, 16, 4), (17, 16, 4), (300, 64, 12)])
def test_inner_parts_of_pieces_cover_the_axis_and_keep_their_borders(length, size, border):
    pieces = plan_pieces(length, size=size, border=border)
    assert [piece.begin for piece in pieces] == [0, *(piece.end for piece in pieces[:-1])]
    assert pieces[-1].end == length
    for piece in pieces:
        assert 0 <= piece.start <= length - size
        assert piece.begin == 0 or piece.begin - piece.start >= border
        assert piece.end == length or piece.start + size - piece.end >= border
    assert plan_pieces(9, size=16, border=4) == [Piece(0, 0, 9)]


@pytest.mark.parametrize("weights", ["centred", "released"])
@pytest.mark.parametrize(("canvas", "size", "overlap"), [((12, 20), 8, 2), ((33, 47), 16, 5), ((64, 200), 96, 16)])
def test_unchanged_tiles_blend_to_the_same_bits(canvas, size, overlap, weights):
    tiles = plan_tiles(*canvas, size=size, overlap=overlap)
    assert len(tiles.starts) > 1
    y, x = np.mgrid[: canvas[0], : canvas[1]].astype(np.float32)
    noise = np.random.default_rng(0).standard_normal(canvas).astype(np.float32)
    fields = np.stack([np.full_like(x, 0.1), 0.3 * x - 0.7 * y + 0.1, noise], axis=-1)
    np.testing.assert_array_equal(tiles.blend(tiles.cut(fields), weights), fields)


def test_blended_tiles_are_a_weighted_mean():
    tiles = plan_tiles(12, 20, size=8, overlap=4)
    parts = [np.full((8, 8, 1), float(i), np.float32) for i in range(len(tiles.starts))]
    weight, total, weighted = gaussian(8, 8, "centred"), np.zeros((12, 20)), np.zeros((12, 20))
    for i, (y, x) in enumerate(tiles.starts):
        total[y : y + 8, x : x + 8] += weight
        weighted[y : y + 8, x : x + 8] += i * weight
    np.testing.assert_allclose(tiles.blend(parts)[..., 0], weighted / total, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(weight, weight[::-1, ::-1])


def test_the_released_weights(vectors):
    stored = load_file(vectors / "xpsr" / "sampling.safetensors")
    for size in (8, 16):
        ours, theirs = gaussian(size, size, "released"), stored[f"tile_weights_{size}"]
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
        assert np.abs(gaussian(size, size, "centred") - theirs).max() > 0.1
