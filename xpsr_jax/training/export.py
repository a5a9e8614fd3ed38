"""From a run's state to a model folder that `xpsr restore` and PyTorch load."""

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
    """CLIP's tokenizer, of `tokenizer_folder`."""
    return model_folder.load_tokenizer(tokenizer_folder(networks))


def tokenizer_folder(networks: Networks) -> Path:
    """The folder that the config names, or the newest base's, or the one that ships with the package."""
    if networks.tokenizer:
        return hub.local(networks.tokenizer)
    folders = [hub.local(base) for base in reversed(networks.base)]
    found = [find_components(folder).get("tokenizer") for folder in folders if folder.is_dir()]
    return next(filter(None, found), SHIPPED_TOKENIZER)


def assemble(structure: Structure, trained: Parameters, frozen: Parameters) -> Bundle | None:
    """The whole networks in float32; what the base holds is read from it again: training may have it in bfloat16.

    Returns them to the first process and None to the others, which have to call it too.
    """
    paths = sorted(exported(structure.frozen))
    originals = load_parameters(structure, paths) if distributed.is_first() else {}
    # The first process says what else is needed of the frozen ones: they are all on all devices, or split over them.
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
    """Writes the model folder, replacing an older one of the same run. All processes call it, the first writes.

    Args:
      folder: to write; its parent exists.
      trained: parameters by path, float32: the moving average where the run has one.
      frozen: the others, in any type; what the base holds is read from it again.
      source: of the images by which the autoencoder's stage scales its latents.
      tokenizer: of the captions; None only in the autoencoder's stage, which has none.
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
            # Copied as it is.
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
        first_stage=first_stage,
    )


def _on_first(parameters: Parameters) -> Iterator[tuple[str, np.ndarray]]:
    """Whole arrays, whichever devices and processes hold their parts, in the first process; all have to go through."""
    for path, array in sorted(parameters.items()):  # in one order everywhere
        whole = distributed.whole(array)
        if distributed.is_first():
            yield path, whole


def scale_latents(bundle: Bundle, config: Config, structure: Structure, source: SampleSource) -> None:
    """Sets the scaling factor so that the training images' latents have deviation 1, as Stable Diffusion's was set.

    Latents of a frozen encoder stay what they were, and so must their scale: a diffusion may know it already.
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
