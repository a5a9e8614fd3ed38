"""From a run's state to a model folder that `sample.py` and PyTorch load."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from xpsr_jax.config import Config, Networks
from xpsr_jax.data.examples import DataConfig, make_example
from xpsr_jax.data.sources import Source
from xpsr_jax.training.parameters import Parameters, load_parameters
from xpsr_jax.training.structure import Bundle, Structure
from xpsr_jax.weights import model_folder
from xpsr_jax.weights.model_folder import Model
from xpsr_jax.weights.sources import SHIPPED_TOKENIZER

_MEASURED_CROPS = 32


def load_tokenizer(networks: Networks) -> Any:
    """CLIP's tokenizer, of `tokenizer_folder`."""
    return model_folder.load_tokenizer(tokenizer_folder(networks))


def tokenizer_folder(networks: Networks) -> Path:
    """The folder that the config names, or the newest base's, or the one that ships with the package."""
    bases = [base / "tokenizer" for base in reversed(networks.base) if (base / "tokenizer").is_dir()]
    return networks.tokenizer or next(iter(bases), SHIPPED_TOKENIZER)


def assemble(structure: Structure, trained: Parameters, frozen: Parameters) -> Bundle:
    """The whole networks in float32; what the base holds is read from it again: training may have it in bfloat16."""
    originals = load_parameters(structure, structure.frozen)
    rest = {path: array.astype(jnp.float32) for path, array in frozen.items() if path not in originals}
    return structure.merge(_on_host(trained), _on_host(rest), originals)


def export(
    folder: Path,
    *,
    config: Config,
    structure: Structure,
    trained: Parameters,
    frozen: Parameters,
    source: Source,
    tokenizer: Any,
) -> Path:
    """Writes the model folder, replacing an older one of the same run. Only the first process writes.

    Args:
      source: of the images by which the autoencoder's stage scales its latents.
    """
    bundle = assemble(structure, trained, frozen)
    if jax.process_index() == 0:
        if config.stage == "autoencoder":
            # Latents of a frozen encoder stay what they were, and so must their scale: a diffusion may know it already.
            if any(path.startswith(("autoencoder.encoder.", "autoencoder.quant_conv.")) for path in structure.trained):
                _measure_scale(bundle, config, source)
            model_folder.save({"autoencoder": bundle.autoencoder}, folder, overwrite=True)
        else:
            model_folder.save(as_model(bundle, config, structure, tokenizer), folder, overwrite=True)
    return folder


def as_model(bundle: Bundle, config: Config, structure: Structure, tokenizer: Any) -> Model:
    """All that restores photographs, of a training's networks."""
    return Model(
        unet=bundle.unet,
        controlnet=bundle.controlnet,
        autoencoder=bundle.autoencoder,
        text_encoder=bundle.text_encoder,
        tokenizer=tokenizer,
        schedule=structure.networks.schedule,
        defaults=config.sampling,
        note=config.note,
    )


def _on_host(parameters: Parameters) -> dict[str, np.ndarray]:
    """Whole arrays, whichever devices and processes hold their parts. Every process has to call it."""
    if jax.process_count() == 1:
        return {path: np.asarray(array) for path, array in parameters.items()}
    return {path: multihost_utils.process_allgather(array, tiled=True) for path, array in parameters.items()}


def _measure_scale(bundle: Bundle, config: Config, source: Source) -> None:
    """Sets the scaling factor so that the training images' latents have deviation 1, as Stable Diffusion's was set."""
    data = DataConfig(crop_size=config.data.crop_size, degrade=False)
    crops = [
        make_example(source[i % len(source)], data, tokenizer=None, seed=config.seed, index=i)["hr"]
        for i in range(_MEASURED_CROPS)
    ]
    mean, log_variance = jax.jit(lambda image: bundle.autoencoder.moments(image))(np.stack(crops))
    deviation = float(jnp.sqrt(jnp.var(mean) + jnp.mean(jnp.exp(log_variance))))
    bundle.autoencoder.config = dataclasses.replace(bundle.autoencoder.config, scaling_factor=1 / deviation)
