"""Finds the components of a model at a path, in any format, and merges several sources. Large data are read later."""

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xpsr_jax.assets import ASSETS
from xpsr_jax.buckets.paths import BucketPath, as_path
from xpsr_jax.config import Sampling
from xpsr_jax.diffusion.schedule import Schedule
from xpsr_jax.errors import UserError
from xpsr_jax.errors import listed as listed_names
from xpsr_jax.json_files import read_json
from xpsr_jax.weights import hub, single_file
from xpsr_jax.weights.esrgan_file import is_esrgan, read_esrgan
from xpsr_jax.weights.folders import variants_in
from xpsr_jax.weights.local_models import local_model
from xpsr_jax.weights.model_card import Card
from xpsr_jax.weights.networks import ALL_NETWORKS, NETWORKS, Weights, open_folder

# Subfolder of each component, by the field of `model_folder.Model`.
SUBFOLDERS = {name: network.subfolder for name, network in ALL_NETWORKS.items()} | {
    "tokenizer": "tokenizer",
    "schedule": "scheduler",
}
# Components that restoring needs.
REQUIRED = (*NETWORKS, "tokenizer", "schedule")
SHIPPED_TOKENIZER = ASSETS / "tokenizer"


@dataclass(frozen=True)
class Source:
    """Components of a model.

    Attributes:
      origins: path that each component comes from, by the field of `Model`; for messages.
      networks: for each network, a function that opens its weights.
      tokenizer: the tokenizer's folder.
      schedule: the schedule, or its folder.
      settings: sampling settings and a note; None: from a model_index.json.
      folders: folders that may have a model_index.json. The settings of the last one are used.
      reads_base: whether it uses weights of the sources before it, as a training checkpoint uses its base model.
      card: how the model was made, if the folders do not say it.
      history: changes made to the weights, one line each; for messages.
      also_read: other paths that its weights are read from.
    """

    origins: Mapping[str, Path]
    networks: Mapping[str, Callable[[], Weights]]
    tokenizer: Path | None = None
    schedule: Path | Schedule | None = None
    settings: tuple[Sampling, str] | None = None
    folders: tuple[Path, ...] = ()
    reads_base: bool = False
    card: Card | None = None
    history: tuple[str, ...] = ()
    also_read: tuple[Path, ...] = ()


def open_source(path: Path, *, variant: str | None = None, ema: bool = False) -> Source:
    """Opens a model folder (with PyTorch's, Flax's or Orbax's files), the folder of one component, or a single file.

    Args:
      path: a local path; a name on the hub, whose weights are downloaded when a network is opened; or a path in a
        bucket, which is copied (`hub.local`).
      variant: variant of a folder's weight files, such as "fp16", for components that have it.
      ema: read the averaged UNet of a single file.

    Raises UserError if the path is none of these, holds no part of a model, or is a single file that cannot be read.
    """
    path = as_path(path)
    if isinstance(path, BucketPath) and is_training_checkpoint(path):
        raise UserError(f"{path} is a training checkpoint: make a model folder from it with `xpsr convert`")
    path = hub.local(path)
    if path.is_file() and path.suffix in single_file.SUFFIXES:
        return _open_single_file(path, ema=ema)
    if not path.is_dir():
        problem = "is a file" if path.exists() else "does not exist"
        folders = listed(SUBFOLDERS)
        raise UserError(
            f"{path} {problem}; expected a model folder with the subfolders {folders}, "
            f"or a single file of Stable Diffusion or of an ESRGAN ({', '.join(single_file.SUFFIXES)})"
        )
    if is_training_checkpoint(path):
        raise UserError(f"{path} is a training checkpoint: make a model folder from it with `xpsr convert`")
    found = find_components(path)
    networks = {
        name: functools.partial(open_folder, ALL_NETWORKS[name], folder, variant=variant)
        for name, folder in found.items()
        if name in ALL_NETWORKS
    }
    return Source(found, networks, found.get("tokenizer"), found.get("schedule"), folders=(path,))


def find_components(path: Path) -> dict[str, Path]:
    """The folders of the components in a model folder, by the field of `Model`.

    They are its subfolders. A folder without such subfolders may be a component itself (such as sd-vae-ft-mse); its
    files then show which one.

    A folder in a bucket is copied, and the folders of the copy are returned.

    Raises UserError if it holds no part of a model.
    """
    path = local_model(path)
    found = {name: path / sub for name, sub in SUBFOLDERS.items() if (path / sub).is_dir()}
    if found:
        return found
    entries = {entry.name for entry in path.iterdir()}
    if "config.json" in entries:
        names = _class_names(path / "config.json")
        found = {name: path for name, network in ALL_NETWORKS.items() if network.torch_class[1] in names}
        if not found:
            classes = ", ".join(network.torch_class[1] for network in ALL_NETWORKS.values())
            raise UserError(f"{path / 'config.json'} is for {listed_names(names) or 'no class'}; known are {classes}")
    elif "scheduler_config.json" in entries:
        found = {"schedule": path}
    elif {"vocab.json", "merges.txt"} <= entries or "tokenizer.json" in entries:
        found = {"tokenizer": path}
    if not found:
        raise UserError(
            f"{path} holds no part of a model: expected some of the subfolders {listed(SUBFOLDERS)}, or the files of "
            f"one component; found {listed_names(sorted(entries)) or 'nothing'}"
        )
    return found


