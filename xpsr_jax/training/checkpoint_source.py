"""A run's checkpoint as a source of weights: trained parameters from it, all others from the base, checked by hash."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from xpsr_jax.buckets.cache import local_folder
from xpsr_jax.buckets.paths import BucketPath
from xpsr_jax.errors import UserError
from xpsr_jax.files import without_patterns
from xpsr_jax.json_files import read_json
from xpsr_jax.training import resume
from xpsr_jax.training.adapters import exported
from xpsr_jax.training.checkpoints import CONFIG, STATE, complete_steps
from xpsr_jax.training.export import scale_latents, tokenizer_folder
from xpsr_jax.training.fingerprints import fingerprints
from xpsr_jax.training.images import open_images
from xpsr_jax.training.parameters import load_parameters, random_parameters
from xpsr_jax.training.run_card import run_card
from xpsr_jax.training.structure import COMPONENTS, Bundle, Structure, make_structure
from xpsr_jax.weights import hub
from xpsr_jax.weights.networks import FIRST_STAGE, NETWORKS, Weights, as_weights, open_folder
from xpsr_jax.weights.sources import Source


def open_checkpoint(path: Path, *, bases: Sequence[Path] = (), average: bool = True) -> Source:
    """The model that a run would export at a checkpoint.

    Args:
      path: a checkpoint, a folder of checkpoints, or a run's folder. In a folder the newest checkpoint is used.
      bases: folders of the base model, used if it is no longer where it was when the run began.
      average: use the moving average of the trained parameters if the run has one; False: the parameters themselves.

    Raises:
      UserError: the checkpoint is damaged, or its base is missing or has changed.
    """
    step = _newest(path)
    if isinstance(step, BucketPath) and step.scheme == "s3":
        step = local_folder(step)  # Orbax cannot read from s3://.
    record = _record(step)
    resume.check_schema(record, step)
    config = resume.config_of(record)
    if gone := [base for base in config.networks.base if not (base.is_dir() or hub.hub_name(base))]:
        folders = tuple(base for base in bases if base.is_dir() or hub.hub_name(base))
        if not folders:
            raise UserError(
                f"{step} was trained on the base model {', '.join(map(str, gone))}, which does not exist; name the "
                "base's folder before the checkpoint"
            )
        config = dataclasses.replace(config, networks=dataclasses.replace(config.networks, base=folders))
    photographs = record.get("photographs")
    card = run_card(
        config,
        photographs=photographs if isinstance(photographs, int) else 0,
        step=int(step.name) if step.name.isdecimal() else 0,
        run=step.parent.parent,
    )
    structure = make_structure(config)
    _check_base(step, record.get("base"), structure)

    @functools.cache
    def bundle() -> Bundle:
        trained = _trained(step, average=average)
        if absent := exported(structure.trained) - trained.keys():
            raise UserError(f"{step} lacks trained parameters, such as {min(absent)}; use another checkpoint")
        frozen = exported(structure.frozen)
        loaded = load_parameters(structure, frozen)
        # Frozen parameters that are not in the base exist only in training's frozen type, so they are rounded to it.
        dtype = jnp.dtype(config.precision.frozen_dtype)
        rest = random_parameters(structure, frozen - loaded.keys(), config.seed)
        rounded = {name: array.astype(dtype).astype(np.float32) for name, array in rest.items()}
        merged = structure.merge(trained, loaded, rounded)
        if config.stage == "autoencoder":
            scale_latents(merged, config, structure, open_images(config.images))
        return merged

    def opened(name: str) -> Weights:
        return as_weights(NETWORKS[name], getattr(bundle(), name), where=step)

    networks: dict[str, Callable[[], Weights]] = {
        name: functools.partial(opened, name) for name in COMPONENTS[config.stage]
    }
    if structure.first_stage is not None:
        networks["first_stage"] = functools.partial(open_folder, FIRST_STAGE, structure.first_stage)
    if config.stage == "autoencoder":
        return Source(dict.fromkeys(networks, step), networks, reads_base=True, card=card)
    return Source(
        origins=dict.fromkeys([*networks, "tokenizer", "schedule"], step),
        networks=networks,
        tokenizer=tokenizer_folder(config.networks),
        schedule=structure.networks.schedule,
        settings=(config.sampling, config.note),
        reads_base=True,
        card=card,
    )


def _newest(path: Path) -> Path:
    if (path / "state").is_dir():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if not (steps := complete_steps(folder)):
        raise UserError(f"{folder} has no complete checkpoint; name the folder of a run that has saved one")
    return folder / str(steps[-1])


def _record(step: Path) -> dict[str, Any]:
    try:
        return read_json(step / CONFIG / "metadata")
    except UserError as error:
        raise UserError(f"{step} is damaged: its settings cannot be read ({error})") from error


def _check_base(step: Path, known: dict[str, str] | None, structure: Structure) -> None:
    """Raises UserError unless each network of the base is the one that the run started from."""
    if known is None:
        raise UserError(f"{step} does not record its base model; resume its run once, or train it again")
    for name, now in fingerprints(structure).items():
        if known.get(name, "") != now:
            where = structure.sources.get(name, "none")
            raise UserError(
                f"{step} was trained on another {name} than the base model has now ({where}; SHA-256 "
                f"{known.get(name, '')[:12] or 'none'} then, {now[:12] or 'none'} now); name the old base before the "
                "checkpoint"
            )


def _trained(step: Path, *, average: bool) -> dict[str, np.ndarray]:
    """The trained parameters, or their average if it exists and is wanted. The optimizer's state is not read."""
    try:
        with (
            without_patterns(step / STATE) as folder,
            ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer,
        ):
            tree = checkpointer.metadata(folder).item_metadata.tree
            name = "average" if average and tree.get("average") else "trained"
            wanted = {name: dict.fromkeys(tree[name], 0)}
            kinds = {name: dict.fromkeys(tree[name], ocp.RestoreArgs(restore_type=np.ndarray))}
            arguments = ocp.args.PyTreeRestore(item=wanted, restore_args=kinds, partial_restore=True)
            arrays: dict[str, np.ndarray] = checkpointer.restore(folder, args=arguments)[name]
            return arrays
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:300]
        raise UserError(f"{step} cannot be read; it is damaged or incomplete ({reason})") from error
