"""The losses of few-step training, for the student and its critic (docs/train/few-steps.md). Every loss is float32.

The student estimates the clean latents, from the start of sampling or from an earlier estimate with new noise. Two
terms compare its result with the photograph. The realism term keeps results like real pictures, in one of two ways:

- distribution matching (Yin et al., 2024: DMD; Wang et al., 2023: VSD). The gradient is the difference between the
  score of the student's results, which the critic learns, and the score of the guided teacher.
- adversarial. The critic learns to distinguish results from photographs.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from xpsr_jax.config import Config
from xpsr_jax.diffusion.guidance import guide, is_guided
from xpsr_jax.diffusion.process import (
    add_noise,
    clean_estimate,
    levels_at,
    prediction_target,
    steps_for,
    visited_timesteps,
)
from xpsr_jax.diffusion.samplers import normal
from xpsr_jax.diffusion.schedule import Schedule
from xpsr_jax.models.controlnet import ControlNet, ControlNetOutput, ImageFeatures
from xpsr_jax.models.unet import UNet
from xpsr_jax.training.discriminator import Discriminator, encoder_features
from xpsr_jax.training.losses import Distances, Terms, compare, degradation_free_constraint, text_embedding
from xpsr_jax.training.structure import Bundle

# The teacher is evaluated between these fractions of the schedule. At the ends its scores are not useful (DMD).
_SCORED = (0.02, 0.98)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FewStepConstants:
    """The inputs of a step in addition to parameters and batches.

    Attributes:
        distances: the perceptual distances.
        negative_ids: the tokens of the teacher's negative prompt.
    """

    distances: Distances
    negative_ids: Int[Array, "77"]


class Teacher(NamedTuple):
    """The frozen initial networks of the student. As the critic, their UNet has the critic's adapters."""

    unet: UNet
    controlnet: ControlNet


class Judges(NamedTuple):
    """The networks of the realism term. In the student's loss both are frozen.

    Attributes:
        teacher: always frozen.
        critic: gives the score of the student's results ("distribution"), or is the discriminator ("adversarial").
    """

    teacher: Teacher
    critic: Teacher | Discriminator


class Draws(NamedTuple):
    """The random numbers of a batch. Those of a sample depend only on the seed and the sample's key.

    Attributes:
        posterior: keys for the autoencoder's posterior.
        start, hop, score: standard normal noise: of the start, of noise added to an earlier estimate, and of the input
            of critic and teacher.
        timestep: the student's timestep; for about half of the samples the sampler's first.
        score_timestep: the timestep of critic and teacher.
        place: the position of the decoded part, from 0 to 1 of the possible range.
    """

    posterior: Array
    start: Float[Array, "b h w c"]
    hop: Float[Array, "b h w c"]
    score: Float[Array, "b h w c"]
    timestep: Int[Array, "b"]
    score_timestep: Int[Array, "b"]
    place: Float[Array, "b 2"]


class Estimate(NamedTuple):
    """The student's estimate of the clean latents, with its ControlNet's outputs."""

    latents: Float[Array, "b h w c"]
    control: ControlNetOutput
    features: ImageFeatures


class Texts(NamedTuple):
    """Embeddings of a batch's captions, and of the negative prompt (one for all)."""

    high: Float[Array, "b n d"]
    low: Float[Array, "b n d"]
    negative: Float[Array, "1 n d"]


def student_timesteps(
    schedule: Schedule, evaluations: tuple[int, ...], strength: float = 1.0
) -> tuple[int, tuple[int, ...]]:
    """The first timestep of a student's sampling, and all later timesteps for these numbers of evaluations.

    Args:
      strength: `Sampling.strength` of the student. Below 1, its evaluations are the last ones of more steps: one
        evaluation at strength 0.25 is the last of 4 steps.
    """
    trailing = dataclasses.replace(schedule, timestep_spacing="trailing")
    visited = [visited_timesteps(trailing, steps_for(count, strength)).tolist()[-count:] for count in evaluations]
    first = visited[0][0]
    return first, tuple(sorted({timestep for each in visited for timestep in each[1:]}, reverse=True))


def draw(
    keys: Array,
    shape: tuple[int, ...],
    *,
    seed: int,
    schedule: Schedule,
    evaluations: tuple[int, ...],
    strength: float = 1.0,
) -> Draws:
    """Draws the random numbers for samples with these keys (b,) and latents of this shape (h, w, c)."""
    root = jax.random.key(seed)
    each = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(root, key), 7))(keys).T
    first, later = student_timesteps(schedule, evaluations, strength)
    table = jnp.asarray((first,) * max(1, len(later)) + later, jnp.int32)
    count = schedule.num_train_timesteps
    low, high = (int(part * count) for part in _SCORED)
    return Draws(
        each[0],
        normal(each[1], shape),
        normal(each[2], shape),
        normal(each[3], shape),
        table[jax.vmap(lambda key: jax.random.randint(key, (), 0, len(table)))(each[4])],
        jax.vmap(lambda key: jax.random.randint(key, (), low, max(high, low + 1)))(each[5]),
        jax.vmap(lambda key: jax.random.uniform(key, (2,)))(each[6]),
    )


