"""Converts weights into a model folder. They are checked against our networks and streamed one tensor at a time."""

import collections
import dataclasses
import functools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jax.typing import DTypeLike
from tqdm import tqdm

from xpsr_jax.errors import UserError
from xpsr_jax.files import check_free, new_folder
from xpsr_jax.json_files import write_json
from xpsr_jax.locks import locked_output
from xpsr_jax.weights import model_folder, orbax_files, rules
from xpsr_jax.weights.model_card import Card, card_of, public_name, write_card
from xpsr_jax.weights.networks import ALL_NETWORKS, AnyConfig, Network, Weights, checked
from xpsr_jax.weights.sources import REQUIRED, SUBFOLDERS, Source, listed, merge
from xpsr_jax.weights.tensors import Tensor, read_finite, together
from xpsr_jax.weights.torch_files import write_folder
from xpsr_jax.weights.verify import verify_network


@dataclasses.dataclass(frozen=True)
class Converted:
    """What a conversion wrote.

    Attributes:
      sources: for the subfolder of each component, the path that it came from.
      missing: subfolders that sampling needs and that no source had.
      tensors, parameters: counts over all networks.
      history: the changes made to the weights during conversion, one line each.
    """

    sources: dict[str, Path]
    missing: tuple[str, ...]
    tensors: int
    parameters: int
    history: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Job:
    """A network to write: its opened weights, its configuration, and its tensors by our paths."""

    network: Network
    weights: Weights
    config: AnyConfig
    tensors: Mapping[str, Tensor]


