"""Model folders: diffusers' layout, one subfolder per component, and model_index.json with the sampling settings."""

import dataclasses
import functools
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from xpsr_jax.buckets.paths import as_path
from xpsr_jax.config import PAPER, Sampling
from xpsr_jax.diffusion.schedule import Schedule
from xpsr_jax.errors import UserError
from xpsr_jax.files import entries, new_folder
from xpsr_jax.json_files import read_json, write_json
from xpsr_jax.models.autoencoder import Autoencoder
from xpsr_jax.models.configs import Fusion
from xpsr_jax.models.controlnet import ControlNet
from xpsr_jax.models.layers import Compute
from xpsr_jax.models.rrdb import RRDBNet
from xpsr_jax.models.text_encoder import TextEncoder
from xpsr_jax.models.unet import UNet
from xpsr_jax.weights import hub
from xpsr_jax.weights.local_models import local_model
from xpsr_jax.weights.model_card import CARD, Card, write_card
from xpsr_jax.weights.networks import ALL_NETWORKS, CONTROLNET, UNET, load_network, parse_config, save_network
from xpsr_jax.weights.sampling_defaults import INDEX, load_defaults
from xpsr_jax.weights.sources import (
    REQUIRED,
    SUBFOLDERS,
    Source,
    check_each_is_used,
    lacking_variant,
    merge,
    open_source,
    require,
)
from xpsr_jax.weights.tensors import together

_CLASSES = {network.subfolder: network.torch_class for network in ALL_NETWORKS.values()} | {
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "scheduler": ("diffusers", "DDPMScheduler"),
}
# A folder may be overwritten only if it holds nothing else.
ENTRIES = frozenset({*SUBFOLDERS.values(), INDEX, CARD})


@runtime_checkable
class ClipTokenizer(Protocol):
    """The used part of transformers' CLIPTokenizer. Importing the class itself takes long."""

    model_max_length: int
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    backend_tokenizer: Any

    def __call__(self, text: str, **options: bool) -> Mapping[str, list[int]]:
        """A mapping with the text's token ids under "input_ids".

        Args:
          text: a caption or prompt words.
          options: transformers' options, such as `add_special_tokens`, `padding`, `truncation` and `verbose`.
        """
        ...

    def save_pretrained(self, folder: Path, /) -> object:
        """Writes the tokenizer's files into the folder."""
        ...


@dataclass(frozen=True)
class Model:
    """A complete model, which can restore photographs.

    Attributes:
      unet: Stable Diffusion's UNet with Conditional Attention.
      controlnet: XPSR's ControlNet.
      autoencoder: converts between images and latents.
      text_encoder: encodes both captions.
      tokenizer: transformers' CLIPTokenizer.
      schedule: the noise schedule that the networks were trained with.
      defaults: default sampling settings.
      note: a note for users of the model; may be empty.
      first_stage: network that cleans the LR picture before the other networks get it; None: not used.
    """

    unet: UNet
    controlnet: ControlNet
    autoencoder: Autoencoder
    text_encoder: TextEncoder
    tokenizer: ClipTokenizer
    schedule: Schedule
    defaults: Sampling = PAPER
    note: str = ""
    first_stage: RRDBNet | None = None


def load_networks(
    folder: str | Path,
    dtype: DTypeLike = jnp.float32,
    *,
    fusion: Fusion | None = None,
    with_constraint_heads: bool | None = None,
    compute: Compute | None = None,
    mesh: jax.sharding.Mesh | None = None,
    variant: str | None = None,
) -> tuple[UNet, ControlNet]:
    """Loads XPSR's two networks from a folder with `unet/` and `controlnet/`, such as a released `checkpoint-N`.

    Args:
      folder: the folder. Its files may be PyTorch's, Flax's or Orbax's (docs/reference/formats.md).
      dtype: type of the parameters and of the computation.
      fusion: how the captions are fused. None: from the ControlNet's config.json, or "sfa" if that does not say, as
        in the released checkpoints.
      with_constraint_heads: whether to build the Degradation-Free Constraint's heads; None: if the file has them.
      compute: kernel, remat and separate dtypes, instead of `dtype`.
      mesh: devices to split the parameters over; None: one device. An Orbax checkpoint is restored directly into the
        parts.
      variant: variant of the weight files, such as "fp16". For a component without it, the plain files are read.

    Raises:
      UserError: the folder does not have both networks, or a file cannot be read.
      WeightsError: the weights do not fit. The error lists every problem.
    """
    source = open_source(as_path(folder), variant=variant)
    require(source, ("unet", "controlnet"), [as_path(folder)])
    if variant:
        lacking_variant(source, variant)
    compute = compute or Compute(dtype=dtype, param_dtype=dtype)

    def read_controlnet() -> ControlNet:
        weights = source.networks["controlnet"]()
        config = parse_config(CONTROLNET, weights.config, weights.where)
        if fusion is not None:
            config = dataclasses.replace(config, fusion=fusion)
        return load_network(
            CONTROLNET, weights, compute=compute, config=config, with_constraint_heads=with_constraint_heads, mesh=mesh
        )

    unet, controlnet = together(
        lambda: load_network(UNET, source.networks["unet"](), compute=compute, mesh=mesh), read_controlnet
    )
    return unet, controlnet


