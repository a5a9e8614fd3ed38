"""Converting weights into a model folder, checked against our networks and streamed one tensor at a time."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from xpsr_jax.errors import UserError
from xpsr_jax.weights import model_folder
from xpsr_jax.weights.atomic import check_free, new_folder
from xpsr_jax.weights.networks import NETWORKS, checked_tensors
from xpsr_jax.weights.tensors import Tensor
from xpsr_jax.weights.torch_files import PICKLES, write_folder


@dataclasses.dataclass(frozen=True)
class Converted:
    """What a conversion wrote.

    Attributes:
      sources: where each component, by its subfolder, came from.
      missing: subfolders that sampling needs and no source had.
      tensors, parameters: counts over all networks.
    """

    sources: dict[str, Path]
    missing: tuple[str, ...]
    tensors: int
    parameters: int


def convert(
    sources: Sequence[Path],
    output: Path,
    *,
    dtype: Any = None,
    shard_bytes: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Merges PyTorch folders by component, later ones first choice, into a new model folder.

    Every tensor is checked and written under today's name; config.json, tokenizer and scheduler are copied.

    Args:
      dtype: to cast to; None: as they are, bit for bit.
      shard_bytes: start another file above this size.
      overwrite: replace an existing model folder.
      progress: show a progress bar.

    Raises:
      UserError: a source is no such folder or of a format that is not supported, or the output exists or holds a
        source.
      WeightsError: the weights do not fit; it names everything that is wrong with them.
    """
    replaceable = model_folder.ENTRIES if overwrite else None
    for source in sources:
        _check_source(source)
        if output.resolve() in (source.resolve(), *source.resolve().parents):
            raise UserError(f"the output {output} would replace the source {source}; name another folder")
    check_free(output, replaceable=replaceable)
    components = model_folder.find_components(sources, required=())
    if not components.keys() & NETWORKS.keys():
        expected = ", ".join(f"{network.subfolder}/" for network in NETWORKS.values())
        raise UserError(f"{', '.join(map(str, sources))}: no networks; expected some of the subfolders {expected}")
    if "schedule" in components:
        model_folder.load_schedule(components["schedule"])
    if "tokenizer" in components:
        model_folder.load_tokenizer(components["tokenizer"])
    defaults, note = model_folder.load_defaults(sources)
    networks = {name: checked_tensors(NETWORKS[name], components[name]) for name in NETWORKS if name in components}
    everything = [tensor for tensors in networks.values() for tensor in tensors.values()]
    size = sum(tensor.nbytes for tensor in everything)
    with (
        new_folder(output, replaceable=replaceable) as folder,
        tqdm(total=size, unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        for name, source in components.items():
            target = folder / model_folder.SUBFOLDERS[name]
            if name not in networks:
                model_folder.copy_folder(source, target)
                continue
            target.mkdir()
            shutil.copyfile(source / "config.json", target / "config.json")
            tensors = {key: _counted(tensor, bar) for key, tensor in networks[name].items()}
            write_folder(tensors, target, NETWORKS[name].stem, where=source, dtype=dtype, shard_bytes=shard_bytes)
        model_folder.write_index(folder, defaults, note)
    return Converted(
        sources={sub: components[name] for name, sub in model_folder.SUBFOLDERS.items() if name in components},
        missing=tuple(sub for name, sub in model_folder.SUBFOLDERS.items() if name not in components),
        tensors=len(everything),
        parameters=sum(tensor.size for tensor in everything),
    )


def _check_source(source: Path) -> None:
    later = None
    if source.suffix in PICKLES:
        later = "pickled checkpoints (with the extra 'torch')"
    elif source.suffix in (".safetensors", ".msgpack") and not source.is_dir():
        later = "single files"
    elif source.is_dir() and list(source.glob("*/*.msgpack")):
        later = "Flax folders"
    elif (source / "_CHECKPOINT_METADATA").exists():
        later = "training checkpoints"
    if later:
        raise UserError(f"{source}: {later} are read from the next release on; this one reads diffusers' folders")


def _counted(tensor: Tensor, bar: tqdm) -> Tensor:
    def read() -> Any:
        bar.update(tensor.nbytes)
        return tensor.read()

    return dataclasses.replace(tensor, read=read)