def embed_texts(networks: Bundle, batch: Mapping[str, Array], negative_ids: Int[Array, "77"]) -> Texts:
    """The text embeddings of a batch, without gradients."""
    high, low = (text_embedding(networks, batch, name) for name in ("high", "low"))
    return jax.lax.stop_gradient(Texts(high, low, networks.text_encoder(negative_ids[None])))


def student_estimate(
    networks: Bundle, batch: Mapping[str, Array], texts: Texts, *, config: Config, schedule: Schedule, draws: Draws
) -> Estimate:
    """The student's result at the drawn timesteps, from the same inputs as in sampling.

    At the first timestep the input is the start of sampling. At a later one it is the student's own estimate from the
    start, without a gradient and with new noise.
    """
    first, later = student_timesteps(schedule, config.few_step.evaluations, config.sampling.strength)
    noiseless = config.sampling.start == "lr_without_noise"
    posterior_key = None if noiseless else draws.posterior
    lr_latents = jax.lax.stop_gradient(networks.autoencoder.encode(2 * batch["lr"] - 1, posterior_key))
    firsts = jnp.full(len(draws.timestep), first)
    start = draws.start
    if config.sampling.start in ("lr", "lr_without_noise"):
        start = add_noise(schedule, lr_latents, jnp.zeros_like(start) if noiseless else start, firsts)
    features = networks.controlnet.encode_image(batch["lr"])

    def estimate(latents: Array, timesteps: Array) -> tuple[Array, ControlNetOutput]:
        control = networks.controlnet(latents, timesteps, texts.high, texts.low, features)
        prediction = networks.unet(latents, timesteps, texts.high, control.residuals, control.mid)
        return _clean(schedule, prediction, latents, timesteps), control

    latents = start
    if later:
        hopped = add_noise(schedule, jax.lax.stop_gradient(estimate(start, firsts)[0]), draws.hop, draws.timestep)
        latents = jnp.where((draws.timestep == first)[:, None, None, None], start, hopped)
    clean, control = estimate(latents, draws.timestep)
    return Estimate(clean, control, features)


def student_loss(
    networks: Bundle,
    judges: Judges | None,
    batch: Mapping[str, Array],
    *,
    constants: FewStepConstants,
    config: Config,
    schedule: Schedule,
) -> tuple[Float[Array, ""], Terms]:
    """The student's loss: L1 and perceptual distance of decoded results, Degradation-Free Constraint, realism term.

    Args:
      networks: the student's networks, with its adapters in the UNet and its constraint heads.
      judges: None: no realism term.

    Returns: the loss, and its terms l1, perceptual, constraint and realism.
    """
    draws, texts, target = _prepare(networks, batch, constants, config=config, schedule=schedule)
    estimate = student_estimate(networks, batch, texts, config=config, schedule=schedule, draws=draws)
    clean = estimate.latents
    decoded, wanted = _decoded(networks, clean, batch["hr"], draws.place, config.few_step.decoded)
    value, terms = compare(decoded, wanted, distances=constants.distances, loss=config.loss)
    heads = degradation_free_constraint(estimate.control, estimate.features, image=batch["hr"], latents=target)
    terms["constraint"] = sum(heads.values(), jnp.float32(0))
    value += config.loss.constraint * terms["constraint"]
    if judges is not None:
        terms["realism"] = _realism(judges, clean, batch["lr"], draws, texts, config=config, schedule=schedule)
        value += config.few_step.realism_weight * terms["realism"]
    return value, terms


def _realism(
    judges: Judges,
    clean: Float[Array, "b h w c"],
    lr: Float[Array, "b H W 3"],
    draws: Draws,
    texts: Texts,
    *,
    config: Config,
    schedule: Schedule,
) -> Float[Array, ""]:
    """The realism term of estimated clean latents, with a gradient in them only."""
    teacher, critic = judges
    noisy = add_noise(schedule, clean, draws.score, draws.score_timestep)
    if isinstance(critic, Discriminator):
        return -_mean(critic(encoder_features(teacher.unet, noisy, draws.score_timestep, texts.high)))
    still = jax.lax.stop_gradient(noisy)
    real, own = guided_and_own(
        teacher, critic, still, draws.score_timestep, texts, lr, config=config, schedule=schedule
    )
    return matching_loss(clean, real=real, own=own)


