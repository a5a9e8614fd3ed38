"""The program and the array shardings of a run, without arrays. Training runs the program, preflight compiles it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from xpsr_jax import sharding
from xpsr_jax.config import Config
from xpsr_jax.data.examples import tokenize_caption
from xpsr_jax.data.tokens import MAX_TOKENS
from xpsr_jax.errors import UserError
from xpsr_jax.evaluation.perceptual import Dists, load_distance
from xpsr_jax.training.export import tokenizer_of
from xpsr_jax.training.few_step import make_few_step
from xpsr_jax.training.few_step_losses import FewStepConstants
from xpsr_jax.training.losses import Distances
from xpsr_jax.training.state import TrainState, abstract_state, make_optimizer
from xpsr_jax.training.step import Step, make_step
from xpsr_jax.training.structure import Structure, make_structure

Shapes = dict[str, jax.ShapeDtypeStruct]


@dataclass(frozen=True)
class Plan:
    """A run on a mesh, without arrays.

    Attributes:
      structure: the run's networks.
      optimizer: the optimizer of the trained parameters.
      shardings: the sharding of every parameter, by path.
      state: shapes, types and shardings of the state that a step changes.
      frozen: shapes, types and shardings of the frozen parameters, by path.
      batch: shapes, types and shardings of the arrays of a batch that a step receives, by name.
      step: the jitted training step. Its arguments are a state, the frozen parameters, `loss_constants` and a batch.
    """

    structure: Structure
    optimizer: optax.GradientTransformation
    shardings: dict[str, NamedSharding]
    state: TrainState
    frozen: Shapes
    batch: Shapes
    step: Step


def make_plan(config: Config, mesh: sharding.AnyMesh) -> Plan:
    """The plan of a run on these devices. Nothing is allocated, and the devices need not exist.

    Raises UserError for a config that cannot be trained on this mesh.
    """
    parts = mesh.size * config.accumulation
    if config.batch_size % parts:
        raise UserError(
            f"batch_size={config.batch_size} must be a multiple of {parts}: "
            f"{mesh.size} devices x accumulation={config.accumulation}"
        )
    structure = make_structure(config)
    optimizer = make_optimizer(config, structure.trained)
    shapes = structure.shapes()
    shardings = sharding.parameter_shardings(shapes, mesh, replicated_bytes=config.mesh.replicated_bytes)
    state = abstract_state(config, structure, optimizer, shardings)
    frozen = {
        path: jax.ShapeDtypeStruct(shapes[path].shape, config.precision.frozen_dtype, sharding=shardings[path])
        for path in structure.frozen
    }
    split = sharding.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct((config.batch_size, *each.shape), each.dtype, sharding=split)
        for name, each in example_shapes(config, structure).items()
    }
    make = make_few_step if config.stage == "few_step" else make_step
    step = make(config, structure, optimizer, state, mesh)
    return Plan(structure, optimizer, shardings, state, frozen, batch, step)


def example_shapes(config: Config, structure: Structure) -> Shapes:
    """The arrays of one example that the training step receives: all that `make_pipeline` gives, except `index`."""
    data, sides = config.data, 2 * (config.data.crop_size,)
    image = jax.ShapeDtypeStruct((*sides, 3), jnp.float32)
    shapes = {"hr": image, "key": jax.ShapeDtypeStruct((), jnp.uint32)}
    if not data.degrade:
        return shapes
    if data.embeddings is None:
        name, text = "ids", jax.ShapeDtypeStruct((MAX_TOKENS,), jnp.int32)
    else:
        channels = structure.networks.text_encoder.hidden_size
        name, text = "embedding", jax.ShapeDtypeStruct((MAX_TOKENS, channels), jnp.float32)
    if "first_stage" in structure.sources:
        small = (side // data.degradation.upscale for side in sides)
        shapes |= {
            "small": jax.ShapeDtypeStruct((*small, 3), jnp.float32),
            "clean": jax.ShapeDtypeStruct((), jnp.bool_),
        }
    return shapes | {"lr": image, f"high_{name}": text, f"low_{name}": text}


def loss_constants(config: Config) -> Distances | FewStepConstants | None:
    """The constants of a stage's loss: perceptual distances and, in few-step training, the negative prompt's tokens.

    None if the loss has no perceptual distance. Raises UserError if the weights of a distance are missing.
    """
    if config.stage == "xpsr":
        return None
    distances = Distances(load_distance(config.loss.metric), Dists.load() if config.loss.dists else None)
    if config.stage != "few_step":
        return distances
    ids = tokenize_caption(config.few_step.negative, tokenizer_of(config.networks))
    return FewStepConstants(distances, jnp.asarray(ids))
