"""LoRA files with other ranks and strengths, merged here and by diffusers; XPSR on a pickled Stable Diffusion."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.vectors import make_lora_vectors as diffusers
from tests.weights.test_other_base import is_trained, others, written, xpsr  # noqa: F401
from tests.weights.test_single_file import single_file
from xpsr_jax.training.conversion import convert
from xpsr_jax.weights.lora import with_loras
from xpsr_jax.weights.networks import TEXT_ENCODER, UNET, Weights, open_folder
from xpsr_jax.weights.sources import Source
from xpsr_jax.weights.tensors import Tensor


@pytest.fixture(scope="module")
def source() -> Source:
    networks = {"unet": (UNET, diffusers.UNET), "text_encoder": (TEXT_ENCODER, diffusers.TEXT_ENCODER)}

    def opened(name: str) -> Weights:
        weights = open_folder(*networks[name])
        tensors = {key: Tensor.of(key, t.read().astype(np.float32)) for key, t in weights.tensors.items()}
        return Weights(weights.where, weights.config, tensors)

    return Source(
        {name: folder for name, (_, folder) in networks.items()},
        {name: lambda name=name: opened(name) for name in networks},
    )


@pytest.mark.parametrize("name", diffusers.NAMES)
@pytest.mark.parametrize("strength", [1.0, -0.35])
def test_the_result_equals_diffusers_fused_weights(name, strength, source, tmp_path, monkeypatch):
    monkeypatch.setattr(diffusers, "RANK", 5)
    tensors, metadata = diffusers.lora(name, seed=123)
    file = tmp_path / "lora.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file, metadata)
    expected = diffusers.fused(file, strength)
    merged = with_loras(source, [(file, strength)])
    ours = {f"{part}/{key}": t for part, network in merged.networks.items() for key, t in network().tensors.items()}
    assert len(expected) >= 10
    errors = [np.abs(ours[key].read() - tensor.numpy()).max() for key, tensor in expected.items()]
    print(f"{name} {strength}: {max(errors)}")
    assert max(errors) <= 2.4e-7  # Measured: 0. The limit is the last bit of weights up to 4.


def test_a_pickled_checkpoint_as_the_base(xpsr, others, tmp_path):  # noqa: F811
    tensors = single_file(*others.values(), version=1, layers=2, attended_up={1}, levels=2)
    state = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in tensors.items()}
    torch.save({"state_dict": state}, tmp_path / "style.ckpt")
    convert([xpsr], tmp_path / "out", base_unet=tmp_path / "style.ckpt")
    unet, before = written(tmp_path / "out", "unet"), written(xpsr, "unet")
    for key, value in unet.items():
        assert value.tobytes() == (before if is_trained(key) else others["unet"])[key].tobytes(), key