def critic_loss(
    networks: Bundle,
    judges: Judges,
    batch: Mapping[str, Array],
    *,
    constants: FewStepConstants,
    config: Config,
    schedule: Schedule,
) -> tuple[Float[Array, ""], Terms]:
    """The loss of the judges' critic on the student's results, which have no gradient here.

    "distribution": the denoising loss. "adversarial": the hinge loss of distinguishing results from photographs.
    """
    draws, texts, target = _prepare(networks, batch, constants, config=config, schedule=schedule)
    estimate = student_estimate(networks, batch, texts, config=config, schedule=schedule, draws=draws)
    clean = jax.lax.stop_gradient(estimate.latents)
    teacher, critic = judges
    timesteps = draws.score_timestep
    noisy = add_noise(schedule, clean, draws.score, timesteps)
    if isinstance(critic, Discriminator):
        photographs = add_noise(schedule, target, draws.score, timesteps)
        real, own = (
            critic(jax.lax.stop_gradient(encoder_features(teacher.unet, x, timesteps, texts.high)))
            for x in (photographs, noisy)
        )
        value = _mean([jax.nn.relu(1 - x) for x in real]) + _mean([jax.nn.relu(1 + x) for x in own])
    else:
        features = critic.controlnet.encode_image(batch["lr"])
        control = jax.lax.stop_gradient(critic.controlnet(noisy, timesteps, texts.high, texts.low, features))
        prediction = critic.unet(noisy, timesteps, texts.high, control.residuals, control.mid)
        value = jnp.mean((prediction - prediction_target(schedule, clean, draws.score, timesteps)) ** 2)
    return value, {"critic": value}


def guided_and_own(
    teacher: Teacher,
    critic: Teacher,
    noisy: Float[Array, "b h w c"],
    timesteps: Int[Array, "b"],
    texts: Texts,
    lr: Float[Array, "b H W 3"],
    *,
    config: Config,
    schedule: Schedule,
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
    """The clean latents as estimated from noisy ones by the guided teacher and by the critic."""
    scale, batch = config.few_step.guidance_scale, len(noisy)
    guided = is_guided(scale, "paper")
    features = teacher.controlnet.encode_image(lr)
    high, low = texts.high, texts.low
    if guided:
        # Positive and negative side by side, as in sampling.
        negative = jnp.broadcast_to(texts.negative, high.shape)
        high = jnp.stack([high, negative], axis=1).reshape(-1, *high.shape[1:])
        low = jnp.repeat(low, 2, axis=0)
    control = teacher.controlnet(noisy, timesteps, high, low, features)
    prediction = teacher.unet(noisy, timesteps, high, control.residuals, control.mid)
    if guided:
        prediction = guide(prediction[::2], prediction[1::2], scale=scale, form="paper")
        control = jax.tree.map(lambda x: x if len(x) == batch else x[::2], control)
    own = critic.unet(noisy, timesteps, texts.high, control.residuals, control.mid)
    return _clean(schedule, prediction, noisy, timesteps), _clean(schedule, own, noisy, timesteps)


def matching_loss(
    clean: Float[Array, "b h w c"], *, real: Float[Array, "b h w c"], own: Float[Array, "b h w c"]
) -> Float[Array, ""]:
    """A loss whose gradient moves `clean` away from the critic's estimate `own`, towards the teacher's estimate `real`.

    Each sample's gradient is divided by its mean distance to `real` (Yin et al., 2024, eq. 7 and 8).
    """
    size = jnp.mean(jnp.abs(clean - real), axis=(1, 2, 3), keepdims=True)
    direction = (own - real) / jnp.maximum(size, 1e-6)
    return 0.5 * jnp.mean((clean - jax.lax.stop_gradient(clean - direction)) ** 2)


def _prepare(
    networks: Bundle,
    batch: Mapping[str, Array],
    constants: FewStepConstants,
    *,
    config: Config,
    schedule: Schedule,
) -> tuple[Draws, Texts, Float[Array, "b h w c"]]:
    """The random numbers, the text embeddings and the photographs' latents."""
    target = jax.lax.stop_gradient(networks.autoencoder.encode(batch["hr"]))
    draws = draw(
        batch["key"],
        target.shape[1:],
        seed=config.seed,
        schedule=schedule,
        evaluations=config.few_step.evaluations,
        strength=config.sampling.strength,
    )
    return draws, embed_texts(networks, batch, constants.negative_ids), target


def _decoded(
    networks: Bundle,
    latents: Float[Array, "b h w c"],
    hr: Float[Array, "b H W 3"],
    place: Float[Array, "b 2"],
    side: int | None,
) -> tuple[Float[Array, "b _ _ 3"], Float[Array, "b _ _ 3"]]:
    """The decoded latents and the photographs, or only the same square of both (`side` latent cells)."""
    cells = latents.shape[1:3]
    if side is None or side >= min(cells):
        return networks.autoencoder.decode(latents), hr
    factor = hr.shape[1] // cells[0]
    begin = jnp.floor(place * (np.array(cells) - side + 1)).astype(jnp.int32)

    def cut(image: Array, begin: Array, side: int) -> Array:
        return jax.lax.dynamic_slice(image, (begin[0], begin[1], 0), (side, side, image.shape[-1]))

    cutting = jax.vmap(cut, in_axes=(0, 0, None))
    return networks.autoencoder.decode(cutting(latents, begin, side)), cutting(hr, factor * begin, factor * side)


def _clean(schedule: Schedule, prediction: Array, latents: Array, timesteps: Array) -> Float[Array, "b h w c"]:
    return clean_estimate(schedule, prediction.astype(jnp.float32), latents, *levels_at(schedule, timesteps))


def _mean(scores: list[Array]) -> Float[Array, ""]:
    """The mean over the levels of each map's mean."""
    return jnp.mean(jnp.stack([jnp.mean(each) for each in scores]))
