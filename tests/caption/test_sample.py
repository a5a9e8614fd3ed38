"""sample.py --missing-captions measured."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.test_sample_resuming import enlarged  # noqa: F401
from xpsr_jax.caption import measured
from xpsr_jax.caption.measured import describe_quality
from xpsr_jax.cli import restore as sample
from xpsr_jax.data.captions import Caption, write_captions


@pytest.fixture
def described(monkeypatch):
    """The shapes of the pictures that were measured."""
    calls = []

    def counted(pixels):
        calls.append(pixels.shape)
        return describe_quality(pixels)

    monkeypatch.setattr(measured, "describe_quality", counted)
    return calls


def test_missing_captions_are_measured_when_an_image_is_restored(tmp_path, enlarged, described, capsys):  # noqa: F811
    photos, output = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    pixels = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8), (0, 0), 2)
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels).save(photos / name)
    (photos / "broken.png").write_bytes(b"\x89PNG")
    write_captions(photos / "captions.jsonl", {"a.png": Caption("noise", "by hand")})
    (tmp_path / "model").mkdir()
    words = [photos, "--output", output, "--model", tmp_path / "model", "--captions", photos / "captions.jsonl"]
    words = [str(word) for word in [*words, "--missing-captions", "measured", "--on-error", "skip"]]

    def recorded():
        lines = map(json.loads, (output / "restored.jsonl").read_text().splitlines())
        return {line["output"]: line["settings"] for line in lines}

    assert sample.main(words) == 1 and described == [(64, 48, 3)]
    low = describe_quality(pixels)
    assert "blurry" in low
    settings = recorded()
    assert [settings[name]["high"] for name in ("a.png", "b.png")] == ["noise", ""]
    assert [settings[name]["low"] for name in ("a.png", "b.png")] == ["by hand", low]

    # Finished images are not measured again.
    assert sample.main(words) == 1 and enlarged.images == 2 and len(described) == 1
    assert "2 of 3 images are already restored." in capsys.readouterr().out
    # A result without captions has other settings.
    assert sample.main([*words[:-4], "--missing-captions", "empty", "--overwrite", "--on-error", "skip"]) == 1
    assert enlarged.images == 3 and recorded()["b.png"]["low"] == ""
    assert sample.main(words) == 1
    assert f"made with other settings (low: was '', is {low!r})" in capsys.readouterr().err
    # A record from an earlier version, without the mark "measured".
    text = (output / "restored.jsonl").read_text().splitlines()
    line = json.loads(text[-1])
    line["settings"]["low"] = low
    (output / "restored.jsonl").write_text("\n".join([*text[:-1], json.dumps(line)]))
    assert sample.main(words) == 1 and enlarged.images == 3 and len(described) == 3
