"""Exports a run's state as a model folder that `xpsr restore` and PyTorch can load."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from xpsr_jax import distributed
from xpsr_jax.config import Config, Networks
from xpsr_jax.data.config import DataConfig
from xpsr_jax.data.examples import make_example
from xpsr_jax.data.sample_sources import SampleSource
from xpsr_jax.models.rrdb import RRDBNet
from xpsr_jax.training.adapters import exported
from xpsr_jax.training.parameters import Parameters, load_parameters
from xpsr_jax.training.run_card import run_card
from xpsr_jax.training.structure import Bundle, Structure
from xpsr_jax.weights import hub, model_folder
from xpsr_jax.weights.model_folder import ClipTokenizer, Model
from xpsr_jax.weights.sources import SHIPPED_TOKENIZER, find_components

_MEASURED_CROPS = 32


def tokenizer_of(networks: Networks) -> ClipTokenizer:
    """CLIP's tokenizer, from `tokenizer_folder`."""
    return model_folder.load_tokenizer(tokenizer_folder(networks))


def tokenizer_folder(networks: Networks) -> Path:
    """The tokenizer's folder: the config's, or else the last base's that has one, or else the one in the package."""
    if networks.tokenizer:
        return hub.local(networks.tokenizer)
    folders = [hub.local(base) for base in reversed(networks.base)]
    found = [find_components(folder).get("tokenizer") for folder in folders if folder.is_dir()]
    return next(filter(None, found), SHIPPED_TOKENIZER)


def assemble(structure: Structure, trained: Parameters, frozen: Parameters) -> Bundle | None:
    """The complete networks in float32.

    Frozen parameters are read from the base again, because training may hold them in bfloat16. All processes must
    call this. The first one gets the networks, the others get None.
    """
    paths = sorted(exported(structure.frozen))
    originals = load_parameters(structure, paths) if distributed.is_first() else {}
    # The first process tells which frozen parameters are not in the base. All processes then help to gather these.
    needed = distributed.from_first(np.array([path not in originals for path in paths], np.uint8))
    rest = {path: frozen[path] for path, is_needed in zip(paths, needed, strict=True) if is_needed}
    kept = {path: trained[path] for path in exported(trained)}
    arrays = dict(_on_first(kept | rest))
    if not distributed.is_first():
        return None
    return structure.merge(originals, {path: array.astype(np.float32) for path, array in arrays.items()})


def export(
    folder: Path,
    *,
    config: Config,
    structure: Structure,
    trained: Parameters,
    frozen: Parameters,
    source: SampleSource,
    tokenizer: ClipTokenizer | None,
) -> Path:
    """Writes the model folder and replaces an older one of the same run. All processes call it; the first one writes.

    Args:
      folder: the folder to write; its parent must exist.
      trained: the trained parameters by path, in float32; the moving average if the run has one.
      frozen: the other parameters, in any type. Those in the base are read from the base again.
      source: the training images. The stage "autoencoder" uses them to scale its latents.
      tokenizer: the captions' tokenizer; None only in the stage "autoencoder", which has no captions.
    """
    bundle = assemble(structure, trained, frozen)
    if bundle is not None:
        card = run_card(config, photographs=len(source), step=config.steps)
        if config.stage == "autoencoder":
            scale_latents(bundle, config, structure, source)
            model_folder.save({"autoencoder": bundle.autoencoder}, folder, overwrite=True, card=card)
        else:
            assert tokenizer is not None
            model = as_model(bundle, config, structure, tokenizer)
            # The first stage's folder is copied unchanged.
            parts = {each.name: getattr(model, each.name) for each in dataclasses.fields(model)}
            model_folder.save(parts | {"first_stage": structure.first_stage}, folder, overwrite=True, card=card)
    distributed.wait_for_all("the model is exported")
    return folder


def as_model(
    bundle: Bundle,
    config: Config,
    structure: Structure,
    tokenizer: ClipTokenizer,
    first_stage: RRDBNet | None = None,
) -> Model:
    """The networks of a training as a model that restores photographs."""
    return Model(
        unet=bundle.unet,
        controlnet=bundle.controlnet,
        autoencoder=bundle.autoencoder,
        text_encoder=bundle.text_encoder,
        tokenizer=tokenizer,
        schedule=structure.networks.schedule,
        defaults=config.sampling,
        note=config.note,
        first_stage=first_stage,
    )


def _on_first(parameters: Parameters) -> Iterator[tuple[str, np.ndarray]]:
    """Gathers whole arrays in the first process. Every process must iterate to the end."""
    for path, array in sorted(parameters.items()):  # The same order in every process.
        whole = distributed.whole(array)
        if distributed.is_first():
            yield path, whole


def scale_latents(bundle: Bundle, config: Config, structure: Structure, source: SampleSource) -> None:
    """Sets the scaling factor so that the latents of the training images have standard deviation 1.

    Stable Diffusion's factor was set in the same way. A frozen encoder keeps its factor, because a diffusion model may
    have been trained with it.
    """
    if not any(path.startswith(("autoencoder.encoder.", "autoencoder.quant_conv.")) for path in structure.trained):
        return
    data = DataConfig(crop_size=config.data.crop_size, degrade=False)
    crops = [
        make_example(source[i % len(source)], data, tokenizer=None, seed=config.seed, index=i)["hr"]
        for i in range(_MEASURED_CROPS)
    ]
    mean, log_variance = jax.jit(lambda image: bundle.autoencoder.moments(image))(np.stack(crops))
    deviation = float(jnp.sqrt(jnp.var(mean) + jnp.mean(jnp.exp(log_variance))))
    bundle.autoencoder.config = dataclasses.replace(bundle.autoencoder.config, scaling_factor=1 / deviation)
