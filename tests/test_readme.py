"""The Python example in README.md runs."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.inference.tiny_model import tiny_model
from xpsr_jax.weights.model_folder import save

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("compiled_quickly")


def test_the_python_example_runs(tmp_path, monkeypatch):
    """Uses networks of a few channels instead of the real ones."""
    save(tiny_model(), tmp_path / "stable-diffusion-v1-5")
    for name in ("unet", "controlnet"):
        shutil.move(tmp_path / "stable-diffusion-v1-5" / name, tmp_path / "checkpoint-300000" / name)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, {})
    with Image.open("restored.png") as restored:
        assert restored.size == (32, 32)
