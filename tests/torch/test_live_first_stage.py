"""Compares the first stage's network with the installed spandrel: other sizes, and files written by PyTorch."""

import jax
import numpy as np
import pytest
import torch

from tests.models.golden import channels_last, error
from tests.vectors.make_first_stage_vectors import network as spandrels
from xpsr_jax.weights.networks import FIRST_STAGE, load_network
from xpsr_jax.weights.sources import open_source


@pytest.mark.parametrize(("scale", "unshuffle", "features", "blocks"), [(4, 1, 64, 23), (4, 1, 16, 6), (2, 2, 16, 4)])
def test_equals_spandrel(scale, unshuffle, features, blocks, tmp_path):
    """The largest measured error is 3e-6."""
    torch.manual_seed(0)
    module = spandrels(scale, unshuffle, features=features, blocks=blocks).eval()
    image = torch.rand((1, 3, 9, 11))
    with torch.no_grad():
        expected = module.double()(image.double()).float()
    torch.save({"params_ema": module.float().state_dict()}, tmp_path / "network.pth")
    source = open_source(tmp_path / "network.pth")
    ours = load_network(FIRST_STAGE, source.networks["first_stage"]())
    assert (ours.config.blocks, ours.config.scale) == (blocks, scale)
    computed = jax.jit(lambda image: ours(image))(channels_last(image.numpy()))
    assert error(np.asarray(computed), channels_last(expected.numpy())) <= 1e-5
