"""Reads the weights in a component's folder, whichever library wrote them."""

import functools
import re
from collections.abc import Callable
from pathlib import Path

from xpsr_jax.errors import UserError
from xpsr_jax.files import entries
from xpsr_jax.weights import hub, orbax_files, rules
from xpsr_jax.weights.flax_files import read_msgpack
from xpsr_jax.weights.pickles import read_pickle
from xpsr_jax.weights.tensors import Tensor, without_shared_prefix
from xpsr_jax.weights.torch_files import STEMS, read_file, read_shards

Read = Callable[[Path], dict[str, Tensor]]
# Extension, names (diffusers', transformers') and reader of each kind of file, in order of preference.
_KINDS: tuple[tuple[str, tuple[str, ...], Read], ...] = (
    ("safetensors", STEMS, read_file),
    ("bin", ("diffusion_pytorch_model", "pytorch_model"), read_pickle),
    ("msgpack", ("diffusion_flax_model", "flax_model"), read_msgpack),
)
_NAMES = "|".join(stem for _, stems, _ in _KINDS for stem in stems)
_VARIANT = re.compile(rf"(?:{_NAMES})\.(?:(\w+)\.(?:safetensors|bin)|(?:safetensors|bin)\.index\.(\w+)\.json)")


def read_folder(
    folder: Path, names: rules.Names = rules.UNET_NAMES, *, variant: str | None = None
) -> dict[str, Tensor]:
    """The tensors of a component's folder, by PyTorch's keys and in PyTorch's layout. Their data are read later.

    For a model on the hub, the files are downloaded now.

    Args:
      names: the network's naming rules. Needed for an Orbax checkpoint, which has our paths.
      variant: such as "fp16": prefer "model.VARIANT.safetensors" to "model.safetensors" where it exists. A folder
        that holds nothing but one variant is read even with None.

    Raises UserError if the folder has no weights, or a file is missing, truncated, corrupt, or not safe to read.
    """
    hub.complete(folder, variant=variant)
    found = sorted(entries(folder))
    variants = variants_in(folder)
    only = next(iter(variants)) if len(variants) == 1 else None
    for choice in (variant, None) if variant else (None, only):
        if (read := _find(folder, choice)) is not None:
            return without_shared_prefix(read(), folder)
    if orbax_files.FOLDER in found:
        tensors = orbax_files.read(folder / orbax_files.FOLDER)
        return dict(rules.to_torch(path, tensor, names) for path, tensor in tensors.items())
    if variants:
        raise UserError(f"{folder} holds only variants: {', '.join(sorted(variants))}; choose one with --variant")
    expected = " or ".join(f"{stem}.safetensors" for stem in STEMS)
    raise UserError(f"{folder} holds no weights: expected {expected}, found {', '.join(found) or 'nothing'}")


def variants_in(folder: Path) -> set[str]:
    """The variants of a component's weights, such as "fp16". The plain files are not counted."""
    names = [*entries(folder), *hub.names_in(folder)]
    return {match[1] or match[2] for name in names if (match := _VARIANT.fullmatch(name))}


def _find(folder: Path, variant: str | None) -> Callable[[], dict[str, Tensor]] | None:
    suffix = f".{variant}" if variant else ""
    for extension, stems, read in _KINDS:
        for stem in stems:
            if (file := folder / f"{stem}{suffix}.{extension}").exists():
                return functools.partial(read, file)
            if (index := folder / f"{stem}.{extension}.index{suffix}.json").exists():
                return functools.partial(read_shards, index, read)
    return None
