"""The losses of training (method §6). Every loss is float32. A term has the same name here and in the logs."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt32

from xpsr_jax.config import Loss
from xpsr_jax.diffusion.process import Latents, add_noise, prediction_target
from xpsr_jax.diffusion.samplers import Sampler, Timestep, normal, sample, step_noise
from xpsr_jax.diffusion.schedule import Schedule
from xpsr_jax.evaluation.perceptual import Dists, Lpips
from xpsr_jax.models.controlnet import ControlNetOutput, ImageFeatures
from xpsr_jax.training.discriminator import PatchDiscriminator
from xpsr_jax.training.structure import Bundle

Terms = dict[str, Float[Array, ""]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Distances:
    """The perceptual distances of a loss.

    Attributes:
      metric: the distance that `Loss.metric` names.
      dists: DISTS in addition; None: not used.
    """

    metric: Lpips | Dists
    dists: Dists | None = None


def xpsr_loss(
    networks: Bundle, batch: Mapping[str, Array], *, schedule: Schedule, loss: Loss, seed: int
) -> tuple[Float[Array, ""], Terms]:
    """The loss of a batch of `data.pipeline.make_pipeline`. Draws latents, noise and timesteps for `diffusion_loss`.

    A sample's random numbers depend only on the seed and the sample's key, not on how the batch is split.

    Args:
      networks: with unet, controlnet (with its heads), autoencoder and text_encoder.
    """
    posterior_keys, noise_keys, timestep_keys = sample_keys(batch["key"], seed)
    latents = jax.lax.stop_gradient(networks.autoencoder.encode(batch["hr"], posterior_keys))
    return diffusion_loss(
        networks,
        latents=latents,
        noise=normal(noise_keys, latents.shape[1:]),
        timesteps=jax.vmap(lambda key: jax.random.randint(key, (), 0, schedule.num_train_timesteps))(timestep_keys),
        high=text_embedding(networks, batch, "high"),
        low=text_embedding(networks, batch, "low"),
        lr=batch["lr"],
        hr=batch["hr"],
        schedule=schedule,
        loss=loss,
    )


def text_embedding(networks: Bundle, batch: Mapping[str, Array], name: str) -> Float[Array, "b n d"]:
    """The embedding in the batch (`data.embeddings`), or otherwise the text encoder's output for its tokens."""
    if f"{name}_embedding" in batch:
        return batch[f"{name}_embedding"]
    return networks.text_encoder(batch[f"{name}_ids"])


def diffusion_loss(
    networks: Bundle,
    *,
    latents: Float[Array, "b h w c"],
    noise: Float[Array, "b h w c"],
    timesteps: Int[Array, "b"],
    high: Float[Array, "b n d"],
    low: Float[Array, "b n d"],
    lr: Float[Array, "b H W 3"],
    hr: Float[Array, "b H W 3"],
    schedule: Schedule,
    loss: Loss,
) -> tuple[Float[Array, ""], Terms]:
    """Denoising loss plus λ times the Degradation-Free Constraint (paper, eq. 4 and 5; method §6).

    Args:
      networks: with unet and controlnet (with its heads).
      latents: clean, scaled.
      noise: standard normal.
      high, low: embeddings of the captions.
      lr: in [0, 1], enlarged to HR size.
      hr: in [-1, 1].

    Returns:
      The loss and its terms: mse, constraint (the sum of all L1 terms), and each L1 term under its head's name.
    """
    noisy = add_noise(schedule, latents, noise, timesteps)
    features = networks.controlnet.encode_image(lr)
    control = networks.controlnet(noisy, timesteps, high, low, features)
    prediction = networks.unet(noisy, timesteps, high, control.residuals, control.mid).astype(jnp.float32)
    mse = jnp.mean((prediction - prediction_target(schedule, latents, noise, timesteps)) ** 2)
    terms = degradation_free_constraint(control, features, image=hr, latents=latents)
    constraint = sum(terms.values(), jnp.float32(0))
    return mse + loss.constraint * constraint, {"mse": mse, "constraint": constraint} | terms


def sample_keys(keys: UInt32[Array, "b"], seed: int) -> tuple[Array, Array, Array]:
    """Three random keys for each sample, as three arrays of shape (b,)."""
    root = jax.random.key(seed)
    first, second, third = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(root, key), 3))(keys).T
    return first, second, third


def degradation_free_constraint(
    control: ControlNetOutput,
    features: ImageFeatures,
    *,
    image: Float[Array, "b H W 3"],
    latents: Float[Array, "b h w c"],
) -> Terms:
    """The L1 distance of every head to its target (paper, eq. 3; method §6.4).

    The target of a pixel head is the clean image in [-1, 1]; that of a latent head the clean scaled latents. Targets
    are resized to the head's size. A ControlNet without heads has no terms.
    """
    terms = {f"rgb_{i}": _l1(rgb, image) for i, rgb in enumerate(features.rgb_predictions)}
    names = [*(f"latent_{i}" for i in range(len(control.residuals))), "latent_mid"]
    return terms | {
        name: _l1(prediction, latents) for name, prediction in zip(names, control.latent_predictions, strict=False)
    }


def _l1(prediction: Float[Array, "b h w c"], target: Float[Array, "b H W c"]) -> Float[Array, ""]:
    # Two taps for all sizes, like PyTorch's bilinear resize without antialiasing.
    resized = jax.image.resize(
        target.astype(jnp.float32), (*prediction.shape[:3], target.shape[-1]), "linear", antialias=False
    )
    return jnp.mean(jnp.abs(prediction.astype(jnp.float32) - resized))