def load(
    folder: str | Path,
    *more: str | Path,
    dtype: DTypeLike = jnp.float32,
    compute: Compute | None = None,
    mesh: jax.sharding.Mesh | None = None,
    variant: str | None = None,
    first_stage: str | Path = "own",
    shapes_only: bool = False,
) -> Model:
    """Loads a complete model from one or more sources.

    Where several sources have the same component, the last one is used. For example, Stable Diffusion 1.5's folder or
    single file and then XPSR's `checkpoint-N` make a complete model. The ControlNet is built without the
    Degradation-Free Constraint's heads, which only training needs.

    Args:
      folder: a model folder, a single file, or a model on the hub (docs/reference/formats.md).
      more: further sources. Later ones take precedence.
      dtype: type of the parameters and of the computation.
      compute: kernel, remat and separate dtypes, instead of `dtype`.
      mesh: devices to split the parameters over; None: one device.
      variant: variant of the weight files, such as "fp16". For a component without it, the plain files are read.
      first_stage: network that cleans and enlarges an LR picture before the other networks get it. "own": from the
        last source that has one; "none": not used; otherwise the path of an ESRGAN network's folder or file, or of a
        model folder that has one.
      shapes_only: build the networks with shapes instead of arrays, for planning without computing.

    Raises the errors of `load_networks`. If several networks are wrong, the error names all of them.
    """
    paths = [as_path(folder), *map(as_path, more)]
    sources = [open_source(path, variant=variant) for path in paths]
    check_each_is_used(paths, [source.origins for source in sources])
    if first_stage not in ("own", "none"):
        sources.append(_only_first_stage(as_path(first_stage)))
    source = merge(sources)
    require(source, REQUIRED, paths)
    if variant:
        lacking_variant(source, variant)
    compute = compute or Compute(dtype=dtype, param_dtype=dtype)
    # Small files first: an error in them is then found before the large ones are read.
    assert source.schedule is not None and source.tokenizer is not None
    schedule = load_schedule(source.schedule)
    tokenizer = load_tokenizer(source.tokenizer)
    defaults, note = load_defaults(source.folders)

    def read(name: str) -> Any:
        weights = source.networks[name]()
        return load_network(
            ALL_NETWORKS[name],
            weights,
            compute=compute,
            with_constraint_heads=False,
            mesh=mesh,
            shapes_only=shapes_only,
        )

    names = [
        name for name in ALL_NETWORKS if name in source.networks and (name != "first_stage" or first_stage != "none")
    ]
    networks = together(*(functools.partial(read, name) for name in names))
    return Model(
        **dict(zip(names, networks, strict=True)),
        tokenizer=tokenizer,
        schedule=schedule,
        defaults=defaults,
        note=note,
    )


def _only_first_stage(path: Path) -> Source:
    source = open_source(path)
    if "first_stage" not in source.networks:
        found = ", ".join(SUBFOLDERS[name] for name in source.origins)
        raise UserError(f"{path} has no first stage, an ESRGAN network; it has {found}")
    return Source({"first_stage": source.origins["first_stage"]}, {"first_stage": source.networks["first_stage"]})


