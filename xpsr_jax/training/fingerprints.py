"""Fingerprints of a run's base model: a SHA-256 of each network, independent of the base's file format."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from xpsr_jax import distributed
from xpsr_jax.config import Config
from xpsr_jax.data.embeddings import TextEmbeddings
from xpsr_jax.errors import UserError
from xpsr_jax.training.structure import Structure
from xpsr_jax.weights.networks import ALL_NETWORKS, FIRST_STAGE, AnyConfig, Network, checked, open_folder
from xpsr_jax.weights.tensors import Tensor, contiguous

# Settings that older fingerprints did not include. They are hashed only if they differ from their defaults.
_NEWER_SETTINGS = frozenset({"mid_block_add_attention"})


class Fingerprint:
    """The SHA-256 of one network: of its configuration and of all its tensors, in the order of their paths.

    Args:
      config: the network's configuration.
    """

    def __init__(self, config: AnyConfig):
        default = {field.name: field.default for field in dataclasses.fields(config)}
        settings = {
            name: value
            for name, value in dataclasses.asdict(config).items()
            if name not in _NEWER_SETTINGS or value != default[name]
        }
        self._digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())

    def taken(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors, sorted. Reading a tensor hashes it, so the caller must read each one once, in order."""
        return {
            path: dataclasses.replace(tensor, read=functools.partial(self._read, path, tensor))
            for path, tensor in sorted(tensors.items())
        }

    def _read(self, path: str, tensor: Tensor) -> np.ndarray:
        array = contiguous(tensor.read())
        self._digest.update(f"{path} {array.dtype.name} {array.shape}".encode())
        self._digest.update(array.reshape(-1).view(np.uint8).data)
        return array

    def hexdigest(self) -> str:
        """64 hexadecimal digits, once every tensor has been read."""
        return self._digest.hexdigest()


def fingerprint(network: Network, folder: Path) -> str:
    """The fingerprint of one network in its folder. Reads all its tensors."""
    config, tensors = checked(network, open_folder(network, folder))
    digest = Fingerprint(config)
    for tensor in digest.taken(tensors).values():
        tensor.read()
    return digest.hexdigest()


def fingerprints(structure: Structure) -> dict[str, str]:
    """The fingerprint of each network of the base model; "" for a network that it does not have."""
    found = {name: fingerprint(ALL_NETWORKS[name], folder) for name, folder in structure.sources.items()}
    return dict.fromkeys(ALL_NETWORKS, "") | found | stored_first_stage(structure)


def stored_first_stage(structure: Structure) -> dict[str, str]:
    """The fingerprint of a first stage whose pictures are stored. Training itself does not load it."""
    if structure.first_stage is None or "first_stage" in structure.sources:
        return {}
    return {"first_stage": fingerprint(FIRST_STAGE, structure.first_stage)}


def from_first_process(found: Mapping[str, str]) -> dict[str, str]:
    """The first process's fingerprints, in every process. The other processes may pass an empty mapping."""
    texts = "".join(found.get(name, "").ljust(64) for name in ALL_NETWORKS)
    texts = distributed.from_first(np.frombuffer(texts.encode(), np.uint8)).tobytes().decode()
    return {name: texts[64 * i : 64 * (i + 1)].strip() for i, name in enumerate(ALL_NETWORKS)}


def check_embeddings(config: Config, structure: Structure, fingerprints: Mapping[str, str]) -> None:
    """Raises UserError if `data.embeddings` were made by another text encoder, or if the text encoder is trained.

    Args:
      fingerprints: those of the networks that the run starts from (`fingerprints`).
    """
    if config.data.embeddings is None:
        return
    if any(path.startswith("text_encoder.") for path in structure.trained):
        raise UserError(
            "data.embeddings need a text encoder that does not change, but --trained names it; leave out one of the two"
        )
    if TextEmbeddings(config.data.embeddings).text_encoder != fingerprints["text_encoder"]:
        raise UserError(
            f"the embeddings {config.data.embeddings} were not made by this base's text encoder. Make them with "
            "xpsr prepare embeddings --model BASE"
        )
