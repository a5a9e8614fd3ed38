"""Reads the sampling settings in the model_index.json of a model folder. Nothing here imports JAX."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xpsr_jax.buckets.paths import as_path
from xpsr_jax.config import PAPER, Sampling
from xpsr_jax.json_files import read_json
from xpsr_jax.serialisation import from_json

INDEX = "model_index.json"


@dataclass(frozen=True)
class _Block:
    """The content of the key "xpsr_jax" in model_index.json."""

    sampling: Sampling = PAPER
    note: str = ""


def load_defaults(folders: Sequence[Path]) -> tuple[Sampling, str]:
    """The sampling settings and the note of the last folder whose model_index.json has them.

    Without any, the preset "paper" and no note. Raises UserError for unknown settings and invalid values.
    """
    for file in [as_path(folder) / INDEX for folder in reversed(folders)]:
        block = read_json(file).get("xpsr_jax") if file.exists() else None
        if block is not None:
            found = from_json(_Block, block, f"{file}: xpsr_jax")
            return found.sampling, found.note
    return PAPER, ""
