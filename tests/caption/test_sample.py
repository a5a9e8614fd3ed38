"""sample.py --missing-captions measured."""

import cv2
import numpy as np
from PIL import Image

from xpsr_jax.caption.measured import describe_quality
from xpsr_jax.cli import restore as sample
from xpsr_jax.data.captions import Caption, write_captions
from xpsr_jax.images.listing import list_inputs


def test_missing_captions_are_measured(tmp_path):
    pixels = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8), (0, 0), 2)
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    write_captions(tmp_path / "captions.jsonl", {"a.png": Caption("noise", "by hand")})
    arguments = sample.Arguments(
        (tmp_path,), tmp_path / "out", captions=tmp_path / "captions.jsonl", missing_captions="measured"
    )
    low = describe_quality(pixels)
    assert "blurry" in low
    expected = [Caption("noise", "by hand"), Caption("", low), Caption("", "")]
    assert sample.find_captions(list_inputs([tmp_path]), arguments) == expected
