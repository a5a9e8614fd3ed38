"""Merges LoRA into the weights of a model: W + strength * alpha / rank * up @ down (Hu et al., 2022)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from xpsr_jax.errors import UserError
from xpsr_jax.weights import rules
from xpsr_jax.weights.lora_files import Pair, read_lora
from xpsr_jax.weights.networks import NETWORKS, Network, Weights
from xpsr_jax.weights.sources import SUBFOLDERS, Source
from xpsr_jax.weights.tensors import Tensor, WeightsError, contiguous

# The changes of one weight: the matrices of each, and its strength.
Changes = list[tuple[Pair, float]]


def with_loras(source: Source, loras: Sequence[tuple[str | Path, float]]) -> Source:
    """Merges LoRA files into the UNet and the text encoder of a source. Each tensor keeps its type.

    Args:
      loras: each file and its strength.

    Raises:
      UserError: a file is not a LoRA, or changes a component that the source does not have.
      WeightsError: a file has modules that the network lacks, or with another shape. It lists all of them.
    """
    changes: dict[str, dict[Path, dict[str, Pair]]] = {}
    strengths: dict[Path, float] = {}
    done = []
    for path, strength in loras:
        lora = read_lora(path)
        strengths[lora.file] = strength
        for component, pairs in lora.modules.items():
            if component not in source.networks:
                raise UserError(
                    f"{lora.file} also changes the {component.replace('_', ' ')}: name a source that has "
                    f"{SUBFOLDERS[component]}/"
                )
            changes.setdefault(component, {})[lora.file] = dict(pairs)
        counts = ", ".join(f"{len(pairs)} weights of {SUBFOLDERS[name]}/" for name, pairs in lora.modules.items())
        done.append(f"LoRA {path}, strength {strength:g}: {counts}")
    networks = dict(source.networks)
    for component, files in changes.items():
        weights = source.networks[component]()
        merged = _merged(NETWORKS[component], weights, files, strengths)
        networks[component] = functools.partial(_itself, merged)
    also_read = (*source.also_read, *strengths)
    return dataclasses.replace(source, networks=networks, history=(*source.history, *done), also_read=also_read)


def _itself(weights: Weights) -> Weights:
    return weights


def _merged(
    network: Network, weights: Weights, files: Mapping[Path, Mapping[str, Pair]], strengths: Mapping[Path, float]
) -> Weights:
    tensors = dict(weights.tensors)
    keys = _by_module(tensors, network)
    changes: dict[str, Changes] = {}
    for file, pairs in files.items():
        problems = []
        for module, pair in pairs.items():
            if (key := keys.get(module)) is None:
                problems.append(f"unknown: {module}; the network has no such weight")
            elif not _fits(pair, tensors[key].shape):
                problems.append(
                    f"wrong shape: {module} is {pair.up.shape} by {pair.down.shape}, for {tensors[key].shape}"
                )
            else:
                changes.setdefault(key, []).append((pair, strengths[file]))
        if problems:
            hint = f"the LoRA is for another kind of {network.subfolder}"
            raise WeightsError(file, problems, hint)
    for key, each in changes.items():
        tensors[key] = dataclasses.replace(tensors[key], read=functools.partial(_changed, tensors[key], each))
    return Weights(weights.where, weights.config, tensors)


def _by_module(tensors: Mapping[str, Tensor], network: Network) -> dict[str, str]:
    """The key of each weight, by every name its module may have: dots or underscores, with or without a prefix."""
    found = {}
    for key in tensors:
        module, _, leaf = rules.current_key(key, network.names).rpartition(".")
        if leaf == "weight":
            for name in (module, module.removeprefix(network.names.prefix)):
                found[name] = found[name.replace(".", "_")] = key
    return found


def _fits(pair: Pair, shape: tuple[int, ...]) -> bool:
    """Whether up @ down has this shape. Linear layers and pointwise convolutions are interchangeable."""
    rank, up, down = pair.down.shape[0], pair.up.shape, pair.down.shape

    def same(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        return a in (b, (*b, 1, 1)) or (*a, 1, 1) == b

    return len(shape) > 1 and same(up, (shape[0], rank)) and same(down[1:], shape[1:])


def _changed(tensor: Tensor, changes: Changes) -> np.ndarray:
    weight = contiguous(tensor.read(), np.float32)
    total = np.zeros(weight.shape, np.float32)
    for pair, strength in changes:
        up, down = contiguous(pair.up.read(), np.float32), contiguous(pair.down.read(), np.float32)
        rank = down.shape[0]
        total += (strength * pair.scale) * (up.reshape(-1, rank) @ down.reshape(rank, -1)).reshape(weight.shape)
    return contiguous(weight + total, tensor.dtype)
