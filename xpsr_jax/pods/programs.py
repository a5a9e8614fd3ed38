"""The jitted programs of a run, with the shapes of their arguments. They need no weights and no real devices."""

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from xpsr_jax import sharding
from xpsr_jax.config import Config, Networks
from xpsr_jax.data.tokens import MAX_TOKENS
from xpsr_jax.diffusion.guidance import is_guided
from xpsr_jax.diffusion.making import make_sampler
from xpsr_jax.errors import UserError
from xpsr_jax.inference.first_stage import run_first_stage
from xpsr_jax.inference.plan import Scales, first_step, full_table
from xpsr_jax.inference.programs import Form, Inputs, prepare_pictures, prepare_texts, run_steps
from xpsr_jax.models.configs import Kernel
from xpsr_jax.models.layers import Compute
from xpsr_jax.training.few_step import Role, make_few_step
from xpsr_jax.training.plan import Plan, loss_constants, make_plan
from xpsr_jax.training.structure import find_first_stage, make_structure
from xpsr_jax.weights import hub
from xpsr_jax.weights.networks import FIRST_STAGE, NETWORKS, abstract, read_config


class Program(NamedTuple):
    """A jitted function, the shapes, types and shardings of its arguments, and the mesh in which it is traced."""

    function: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    mesh: sharding.AnyMesh | None = None

    def lower(self) -> jax.stages.Lowered:
        """The program in StableHLO, for the devices of its shardings."""
        with self._within():
            lowered: jax.stages.Lowered = self.function.lower(*self.arguments, **self.options)
            return lowered

    def export(self, platform: str) -> jax.export.Exported:
        """Lowers it for a platform. The platform's devices need not exist."""
        with self._within():
            return jax.export.export(self.function, platforms=[platform])(*self.arguments, **self.options)

    def _within(self) -> contextlib.AbstractContextManager[object]:
        return sharding.gathering_kernels(self.mesh) if self.mesh else contextlib.nullcontext()


def without_files(config: Config, *, attention: Kernel) -> Config:
    """The config with networks that need no files, and with this attention kernel ("auto" depends on real devices).

    Configurations are read from the folders of `networks.base` that exist or are on the hub; others are ignored.
    """
    base = tuple(folder for folder in config.networks.base if _is_there(folder))
    networks = dataclasses.replace(config.networks, base=base, from_scratch=tuple(NETWORKS))
    precision = dataclasses.replace(config.precision, attention=attention)
    return dataclasses.replace(config, networks=networks, precision=precision)


def _is_there(folder: Path) -> bool:
    try:
        return hub.local(folder).is_dir()
    except UserError:
        return False


def train_step(config: Config, mesh: sharding.AnyMesh) -> Program:
    """The step of `training.loop.train`, from the same plan, with the same shardings, donation and accumulation.

    Raises UserError for a config that cannot be trained on this mesh.
    """
    plan = make_plan(config, mesh)
    return Program(plan.step, _training_arguments(plan, config, mesh), {})


def turns(config: Config, mesh: sharding.AnyMesh) -> dict[str, Program]:
    """The turns of a few-step training with a critic, "student" and "critic", as programs of their own.

    `train_step` has both and runs one of them. Together they take more memory to compile than many machines have.
    """
    plan = make_plan(config, mesh)
    arguments = _training_arguments(plan, config, mesh)
    make = functools.partial(make_few_step, config, plan.structure, plan.optimizer, plan.state, mesh)
    roles: tuple[Role, ...] = ("student", "critic")
    return {role: Program(make(only=role), arguments, {}) for role in roles}


def _training_arguments(plan: Plan, config: Config, mesh: sharding.AnyMesh) -> tuple[Any, ...]:
    """The arguments of a training step: state, frozen parameters, constants of the loss, batch."""
    constants = _placed(loss_constants(config), sharding.replicated(mesh))
    return plan.state, plan.frozen, constants, plan.batch


