"""One step of few-step training. It trains the student or its critic; both are one jitted program over the mesh."""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from xpsr_jax import sharding
from xpsr_jax.config import Config
from xpsr_jax.models.parameters import with_parameters
from xpsr_jax.training.adapters import CRITIC, with_adapters, with_teacher
from xpsr_jax.training.few_step_losses import FewStepConstants, Judges, Teacher, critic_loss, student_loss
from xpsr_jax.training.first_stage import with_first_stage
from xpsr_jax.training.losses import Terms
from xpsr_jax.training.parameters import Parameters
from xpsr_jax.training.state import TrainState, shardings_of
from xpsr_jax.training.step import Step, accumulate, apply_gradients, unless_failed
from xpsr_jax.training.structure import Structure, abstract_discriminator, abstract_teacher

Role = Literal["student", "critic"]
_CRITIC_TERMS = ("critic",)


def make_few_step(
    config: Config,
    structure: Structure,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    mesh: sharding.AnyMesh,
    *,
    only: Role | None = None,
) -> Step:
    """The training step of the stage "few_step". Its arguments and results are those of `step.make_step`.

    With `only`, every step trains this one. It has the same arguments, and is about half of the program.

    The student trains once after every `few_step.critic_steps` steps of the critic; without a critic
    (`few_step.realism="none"`), in every step. The student's terms are 0 in the critic's steps, and the other way
    round. Terms are scaled up to make up for these zeros: a mean over whole cycles equals the mean over the steps that
    computed the term.
    """
    schedule, settings = structure.networks.schedule, config.few_step
    cycle = settings.cycle
    if not settings.has_critic:
        only = "student"
    student_terms = (
        *("l1", "perceptual", "constraint"),
        *(["dists"] if config.loss.dists else []),
        *(["realism"] if settings.has_critic else []),
    )
    networks, abstract_unet = structure.networks, structure.abstract.unet
    abstract_controlnet = abstract_teacher(config, networks)
    abstract_heads = abstract_discriminator(config, networks)

    def judges(values: Parameters) -> Judges:
        before = with_teacher(values)
        controlnet = with_parameters(abstract_controlnet, _below(before, "controlnet."))
        teacher = Teacher(with_parameters(abstract_unet, _below(before, "unet.")), controlnet)
        if settings.realism == "adversarial":
            return Judges(teacher, with_parameters(abstract_heads, _below(values, CRITIC)))
        own = _below(with_adapters(before, CRITIC), "unet.")
        return Judges(teacher, Teacher(with_parameters(abstract_unet, own), controlnet))

    places, split = shardings_of(abstract), sharding.batch_sharding(mesh)
    paths = {
        role: sorted(path for path in structure.trained if path.startswith(CRITIC) == (role == "critic"))
        for role in ("student", "critic")
    }

    def turn(
        role: Role, state: TrainState, frozen: Parameters, constants: FewStepConstants, batch: Mapping[str, Array]
    ) -> tuple[TrainState, Terms]:
        def loss(trained: Parameters, batch: Mapping[str, Array]) -> tuple[Array, Terms]:
            values = frozen | state.trained | trained
            student, ours = structure.merge(values), judges(values) if settings.has_critic else None
            batch = with_first_stage(student, batch)
            if role == "student":
                return student_loss(student, ours, batch, constants=constants, config=config, schedule=schedule)
            assert ours is not None
            return critic_loss(student, ours, batch, constants=constants, config=config, schedule=schedule)

        def one(batch: Mapping[str, Array]) -> tuple[Parameters, Terms]:
            trained = {path: state.trained[path] for path in paths[role]}
            with sharding.gathering_kernels(mesh):
                (value, terms), gradients = jax.value_and_grad(loss, has_aux=True)(trained, batch)
            gradients = jax.lax.with_sharding_constraint(gradients, {path: places.trained[path] for path in gradients})
            return gradients, {"loss": value} | terms

        gradients, terms = accumulate(one, batch, config.accumulation, split)
        terms["gradient_norm"] = optax.tree.norm(gradients)
        after = apply_gradients(state, gradients, optimizer, ema=config.optimizer.ema)
        return after, terms

    def padded(terms: Terms, own: tuple[str, ...], other: tuple[str, ...], share: float) -> Terms:
        return terms | {name: terms[name] * share for name in own} | dict.fromkeys(other, jnp.float32(0))

    @functools.partial(
        jax.jit,
        donate_argnums=0,
        in_shardings=(places, None, None, split),
        out_shardings=(places, sharding.replicated(mesh)),
    )
    def step(
        state: TrainState, frozen: Parameters, constants: Any, batch: Mapping[str, Array]
    ) -> tuple[TrainState, Terms]:
        def student() -> tuple[TrainState, Terms]:
            after, terms = turn("student", state, frozen, constants, batch)
            return after, padded(terms, student_terms, _CRITIC_TERMS if settings.has_critic else (), cycle)

        def critic() -> tuple[TrainState, Terms]:
            after, terms = turn("critic", state, frozen, constants, batch)
            return after, padded(terms, _CRITIC_TERMS, student_terms, cycle / settings.critic_steps)

        if only is None:
            after, terms = jax.lax.cond(state.step % cycle == cycle - 1, student, critic)
        else:
            after, terms = student() if only == "student" else critic()
        return unless_failed(state, after, jnp.isfinite(terms["loss"] + terms["gradient_norm"])), terms

    return step


def _below(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {path.removeprefix(prefix): value for path, value in values.items() if path.startswith(prefix)}
