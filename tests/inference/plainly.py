"""A plain implementation of method §7: text is embedded in every step, halves and tiles run one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from tests.inference.tiny_model import SAMPLING
from xpsr_jax.config import Sampling
from xpsr_jax.data.captions import Caption
from xpsr_jax.diffusion.making import make_sampler
from xpsr_jax.diffusion.samplers import start_latents
from xpsr_jax.inference.color import adain, truncate_to_uint8
from xpsr_jax.inference.image_keys import content_digest, image_key
from xpsr_jax.inference.prompts import prompt_tokens
from xpsr_jax.inference.tiling import Tiles
from xpsr_jax.weights.model_folder import Model

FACTOR = 4  # side of a latent cell, in pixels


def restored_plainly(
    model: Model,
    image: np.ndarray,
    caption: Caption,
    tiles: Tiles | None = None,
    *,
    sampling: Sampling = SAMPLING,
    cache_levels: int = 1,
) -> np.ndarray:
    """Restores one image to four times its size, 8 bits. `sampling` has the sampler, steps, guidance and caching."""
    height, width = (4 * side for side in image.shape[:2])
    pixels = np.asarray(Image.fromarray(image).resize((width, height), Image.BICUBIC))[None].astype(np.float32) / 255
    shape = height // FACTOR, width // FACTOR, 4
    tiles = tiles or Tiles(shape[:2], shape[:2], ((0, 0),))
    crops = [crop[None] for crop in tiles.cut(pixels[0], scale=FACTOR)]
    high, negative, low = (
        jnp.asarray(prompt_tokens(model.tokenizer, [text]))
        for text in (caption.high, SAMPLING.negative_high, caption.low)
    )
    keys = jax.random.split(image_key(np.zeros(2, np.uint32), content_digest(image)), 4)
    posterior, first, second = (jax.random.normal(key, shape)[None] for key in keys[:3])

    @nnx.jit
    def predict(networks, latents, pixels, timestep, high):
        unet, controlnet, text_encoder = networks
        c_high, c_low, timesteps = text_encoder(high), text_encoder(low), jnp.full(1, timestep)
        control = controlnet(latents, timesteps, c_high, c_low, controlnet.encode_image(pixels))
        residuals = control.residuals, control.mid
        return unet.predict_and_keep(latents, timesteps, c_high, *residuals, outer_layers=cache_levels)

    @nnx.jit
    def predict_again(networks, latents, kept, timestep, high):
        unet, text_encoder = networks
        return unet.predict_from_kept(
            latents, jnp.full(1, timestep), text_encoder(high), kept, outer_layers=cache_levels
        )

    kept = {}

    def predicted(latents, timestep, tokens, *, whole):
        predictions = []
        for i, part in enumerate(tiles.cut(np.asarray(latents[0]))):
            key = i, tokens is negative
            if whole:
                networks = model.unet, model.controlnet, model.text_encoder
                prediction, kept[key] = predict(networks, part[None], crops[i], timestep, tokens)
            else:
                prediction = predict_again((model.unet, model.text_encoder), part[None], kept[key], timestep, tokens)
            predictions.append(np.asarray(prediction[0]))
        return jnp.asarray(tiles.blend(predictions)[None])

    mean, log_variance = nnx.jit(lambda autoencoder: autoencoder.moments(2 * jnp.asarray(pixels) - 1))(
        model.autoencoder
    )
    lr_latents = model.autoencoder.config.scaling_factor * (mean + jnp.exp(log_variance / 2) * posterior)
    sampler = make_sampler(sampling, model.schedule)
    table = sampler.table(sampling.steps)
    level = jnp.asarray(table.signal[0]), jnp.asarray(table.sigma[0])
    state = sampler.init(start_latents("lr", lr_latents, first, second, first_level=level, second_level=level))
    begin, end = sampling.guidance_interval
    form_begins = 0
    for i in range(sampling.steps):
        guided, before = (begin <= j / sampling.steps and (j + 1) / sampling.steps <= end for j in (i, i - 1))
        form_begins = i if guided != before else form_begins
        row = jax.tree.map(lambda column: jnp.asarray(column[i]), table)  # noqa: B023
        whole = (i - form_begins) % sampling.cache_interval == 0
        prediction = eps = predicted(state.latents, row.timestep, high, whole=whole)
        if guided:
            eps_negative = predicted(state.latents, row.timestep, negative, whole=whole)
            prediction = eps + sampling.guidance_scale * (eps - eps_negative)
        step_noise = jax.random.normal(jax.random.fold_in(keys[3], i), shape)[None]
        state = sampler.step(state, row, prediction, step_noise)
    decoded = nnx.jit(lambda autoencoder, latents: autoencoder.decode(latents))(model.autoencoder, state.latents)
    rounded = jnp.round(jnp.clip(decoded / 2 + 0.5, 0, 1) * 255) / 255
    return np.asarray(truncate_to_uint8(adain(rounded, jnp.asarray(pixels)))[0])
