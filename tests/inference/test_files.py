"""The paths of results."""

import os
from pathlib import Path

import pytest

from xpsr_jax.errors import UserError
from xpsr_jax.images.listing import Input
from xpsr_jax.inference.files import output_paths


def test_a_result_name_that_is_too_long_is_refused(tmp_path):
    long = Input(tmp_path / f"{'x' * 251}.png", Path(f"{'x' * 251}.png"))
    assert output_paths([long], tmp_path / "out", "png") == [tmp_path / "out" / long.name]
    with pytest.raises(UserError, match="the name of its result would have 256 bytes"):
        output_paths([long], tmp_path / "out", "webp")
    accents = Input(tmp_path / "a", Path(f"{'é' * 126}.gif"))
    with pytest.raises(UserError, match="would have 257 bytes"):
        output_paths([accents], tmp_path / "out", "webp")


def test_a_loop_of_links_does_not_break_the_other_inputs(tmp_path):
    (tmp_path / "loop.png").symlink_to("loop.png")
    each = Input(tmp_path / "loop.png", Path("loop.png"))
    assert output_paths([each], tmp_path / "out", "png") == [tmp_path / "out" / "loop.png"]
    assert os.path.islink(each.path)