def autoencoder_loss(
    networks: Bundle,
    batch: Mapping[str, Array],
    *,
    distances: Distances,
    loss: Loss,
    seed: int,
    critic: PatchDiscriminator | None = None,
) -> tuple[Float[Array, ""], Terms]:
    """The loss of the stage "autoencoder", which trains an autoencoder before the stage "xpsr".

    The sum of L1 and perceptual distances of the reconstruction, and of the posterior's divergence from N(0, 1). With a
    critic it also has the realism of the reconstruction, and the critic's own loss, which has no gradient in the
    autoencoder.
    """
    keys, *_ = sample_keys(batch["key"], seed)
    mean, log_variance = networks.autoencoder.moments(batch["hr"])
    latents = mean + jnp.exp(0.5 * log_variance) * normal(keys, mean.shape[1:])
    reconstruction = networks.autoencoder.decode(latents * networks.autoencoder.config.scaling_factor)
    value, terms = compare(reconstruction, batch["hr"], distances=distances, loss=loss)
    terms["kl"] = 0.5 * jnp.mean(mean**2 + jnp.exp(log_variance) - 1 - log_variance)
    terms["latent_deviation"] = jnp.std(mean)
    value += loss.kl * terms["kl"]
    if critic is not None:
        terms |= adversarial_terms(critic, reconstruction, batch["hr"])
        value += loss.adversarial * terms["realism"] + terms["critic"]
    return value, terms


def adversarial_terms(
    critic: PatchDiscriminator, image: Float[Array, "b H W 3"], photograph: Float[Array, "b H W 3"]
) -> Terms:
    """The realism loss of an image and the critic's hinge loss.

    The realism loss has no gradient in the critic, and the critic's loss has none in the image. Pictures are in
    [-1, 1].
    """
    graph, weights = nnx.split(critic)
    still = nnx.merge(graph, jax.lax.stop_gradient(weights))
    own, real = critic(jax.lax.stop_gradient(image)), critic(photograph)
    return {
        "realism": -jnp.mean(still(image)),
        "critic": jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + own)),
    }


def decoder_loss(
    networks: Bundle,
    batch: Mapping[str, Array],
    *,
    sampler: Sampler,
    steps: int,
    distances: Distances,
    loss: Loss,
    seed: int,
) -> tuple[Float[Array, ""], Terms]:
    """The loss of the stage "decoder", for a model with a small UNet: L1 and perceptual distance of restored images.

    Sampled latents are not exact. A decoder that was trained only on exact latents turns their errors into speckles.
    In this stage it learns to decode sampled latents. These start from the LR image's latents, are sampled without
    guidance, and have no gradient.
    """
    posterior_keys, start_keys, step_keys = sample_keys(batch["key"], seed)
    lr_latents = networks.autoencoder.encode(2 * batch["lr"] - 1, posterior_keys)
    shape, table = lr_latents.shape[1:], sampler.table(steps)
    start = table.signal[0] * lr_latents + table.sigma[0] * normal(start_keys, shape)
    high, low = (text_embedding(networks, batch, name) for name in ("high", "low"))
    features = networks.controlnet.encode_image(batch["lr"])

    def denoise(latents: Latents, timestep: Timestep) -> Latents:
        timesteps = jnp.full(len(latents), timestep)
        control = networks.controlnet(latents, timesteps, high, low, features)
        return networks.unet(latents, timesteps, high, control.residuals, control.mid).astype(jnp.float32)

    latents = sample(sampler, denoise, start, step_noise(step_keys, shape), steps=steps)
    image = networks.autoencoder.decode(jax.lax.stop_gradient(latents))
    return compare(image, batch["hr"], distances=distances, loss=loss)


def patches(images: Float[Array, "b H W c"], size: int) -> Float[Array, "n s s c"]:
    """The images cut into squares of this size, which must divide the height and the width."""
    b, height, width, c = images.shape
    squares = images.reshape(b, height // size, size, width // size, size, c)
    return squares.swapaxes(2, 3).reshape(-1, size, size, c)


def middle(images: Float[Array, "b H W c"], side: int | None) -> Float[Array, "b _ _ c"]:
    """The central square of the images with this side, or less if the images are smaller; None: the whole images."""
    rows, columns = (slice(None) if side is None else slice(max(0, n - side) // 2, None) for n in images.shape[1:3])
    return images[:, rows, columns][:, :side, :side]


def compare(
    image: Float[Array, "b H W 3"], target: Float[Array, "b H W 3"], *, distances: Distances, loss: Loss
) -> tuple[Float[Array, ""], Terms]:
    """The weighted sum of L1 and perceptual distances between images in [-1, 1], and its terms."""
    both = [x / 2 + 0.5 for x in (image, target)]
    squares = (patches(x, loss.patch or x.shape[1]) for x in both)
    terms = {"l1": jnp.mean(jnp.abs(image - target)), "perceptual": jnp.mean(distances.metric(*squares))}
    value = loss.reconstruction * terms["l1"] + loss.perceptual * terms["perceptual"]
    if distances.dists is not None:
        terms["dists"] = jnp.mean(distances.dists(*(middle(x, loss.dists_side) for x in both)))
        value += loss.dists * terms["dists"]
    return value, terms
