"""The state that a training step changes, its optimizer and its shardings."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import KeyPath
from jaxtyping import Array, Int

from xpsr_jax.config import Config, Optimizer
from xpsr_jax.training.adapters import CRITIC, exported
from xpsr_jax.training.parameters import Parameters
from xpsr_jax.training.structure import Structure, select


# JAX builds this class with whatever a mapped tree contains: shapes, shardings, paths or placeholders. So its fields
# cannot be type-checked.
@no_type_check
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The state of training. A step changes it, and a checkpoint stores it.

    Attributes:
      step: number of optimizer steps done; its complement (~) after a failed step.
      trained: the trained parameters by path, float32.
      optimizer: Optax's state.
      average: exponential moving average of those of `trained` that are exported; None: the run has no average.
    """

    step: Int[Array, ""]
    trained: Parameters
    optimizer: optax.OptState
    average: Parameters | None

    @property
    def before_failure(self) -> "TrainState":
        """The state before the failed step, computed from the state that this step returned."""
        complement = jax.jit(jnp.invert, out_shardings=self.step.sharding)
        return dataclasses.replace(self, step=complement(self.step))

    @property
    def result(self) -> Parameters:
        """The parameters to validate and to export: the average if there is one, otherwise the trained parameters."""
        return self.trained if self.average is None else self.average


def make_optimizer(config: Config, trained: Iterable[str]) -> optax.GradientTransformation:
    """AdamW on gradients that are clipped by their global norm (method §6).

    Its state has the same structure for every schedule.

    Args:
      trained: the paths of the trained parameters.

    Raises UserError for a pattern of `optimizer.decayed` that matches none of them.
    """
    settings = config.optimizer
    decayed = set(select(trained, settings.decayed))
    if config.stage == "few_step" and config.few_step.has_critic:
        # Student and critic each train in some of the steps only, but the schedule covers all steps.
        few_step = config.few_step
        rate = learning_rate(settings, config.steps)
        factor = few_step.critic_learning_rate / settings.learning_rate
        return in_turns(
            student=_adamw(settings, lambda turn: rate(turn * few_step.cycle), decayed),
            critic=_adamw(settings, lambda turn: factor * rate(turn * few_step.cycle / few_step.critic_steps), decayed),
        )
    return _adamw(settings, learning_rate(settings, config.steps), decayed)


def in_turns(
    *, student: optax.GradientTransformation, critic: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Two optimizers with one state. The paths of the gradients decide which of the two is used in an update."""
    optimizers = {"student": student, "critic": critic}

    def turn(parameters: Parameters) -> str:
        return "critic" if next(iter(parameters)).startswith(CRITIC) else "student"

    def init(parameters: Parameters) -> dict[str, Any]:
        return {
            name: each.init({path: value for path, value in parameters.items() if turn({path: value}) == name})
            for name, each in optimizers.items()
        }

    def update(gradients: Parameters, state: dict[str, Any], parameters: Parameters) -> tuple[Any, dict[str, Any]]:
        name = turn(gradients)
        updates, own = optimizers[name].update(gradients, state[name], parameters)
        return updates, state | {name: own}

    return optax.GradientTransformation(init, update)


def _adamw(settings: Optimizer, rate: optax.Schedule, decayed: set[str]) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(settings.clip),
        optax.adamw(
            rate,
            b1=settings.b1,
            b2=settings.b2,
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
            mask=lambda parameters: {path: path in decayed for path in parameters},
        ),
    )


def learning_rate(settings: Optimizer, steps: int) -> optax.Schedule:
    """The learning rate as a function of the number of steps done."""
    peak, warmup = settings.learning_rate, settings.warmup
    if settings.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(steps, warmup + 1), 0.02 * peak)
    return optax.warmup_constant_schedule(0.0, peak, warmup) if warmup else optax.constant_schedule(peak)


def abstract_state(
    config: Config,
    structure: Structure,
    optimizer: optax.GradientTransformation,
    shardings: Mapping[str, NamedSharding],
) -> TrainState:
    """Shapes, types and shardings of a run's state. Moments and averages have the shardings of their parameters.

    Args:
      shardings: the shardings of all parameters (`sharding.parameter_shardings`).
    """
    shapes = structure.shapes()
    trained = {path: shapes[path] for path in structure.trained}
    state = jax.eval_shape(lambda parameters: _start(config, optimizer, parameters), trained)
    everywhere = NamedSharding(next(iter(shardings.values())).mesh, PartitionSpec())

    def place(path: KeyPath, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        name = getattr(path[-1], "key", "")
        twin = name in trained and leaf.shape == trained[name].shape
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[name] if twin else everywhere)

    placed: TrainState = jax.tree_util.tree_map_with_path(place, state)
    return placed


def initial_state(
    config: Config, optimizer: optax.GradientTransformation, trained: Parameters, abstract: TrainState
) -> TrainState:
    """The state at step 0, with the shardings of `abstract`. Donates the parameters."""
    start = jax.jit(
        lambda parameters: _start(config, optimizer, parameters), donate_argnums=0, out_shardings=shardings_of(abstract)
    )
    state: TrainState = start(trained)
    return state


def shardings_of(tree: Any) -> Any:
    """The sharding of every leaf of a tree of arrays, or of shapes with shardings."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def _start(config: Config, optimizer: optax.GradientTransformation, trained: Parameters) -> TrainState:
    average = None if config.optimizer.ema is None else {path: jnp.copy(trained[path]) for path in exported(trained)}
    return TrainState(jnp.zeros((), jnp.int32), trained, optimizer.init(trained), average)
