"""Decides by name which files of a repository on the hub a model needs. Nothing here imports JAX."""

import re
from collections.abc import Iterable

# The subfolders of a model folder (`sources.SUBFOLDERS`).
COMPONENTS = ("unet", "controlnet", "vae", "text_encoder", "first_stage", "tokenizer", "scheduler")
# Weight files that can hold a whole model, or a part of one.
SINGLE_FILES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")
# The file names of diffusers and transformers, in order of preference: pickles come last.
_KINDS = (
    ("safetensors", ("diffusion_pytorch_model", "model")),
    ("msgpack", ("diffusion_flax_model", "flax_model")),
    ("bin", ("diffusion_pytorch_model", "pytorch_model")),
)
_STEMS = "|".join(sorted({stem for _, stems in _KINDS for stem in stems}))
_VARIANT = re.compile(rf"(?:{_STEMS})\.(?!safetensors$|bin$|msgpack$|index)(\w+)(?:-\d+-of-\d+)?\.(?:safetensors|bin)")
_ORBAX = "orbax/"
_DESCRIPTIONS = (".json", ".txt", ".model", ".jinja")


def descriptions(names: Iterable[str]) -> list[str]:
    """The small files: configurations, tokenizers, settings, the model's card.

    Args:
      names: paths below the model's folder.
    """
    return [name for name in names if _in_a_component(name) and _is_description(name.rpartition("/")[2])]


def weights(names: Iterable[str], *, variant: str | None = None) -> list[str]:
    """The weight files of one component: safetensors, otherwise Flax's or Orbax's, otherwise a pickle; [] if none.

    Args:
      names: names of the component's files, relative to its folder.
      variant: such as "fp16": prefer files of this variant. None: prefer the plain files; if none of those is safe to
        open and there is only one variant, that variant.
    """
    names = list(names)
    found = [variants_of(names)] if variant is None else []
    only = next(iter(found[0])) if found and len(found[0]) == 1 else None
    safe, pickled = _KINDS[:-1], _KINDS[-1:]
    if variant is not None and (chosen := _of_kinds(names, variant, _KINDS)):
        return chosen
    return (
        _of_kinds(names, None, safe)
        or [name for name in names if name.startswith(_ORBAX)]
        or (_of_kinds(names, only, safe) if only else [])
        or _of_kinds(names, None, pickled)
        or (_of_kinds(names, only, pickled) if only else [])
    )


def variants_of(names: Iterable[str]) -> set[str]:
    """The variants of a component's weights, such as "fp16". The plain files are not counted."""
    return {found[1] for name in names if (found := _VARIANT.fullmatch(name))}


def _of_kinds(names: list[str], variant: str | None, kinds: Iterable[tuple[str, tuple[str, ...]]]) -> list[str]:
    suffix = f".{variant}" if variant else ""
    for extension, stems in kinds:
        for stem in stems:
            if (whole := f"{stem}{suffix}.{extension}") in names:
                return [whole]
            if (index := f"{stem}.{extension}.index{suffix}.json") in names:
                # The variant's name is before or after the shard's number.
                shard = re.compile(
                    rf"{stem}{re.escape(suffix)}-\d+-of-\d+\.{extension}|{stem}-\d+-of-\d+{re.escape(suffix)}\.{extension}"
                )
                return [index, *(name for name in names if shard.fullmatch(name))]
    return []


def _in_a_component(name: str) -> bool:
    folder, _, rest = name.rpartition("/")
    return folder in ("", *COMPONENTS) and bool(rest)


def _is_description(file: str) -> bool:
    return (file.endswith(_DESCRIPTIONS) and ".index." not in file) or file.startswith(("README", "LICENSE"))
