"""The settings to sample with that a model folder carries in its model_index.json. Nothing here imports JAX."""

import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xpsr_jax.config import PAPER, Sampling
from xpsr_jax.errors import UserError
from xpsr_jax.json_files import read_json

INDEX = "model_index.json"


def load_defaults(folders: Sequence[Path]) -> tuple[Sampling, str]:
    """Sampling settings and note of the last folder whose model_index.json has them; else the preset "paper", no note.

    Raises UserError for settings that do not exist, or have values that they cannot have.
    """
    for file in [folder / INDEX for folder in reversed(folders)]:
        block = read_json(file).get("xpsr_jax") if file.exists() else None
        if block is None:
            continue
        settings = block.get("sampling", {})
        hints = typing.get_type_hints(Sampling)
        if unknown := settings.keys() - hints.keys():
            raise UserError(f"{file}: no sampling settings {', '.join(sorted(unknown))}; known: {', '.join(hints)}")
        if wrong := [f"{name}={value!r}" for name, value in settings.items() if not _fits(value, hints[name])]:
            raise UserError(f"{file}: sampling settings cannot be {', '.join(wrong)}")
        # JSON has lists for tuples.
        settings = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
        try:
            return Sampling(**settings), str(block.get("note", ""))
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
    return PAPER, ""


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is one of a simple type, a Literal, a tuple of fixed length or a union of them."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        kinds = typing.get_args(hint)
        return isinstance(value, list) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    return isinstance(value, (int, float) if hint is float else hint) and (hint is bool or not isinstance(value, bool))
