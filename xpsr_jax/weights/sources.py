"""What a path holds of a model, whatever its format, and several of them merged. Nothing large is read yet."""

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

# Fields of `model_folder.Model` that are components, and their subfolders.
SUBFOLDERS = {name: network.subfolder for name, network in ALL_NETWORKS.items()} | {
    "tokenizer": "tokenizer",
    "schedule": "scheduler",
}
# Those without which nothing can be restored.
REQUIRED = (*NETWORKS, "tokenizer", "schedule")
SHIPPED_TOKENIZER = ASSETS / "tokenizer"


@dataclass(frozen=True)
class Source:
    """Components of a model.

    Attributes:
      origins: where each comes from, by the name of `Model`'s field; for people.
      networks: what opens each network's weights.
      tokenizer: its folder.
      schedule: its folder, or itself.
      settings: to sample with, and a note; None: as a model_index.json says.
      folders: that may have a model_index.json, of which the last one's settings hold.
      reads_base: it was made with weights of sources before it, as a training checkpoint is with its base's.
      card: what is known of how it came to be, if that is not in its folders.
      history: what was done to its weights, a line each; for people.
      also_read: further paths that its weights are read from.
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
    """A model folder (PyTorch's files, Flax's or Orbax's), the folder of one component, or a single file.

    Args:
      path: of it, or a name on the hub, of which the weights are fetched when a network is opened; or in a
        bucket, of which the source is a copy (`hub.local`).
      variant: of a folder's weight files, such as "fp16", where a component has it.
      ema: take a single file's averaged UNet.

    Raises UserError if it is none of them, or holds no part of a model, or the single file cannot be read.
    """
    path = as_path(path)
    if isinstance(path, BucketPath) and is_training_checkpoint(path):
        raise UserError(f"{path} is a training checkpoint: xpsr convert makes a model folder of it")
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
        raise UserError(f"{path} is a training checkpoint: xpsr convert makes a model folder of it")
    found = find_components(path)
    networks = {
        name: functools.partial(open_folder, ALL_NETWORKS[name], folder, variant=variant)
        for name, folder in found.items()
        if name in ALL_NETWORKS
    }
    return Source(found, networks, found.get("tokenizer"), found.get("schedule"), folders=(path,))


def find_components(path: Path) -> dict[str, Path]:
    """The folders of the components that a folder holds, by the name of `Model`'s field.

    They are its subfolders; or, if it has none of these, it is one itself (as sd-vae-ft-mse is): its files say which.

    A folder in a bucket is copied, and the components' are those of the copy.

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
            raise UserError(f"{path / 'config.json'} is of {listed_names(names) or 'no class'}; known are {classes}")
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
    """What a config.json says that it is, in PyTorch's words."""
    data = read_json(file)
    said = [data.get("_class_name"), *(data["architectures"] if isinstance(data.get("architectures"), list) else [])]
    return [name.removeprefix("Flax") for name in said if isinstance(name, str)]


def is_training_checkpoint(path: Path) -> bool:
    """Whether it is what `xpsr train` saves during a run: a checkpoint, or the run's folder of them, or the run's."""
    steps = [path, *path.glob("[0-9]*"), *path.glob("checkpoints/[0-9]*")]
    return any((step / "state").is_dir() and (step / "config").is_dir() for step in steps)


def merge(sources: Sequence[Source]) -> Source:
    """All that the sources have; of what several have, the last one's."""
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
    """Raises UserError for a path of which nothing is used, because later ones have all that it holds.

    Args:
      held: the names of the components that each path holds, and that are looked for.
    """
    for i, path in enumerate(paths):
        if not set(held[i]).difference(*held[i + 1 :]):
            later = listed_names(paths[i + 1 :])
            names = [name for name in SUBFOLDERS if name in held[i]]
            why = f"later ones have its {listed(names)} too ({later})" if names else "it has no component that is"
            raise UserError(f"{path}: no part of it is used, {why}; leave it out, or name it after them")


def require(source: Source, names: Sequence[str], paths: Sequence[Path]) -> None:
    """Raises UserError saying which of the components are nowhere, and what is there."""
    if missing := [name for name in names if name not in source.origins]:
        folders = [folder for folder in map(hub.local, paths) if folder.is_dir()]
        there = sorted({entry.name for folder in folders for entry in folder.iterdir() if entry.is_dir()})
        found = ", ".join(f"{name}/" for name in there) or "no subfolders"
        where = ", ".join(map(str, paths))
        raise UserError(f"{where}: no {listed(missing)}; expected the subfolders {listed(names)}, found {found}")


def lacking_variant(source: Source, variant: str) -> list[str]:
    """Networks of which there are only files without the variant, which are read in its place.

    Raises UserError if no network has the variant: then it is a mistake.
    """
    found = {name: variants_in(source.origins[name]) for name in source.networks}
    if not any(variant in variants for variants in found.values()):
        known = ", ".join(sorted(set().union(*found.values()))) or "none"
        raise UserError(f"no weights come in the variant {variant}; variants found: {known}")
    return [name for name, variants in found.items() if variant not in variants]


def listed(names: Iterable[str]) -> str:
    """For messages: the subfolders of components, as "unet/, controlnet/".

    Args:
      names: of components, each a key of `SUBFOLDERS`.
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
        # All of version 1 have these. Version 2 comes with two schedules, between which nothing in the file decides.
        origins |= {"tokenizer": SHIPPED_TOKENIZER, "schedule": file}
        return Source(origins, networks, SHIPPED_TOKENIZER, single_file.SCHEDULE_1)
    return Source(origins, networks)