def save(
    parts: Model | Mapping[str, Any],
    folder: str | Path,
    *,
    dtype: DTypeLike | None = None,
    shard_bytes: int | None = None,
    overwrite: bool = False,
    card: Card | None = None,
) -> None:
    """Writes a model folder, whole or not at all.

    Args:
      parts: a model, or some of its fields by name. A component may also be the path of a folder, which is copied
        unchanged.
      folder: must not exist. With `overwrite`, it may exist if it holds nothing but a model.
      dtype: type of the networks' tensors; None: their own. Copied folders are not cast.
      shard_bytes: start another file above this size.
      card: content of the README.md. A README written by a user in an overwritten folder is kept.

    Raises:
      UserError: the folder exists, or cannot be written.
      WeightsError: a parameter holds NaN or infinity, or `dtype` cannot hold it.
    """
    fields = [field.name for field in dataclasses.fields(Model)]
    if isinstance(parts, Model):
        parts = {name: getattr(parts, name) for name in fields}
    if unknown := parts.keys() - set(fields):
        raise ValueError(f"a model has no {', '.join(sorted(unknown))}")
    with new_folder(as_path(folder), replaceable=ENTRIES if overwrite else None) as temporary:
        for name in [name for name in SUBFOLDERS if parts.get(name) is not None]:
            part, target = parts[name], temporary / SUBFOLDERS[name]
            if isinstance(part, str | Path):
                if name in ALL_NETWORKS:
                    hub.complete(Path(part))
                copy_folder(local_model(part), target)
                continue
            target.mkdir()
            if name in ALL_NETWORKS:
                save_network(ALL_NETWORKS[name], part, target, dtype=dtype, shard_bytes=shard_bytes)
            elif name == "tokenizer":
                save_tokenizer(part, target)
            else:
                write_json(part.to_json(), target / "scheduler_config.json")
        defaults, note = parts.get("defaults"), parts.get("note", "")
        write_index(temporary, defaults, note)
        write_card(temporary, card or Card(), final=as_path(folder), defaults=defaults, note=note)


def load_schedule(folder: Path | Schedule) -> Schedule:
    """The noise schedule of a `scheduler/` folder. A `Schedule` is returned unchanged."""
    if isinstance(folder, Schedule):
        return folder
    file = folder / "scheduler_config.json"
    return Schedule.from_json(read_json(file), file)


def load_tokenizer(folder: Path) -> ClipTokenizer:
    """Loads CLIP's tokenizer from a `tokenizer/` folder. Raises UserError if its vocabulary is missing."""
    folder = local_model(folder)
    files = entries(folder)
    # transformers would silently build a tokenizer without a vocabulary.
    if not ({"vocab.json", "merges.txt"} <= files or "tokenizer.json" in files):
        found = ", ".join(sorted(files)) or "nothing"
        raise UserError(f"{folder} holds no tokenizer: expected vocab.json and merges.txt, found {found}")
    # Without this, transformers advises to install PyTorch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import CLIPTokenizer

    try:
        # Special tokens in a caption are plain text. Stable Diffusion 2's tokenizer pads with "!", so it would read
        # each "!" in a caption as padding. The text encoder was not trained with that.
        tokenizer: ClipTokenizer = CLIPTokenizer.from_pretrained(
            folder, local_files_only=True, split_special_tokens=True
        )
        return tokenizer
    # For broken files, the library raises plain Exceptions.
    except Exception as error:
        raise UserError(f"{folder}: the tokenizer cannot be read: {error}") from error


def save_tokenizer(tokenizer: ClipTokenizer, folder: Path) -> None:
    """Writes a tokenizer for any release of transformers: current files, and the older vocab.json and merges.txt."""
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))


def write_index(folder: Path, defaults: Sampling | None, note: str) -> None:
    """Writes model_index.json for the components that the folder has.

    Without `defaults` it has no sampling settings. Merging such a folder then keeps the settings of the others.
    """
    classes: dict[str, Any] = {sub: list(names) for sub, names in _CLASSES.items() if (folder / sub).is_dir()}
    if defaults is not None:
        classes["xpsr_jax"] = {"sampling": dataclasses.asdict(defaults), "note": note}
    # A class name that diffusers does not know. Its own classes would load these networks without their Conditional
    # Attention, and would only warn.
    write_json({"_class_name": "XPSRPipeline", **classes}, folder / INDEX)


def copy_folder(source: Path, target: Path) -> None:
    """Copies a component's files."""
    try:
        shutil.copytree(source, target, copy_function=shutil.copyfile)
    except (OSError, shutil.Error) as error:
        raise UserError(f"{source} cannot be copied to {target}: {error}") from error
