"""One optimizer step, jitted once over the mesh."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from xpsr_jax import sharding
from xpsr_jax.config import Config
from xpsr_jax.diffusion.making import make_sampler
from xpsr_jax.models.parameters import with_parameters
from xpsr_jax.training.adapters import CRITIC
from xpsr_jax.training.first_stage import with_first_stage
from xpsr_jax.training.losses import Distances, Terms, autoencoder_loss, decoder_loss, xpsr_loss
from xpsr_jax.training.parameters import Parameters
from xpsr_jax.training.state import TrainState, shardings_of
from xpsr_jax.training.structure import Structure, abstract_critic

T = TypeVar("T")
# state, frozen parameters, perceptual distances (if the loss uses them), batch -> state, terms of the loss
Step = Callable[[TrainState, Parameters, Distances | None, Mapping[str, Array]], tuple[TrainState, Terms]]


def make_step(
    config: Config,
    structure: Structure,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    mesh: sharding.AnyMesh,
) -> Step:
    """The training step. It donates its input state and returns a new state with the shardings of `abstract`.

    It also returns terms, which are means over the batch. They include "loss" and "gradient_norm" (before clipping).
    If one of these two is NaN or infinite, this step and all later steps leave the state unchanged (`unless_failed`).
    """

    def loss(
        trained: Parameters, frozen: Parameters, distances: Distances | None, batch: Mapping[str, Array]
    ) -> tuple[Array, Terms]:
        networks = structure.merge(trained, frozen)
        batch = with_first_stage(networks, batch)
        if config.stage == "autoencoder":
            assert distances is not None
            critic = None
            if config.loss.adversarial:
                own = {path.removeprefix(CRITIC): trained[path] for path in structure.extra}
                critic = with_parameters(abstract_critic(config), own)
            return autoencoder_loss(
                networks, batch, distances=distances, loss=config.loss, seed=config.seed, critic=critic
            )
        schedule = structure.networks.schedule
        if config.stage == "decoder":
            assert distances is not None
            return decoder_loss(
                networks,
                batch,
                sampler=make_sampler(config.sampling, schedule),
                steps=config.sampling.steps,
                distances=distances,
                loss=config.loss,
                seed=config.seed,
            )
        return xpsr_loss(networks, batch, schedule=schedule, loss=config.loss, seed=config.seed)

    places, split = shardings_of(abstract), sharding.batch_sharding(mesh)

    @functools.partial(
        jax.jit,
        donate_argnums=0,
        in_shardings=(places, None, None, split),
        out_shardings=(places, sharding.replicated(mesh)),
    )
    def step(
        state: TrainState, frozen: Parameters, distances: Distances | None, batch: Mapping[str, Array]
    ) -> tuple[TrainState, Terms]:
        def one(batch: Mapping[str, Array]) -> tuple[Parameters, Terms]:
            differentiated = jax.value_and_grad(loss, has_aux=True)
            with sharding.gathering_kernels(mesh):
                (value, terms), gradients = differentiated(state.trained, frozen, distances, batch)
            # Gradients have the shardings of their parameters, even while they are accumulated.
            return jax.lax.with_sharding_constraint(gradients, places.trained), {"loss": value} | terms

        gradients, terms = accumulate(one, batch, config.accumulation, split)
        terms["gradient_norm"] = optax.tree.norm(gradients)
        after = apply_gradients(state, gradients, optimizer, ema=config.optimizer.ema)
        return unless_failed(state, after, jnp.isfinite(terms["loss"] + terms["gradient_norm"])), terms

    return step


def unless_failed(before: TrainState, after: TrainState, good: Array) -> TrainState:
    """`after` if the step was good. Otherwise `before`, with `step` complemented (~) to mark the failure.

    A marked state is not changed by later steps. The host learns of a failure one step late, and the state from before
    the failed step is then still available.
    """
    going = before.step >= 0
    state: TrainState = jax.tree.map(lambda old, new: jnp.where(going & good, new, old), before, after)
    return dataclasses.replace(state, step=jnp.where(going & ~good, ~before.step, state.step))


def apply_gradients(
    state: TrainState, gradients: Parameters, optimizer: optax.GradientTransformation, *, ema: float | None
) -> TrainState:
    """The state after an optimizer step.

    Args:
      gradients: by path, for all or some of `state.trained`. Parameters without a gradient are unchanged.
      ema: decay of the moving average. Early steps use (1 + step) / (10 + step) if that is less. None: no average.
    """
    before = {path: state.trained[path] for path in gradients}
    updates, moments = optimizer.update(gradients, state.optimizer, before)
    trained = state.trained | optax.apply_updates(before, updates)
    average = None
    if ema is not None and state.average is not None:
        step = state.step.astype(jnp.float32)
        keep = jnp.minimum(ema, (1 + step) / (10 + step))
        average = {path: keep * old + (1 - keep) * trained[path] for path, old in state.average.items()}
    return TrainState(state.step + 1, trained, moments, average)


def accumulate(
    one: Callable[[Mapping[str, Array]], T],
    batch: Mapping[str, Array],
    microbatches: int,
    split: jax.sharding.NamedSharding,
) -> T:
    """The mean of `one` over equal parts of the batch. The parts are computed in sequence, each on all devices.

    Args:
      one: a function from a part of the batch to a tree of arrays.
      batch: arrays whose first axis is a multiple of `microbatches`.
      split: sharding of a part's first axis.
    """
    if microbatches == 1:
        return one(batch)
    # Sample i goes to part i mod n. Every part then has an equal share on each device, and no data move.
    parts = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(total: T, part: Mapping[str, Array]) -> tuple[T, None]:
        part = jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, split), part)
        return jax.tree.map(jnp.add, total, one(part)), None

    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts))
    total, _ = jax.lax.scan(add, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), parts)
    mean: T = jax.tree.map(lambda x: x / microbatches, total)
    return mean