def _class_names(file: Path) -> list[str]:
    """The PyTorch class names in a config.json."""
    data = read_json(file)
    said = [data.get("_class_name"), *(data["architectures"] if isinstance(data.get("architectures"), list) else [])]
    return [name.removeprefix("Flax") for name in said if isinstance(name, str)]


def is_training_checkpoint(path: Path) -> bool:
    """Whether a path is a checkpoint saved by `xpsr train`, or a folder of checkpoints, or the folder of a run."""
    steps = [path, *path.glob("[0-9]*"), *path.glob("checkpoints/[0-9]*")]
    return any((step / "state").is_dir() and (step / "config").is_dir() for step in steps)


def merge(sources: Sequence[Source]) -> Source:
    """Merges sources. Where several have the same component, the last one is used."""
    merged = Source({}, {})
    for source in sources:
        merged = Source(
            {**merged.origins, **source.origins},
            {**merged.networks, **source.networks},
            source.tokenizer or merged.tokenizer,
            source.schedule or merged.schedule,
            source.settings or merged.settings,
            merged.folders + source.folders,
            card=source.card or merged.card,
            history=merged.history + source.history,
            also_read=merged.also_read + source.also_read,
        )
    return merged


def check_each_is_used(paths: Sequence[Path], held: Sequence[Collection[str]]) -> None:
    """Raises UserError for a path that is not used, because later ones have all its components.

    Args:
      held: for each path, the names of its components that can be used.
    """
    for i, path in enumerate(paths):
        if not set(held[i]).difference(*held[i + 1 :]):
            later = listed_names(paths[i + 1 :])
            names = [name for name in SUBFOLDERS if name in held[i]]
            why = f"later ones also have {listed(names)} ({later})" if names else "it has no usable component"
            raise UserError(f"{path} is not used: {why}; leave it out, or name it after them")


def require(source: Source, names: Sequence[str], paths: Sequence[Path]) -> None:
    """Raises UserError naming missing components, and the folders that were found."""
    if missing := [name for name in names if name not in source.origins]:
        folders = [folder for folder in map(hub.local, paths) if folder.is_dir()]
        there = sorted({entry.name for folder in folders for entry in folder.iterdir() if entry.is_dir()})
        found = ", ".join(f"{name}/" for name in there) or "no subfolders"
        where = ", ".join(map(str, paths))
        raise UserError(f"{where}: no {listed(missing)}; expected the subfolders {listed(names)}, found {found}")


def lacking_variant(source: Source, variant: str) -> list[str]:
    """The networks that do not have the variant. Their plain files are read instead.

    Raises UserError if no network has the variant, which is probably a mistake.
    """
    found = {name: variants_in(source.origins[name]) for name in source.networks}
    if not any(variant in variants for variants in found.values()):
        known = ", ".join(sorted(set().union(*found.values()))) or "none"
        raise UserError(f"no weights have the variant {variant}; variants found: {known}")
    return [name for name, variants in found.items() if variant not in variants]


def listed(names: Iterable[str]) -> str:
    """The subfolders of components for messages, such as "unet/, controlnet/".

    Args:
      names: names of components, which are keys of `SUBFOLDERS`.
    """
    return ", ".join(f"{SUBFOLDERS[name]}/" for name in names)


def _open_single_file(file: Path, *, ema: bool) -> Source:
    def opened(config: dict, tensors: dict) -> Weights:
        return Weights(file, config, tensors)

    stored = single_file.read_tensors(file)
    if is_esrgan(stored):
        first_stage = functools.partial(opened, *read_esrgan(file, stored))
        return Source({"first_stage": file}, {"first_stage": first_stage})
    content = single_file.read_single_file(file, stored, ema=ema)
    networks = {name: functools.partial(opened, *parts) for name, parts in content.networks.items()}
    origins = dict.fromkeys(networks, file)
    if content.version == 1 and "unet" in networks:
        # These are the same for all of version 1. Version 2 has two schedules, and the file does not say which.
        origins |= {"tokenizer": SHIPPED_TOKENIZER, "schedule": file}
        return Source(origins, networks, SHIPPED_TOKENIZER, single_file.SCHEDULE_1)
    return Source(origins, networks)
