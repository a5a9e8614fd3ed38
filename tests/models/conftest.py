"""The released networks with random weights (tests/vectors/xpsr), loaded and run once for all tests that use them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import xpsr_jax
from tests.models.golden import outputs_by_path, read, under
from xpsr_jax.models.controlnet import ControlNet
from xpsr_jax.models.unet import UNet


@pytest.fixture(scope="session")
def networks(vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[UNet, ControlNet]:
    """The UNet and the ControlNet with its heads, from a folder in the released code's layout."""
    folder = tmp_path_factory.mktemp("xpsr")
    for name in ("unet", "controlnet"):
        (folder / name).mkdir()
        shutil.copy(vectors / "xpsr" / f"{name}_config.json", folder / name / "config.json")
        shutil.copy(vectors / "xpsr" / f"{name}.safetensors", folder / name / "diffusion_pytorch_model.safetensors")
    return xpsr_jax.load_networks(folder)


@pytest.fixture(scope="session")
def forward(networks: tuple[UNet, ControlNet], vectors: Path) -> Callable[[str], tuple[dict[str, Any], dict[str, Any]]]:
    """Runs a case of forward.safetensors. Gives its outputs by their released names, and all submodules' by path."""
    tensors = read(vectors / "xpsr" / "forward.safetensors")
    done: dict[str, Any] = {}

    @nnx.jit
    def run(unet: UNet, controlnet: ControlNet, inputs: dict[str, jax.Array]) -> tuple[dict[str, Any], dict[str, Any]]:
        timesteps = jax.numpy.broadcast_to(inputs["timestep"], inputs["sample"].shape[:1]).astype("int32")

        def steer() -> tuple[Any, Any]:
            image = controlnet.encode_image(inputs["cond"])
            scale = inputs["conditioning_scale"]
            return image, controlnet(inputs["sample"], timesteps, inputs["high"], inputs.get("low"), image, scale=scale)

        (image, steering), controlnet_taps = outputs_by_path(controlnet, steer)
        prediction, unet_taps = outputs_by_path(
            unet, lambda: unet(inputs["sample"], timesteps, inputs["high"], steering.residuals, steering.mid)
        )
        *latent_predictions, latent_prediction_mid = steering.latent_predictions
        outputs = {
            **{f"rgb.{i}": x for i, x in enumerate(image.rgb_predictions)},
            **{f"down.{i}": x for i, x in enumerate(steering.residuals)},
            **{f"latent_pred.{i}": x for i, x in enumerate(latent_predictions)},
            "latent_pred_mid": latent_prediction_mid,
            "mid": steering.mid,
            "noise_pred": prediction,
        }
        taps = {f"controlnet.{path}": x for path, x in controlnet_taps.items()}
        return outputs, taps | {f"unet.{path}": x for path, x in unet_taps.items()}

    def cached(case: str) -> tuple[dict[str, Any], dict[str, Any]]:
        if case not in done:
            done[case] = jax.tree.map(np.asarray, run(*networks, under(f"{case}.in.", tensors)))
        return done[case]

    return cached