def convert(
    sources: Sequence[Source],
    output: Path,
    *,
    to: Literal["torch", "orbax"] = "torch",
    dtype: DTypeLike | None = None,
    shard_bytes: int | None = None,
    verify: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Merges sources by component into a new model folder, which appears only when it is complete.

    Where several sources have the same component, the last one is used. Every tensor is checked and written under its
    current name. The tokenizer and the scheduler are copied.

    Args:
      to: "torch": safetensors files with PyTorch's names. "orbax": an Orbax checkpoint for each network.
      dtype: type that the tensors are cast to. None: unchanged, bit for bit.
      shard_bytes: start another safetensors file above this size.
      verify: read the result back, and compare every tensor and the output of each network.
      overwrite: replace an existing model folder.
      progress: show a progress bar.

    Raises UserError: the output exists or contains a source; there is nothing to convert; or the weights do not fit
    the networks. The error lists every problem.
    """
    replaceable = model_folder.ENTRIES if overwrite else None
    source = merge(sources)
    for origin in (*source.origins.values(), *source.also_read):
        if output.resolve() in (origin.resolve(), *origin.resolve().parents):
            raise UserError(f"the output {output} would replace the source {origin}; choose another folder")
    check_free(output, replaceable=replaceable)
    if not source.networks:
        raise UserError(f"no networks to convert; expected some of the subfolders {listed(ALL_NETWORKS)}")
    if source.schedule is not None:
        model_folder.load_schedule(source.schedule)
    if source.tokenizer is not None:
        model_folder.load_tokenizer(source.tokenizer)
    defaults, note = source.settings or model_folder.load_defaults(source.folders)
    jobs = _open(source)
    tensors = [tensor for job in jobs.values() for tensor in job.tensors.values()]
    size = sum(tensor.nbytes for tensor in tensors)
    with (
        locked_output(output),
        new_folder(output, replaceable=replaceable) as folder,
        tqdm(total=size, unit="B", unit_scale=True, unit_divisor=1000, disable=not progress) as bar,
    ):
        parts = []
        for name, job in jobs.items():
            target = folder / SUBFOLDERS[name]
            target.mkdir()
            _write_config(job, target)
            counted = {path: _counted(tensor, bar) for path, tensor in job.tensors.items()}
            write = _write_orbax if to == "orbax" else functools.partial(_write_torch, shard_bytes=shard_bytes)
            parts.append(functools.partial(write, job, counted, target, dtype=dtype))
        together(*parts)
        if source.tokenizer is not None:
            model_folder.copy_folder(source.tokenizer, folder / SUBFOLDERS["tokenizer"])
        if isinstance(source.schedule, Path):
            model_folder.copy_folder(source.schedule, folder / SUBFOLDERS["schedule"])
        elif source.schedule is not None:
            (folder / SUBFOLDERS["schedule"]).mkdir()
            write_json(source.schedule.to_json(), folder / SUBFOLDERS["schedule"] / "scheduler_config.json")
        model_folder.write_index(folder, defaults, note)
        can_sample = all(name in source.origins for name in REQUIRED)
        card = _card(source)
        write_card(folder, card, final=output, defaults=defaults if can_sample else None, note=note)
        if verify:
            bar.set_postfix_str("verifying")
            for name, job in jobs.items():
                verify_network(job.network, job.weights, folder / SUBFOLDERS[name], dtype=dtype)
    return Converted(
        sources={sub: source.origins[name] for name, sub in SUBFOLDERS.items() if name in source.origins},
        missing=tuple(SUBFOLDERS[name] for name in REQUIRED if name not in source.origins),
        tensors=len(tensors),
        parameters=sum(tensor.size for tensor in tensors),
        history=source.history,
    )


def _card(source: Source) -> Card:
    """The card of the new model: where each component comes from, and what the cards of the sources say."""
    made = [f"{SUBFOLDERS[name]}/ from {public_name(origin)}" for name, origin in source.origins.items()]
    for line in source.history:
        for path in source.also_read:
            line = line.replace(str(path), public_name(path))
        made.append(line)
    folders = [*(folder for folder in source.also_read if folder.is_dir()), *source.folders]
    card = card_of(folders, made)
    if source.card is not None:
        card = dataclasses.replace(source.card, made=card.made, licence=source.card.licence or card.licence)
    # Changed weights are another model: the old scores do not apply to it.
    return dataclasses.replace(card, scores={}) if source.history else card


def _open(source: Source) -> dict[str, _Job]:
    """Opens all networks. One error lists all wrong names and shapes, and then also all wrong values."""

    def open_one(name: str) -> _Job:
        weights = source.networks[name]()
        return _Job(ALL_NETWORKS[name], weights, *checked(ALL_NETWORKS[name], weights))

    def read_one(name: str) -> None:
        job = open_one(name)
        collections.deque(read_finite(job.tensors, where=job.weights.where), maxlen=0)

    names = [name for name in ALL_NETWORKS if name in source.networks]
    try:
        return dict(zip(names, together(*(functools.partial(open_one, name) for name in names)), strict=True))
    except UserError:
        # Values are usually checked while they are written. Nothing will be written, so they are checked here.
        together(*(functools.partial(read_one, name) for name in names))
        raise


def _write_config(job: _Job, target: Path) -> None:
    file = job.weights.where / "config.json"
    if file.is_file() and "Flax" not in str(job.weights.config.get("_class_name", "")):
        shutil.copyfile(file, target / "config.json")
    else:
        write_json(job.config.to_json(), target / "config.json")


def _write_torch(
    job: _Job, tensors: Mapping[str, Tensor], target: Path, *, dtype: DTypeLike | None, shard_bytes: int | None = None
) -> None:
    named = dict(rules.to_torch(path, tensor, job.network.names) for path, tensor in tensors.items())
    write_folder(named, target, job.network.stem, where=job.weights.where, dtype=dtype, shard_bytes=shard_bytes)


def _write_orbax(job: _Job, tensors: Mapping[str, Tensor], target: Path, *, dtype: DTypeLike | None) -> None:
    orbax_files.write(read_finite(tensors, where=job.weights.where, dtype=dtype), target / orbax_files.FOLDER)


def _counted(tensor: Tensor, bar: tqdm) -> Tensor:
    def read() -> Any:
        bar.update(tensor.nbytes)
        return tensor.read()

    return dataclasses.replace(tensor, read=read)
