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
# state, frozen parameters, the perceptual distances (where the loss has some), batch -> state, terms of the loss
Step = Callable[[TrainState, Parameters, Distances | None, Mapping[str, Array]], tuple[TrainState, Terms]]


def make_step(
    config: Config,
    structure: Structure,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    mesh: sharding.AnyMesh,
) -> Step:
    """The training step. It takes the state over (donates it) and gives one back that is placed as `abstract` is.

    Its terms are means over the batch, "loss" and "gradient_norm" (before clipping) among them. Where one of these two
    is NaN or infinite, the state stays as it was, and the step after it changes nothing either (`unless_failed`).
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
                own = {path.removeprefix(CRITIC): trained[path] for path in structure.beside}
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
            # Gradients live where their parameters do, accumulated ones too.
            return jax.lax.with_sharding_constraint(gradients, places.trained), {"loss": value} | terms

        gradients, terms = accumulate(one, batch, config.accumulation, split)
        terms["gradient_norm"] = optax.tree.norm(gradients)
        after = apply_gradients(state, gradients, optimizer, ema=config.optimizer.ema)
        return unless_failed(state, after, jnp.isfinite(terms["loss"] + terms["gradient_norm"])), terms

    return step


def unless_failed(before: TrainState, after: TrainState, good: Array) -> TrainState:
    """`after` if the step was good, otherwise `before`, also in all steps to come: its `step` is complemented (~).

    So the state that a bad step began from is still there when the host, which is a step behind, learns of it.
    """
    going = before.step >= 0
    state: TrainState = jax.tree.map(lambda old, new: jnp.where(going & good, new, old), before, after)
    return dataclasses.replace(state, step=jnp.where(going & ~good, ~before.step, state.step))


def apply_gradients(
    state: TrainState, gradients: Parameters, optimizer: optax.GradientTransformation, *, ema: float | None
) -> TrainState:
    """The state after an optimizer step.

    Args:
      gradients: by path, of all or some of `state.trained`; what has none stays as it is.
      ema: decay of the moving average; early on it is (1 + step) / (10 + step), if that is less. None: no average.
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
    """The mean of `one` over equal parts of the batch, computed one after the other, each spread over all devices.

    Args:
      one: takes a part of the batch and gives a tree of arrays.
      batch: arrays whose first axis is a multiple of `microbatches`.
      split: sharding of a part's first axis.
    """
    if microbatches == 1:
        return one(batch)
    # Sample i goes to part i mod n, so that every part takes its share from each device without moving it.
    parts = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(total: T, part: Mapping[str, Array]) -> tuple[T, None]:
        part = jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, split), part)
        return jax.tree.map(jnp.add, total, one(part)), None

    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts))
    total, _ = jax.lax.scan(add, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), parts)
    mean: T = jax.tree.map(lambda x: x / microbatches, total)
    return mean