def sampling_step(config: Config, mesh: sharding.AnyMesh) -> Program:
    """The program of `inference.restore.Restorer` that runs sampling steps, for config.batch_size images at once.

    The number of steps is an input, so the compiler's counts are for one step. Weights are in the compute dtype. As in
    `xpsr restore`, every chip has all of them.

    Raises UserError if the batch cannot be divided among the chips.
    """
    if config.batch_size % mesh.size:
        raise UserError(f"batch_size={config.batch_size} must be a multiple of the {mesh.size} chips")
    if not config.sampling.steps:
        raise UserError("sampling.steps=0 has no sampling step to compile; set 1 or more")
    sampling, networks, dtype = config.sampling, make_structure(config).networks, jnp.dtype(config.precision.dtype)
    compute = Compute(dtype=dtype, param_dtype=dtype, attention=config.precision.attention)
    graph, weights = nnx.split(_networks(networks, compute))
    everywhere, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)

    size, guided = config.data.crop_size, is_guided(sampling.guidance_scale, sampling.guidance_form)
    images = config.batch_size
    pixels = jax.ShapeDtypeStruct((images, size, size, 3), jnp.uint8)
    high = jax.ShapeDtypeStruct((images, 1 + guided, MAX_TOKENS), jnp.int32)
    low = jax.ShapeDtypeStruct((images, 1 + (guided and sampling.negative_low is not None), MAX_TOKENS), jnp.int32)
    digests, seed = jax.ShapeDtypeStruct((images, 2), jnp.uint32), jax.ShapeDtypeStruct((2,), jnp.uint32)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    texts = jax.eval_shape(functools.partial(prepare_texts, graph), weights, high, low)
    pictures = jax.eval_shape(
        functools.partial(prepare_pictures, graph, sampling.start),
        *(weights, pixels, digests, seed, (number, number), (number, number)),
    )
    sampler = make_sampler(sampling, networks.schedule)
    state = jax.eval_shape(sampler.init, pictures.start)
    index = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    inputs = Inputs(
        _placed(weights, everywhere),
        _placed(texts, split),
        _placed(pictures, split),
        _placed(full_table(sampler, sampling.steps, first_step(sampling)), everywhere),
        Scales(*3 * (_placed(number, everywhere),)),
    )
    form = Form(graph, sampling.guidance_form if guided else None)
    return Program(run_steps, (form, sampler, inputs, _placed(state, split), index, index), {}, mesh)


def first_stage(config: Config, mesh: sharding.AnyMesh) -> Program | None:
    """The program of `inference.first_stage.FirstStage` for config.batch_size LR images; None without a first stage."""
    folder = find_first_stage(config)
    if folder is None:
        return None
    network, dtype = read_config(FIRST_STAGE, folder), jnp.dtype(config.precision.dtype)
    graph, weights = nnx.split(abstract(FIRST_STAGE, network, compute=Compute(dtype=dtype, param_dtype=dtype)))
    size = config.data.crop_size // network.scale
    pixels = jax.ShapeDtypeStruct((config.batch_size, size, size, 3), jnp.uint8, sharding=sharding.batch_sharding(mesh))
    return Program(run_first_stage, (graph, _placed(weights, sharding.replicated(mesh)), pixels), {}, mesh)


def _networks(networks: Networks, compute: Compute) -> tuple[Any, ...]:
    """The networks of a `Restorer`, without arrays."""
    names = ("unet", "controlnet", "autoencoder", "text_encoder")
    return tuple(abstract(NETWORKS[name], getattr(networks, name), compute=compute) for name in names)


def _placed(tree: Any, where: jax.sharding.NamedSharding) -> Any:
    """The shapes of a tree's leaves with a sharding. Scalars cannot be split, so they are replicated."""
    everywhere = jax.sharding.NamedSharding(where.mesh, PartitionSpec())
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            jnp.shape(leaf), leaf.dtype, sharding=where if jnp.ndim(leaf) else everywhere
        ),
        tree,
    )
