"""Validation pictures that show the progress of a training, for fixed crops and degradations.

One picture shows LR, restored and original image side by side. Another shows the predictions of the Degradation-Free
Constraint's heads for the LR image.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from xpsr_jax import distributed, sharding
from xpsr_jax.config import Config
from xpsr_jax.data.captions import Caption
from xpsr_jax.data.degradation import degrade
from xpsr_jax.data.examples import random_crop, tokenize_caption
from xpsr_jax.data.quality import describe
from xpsr_jax.data.rounding import round_to_uint8
from xpsr_jax.diffusion.process import add_noise
from xpsr_jax.diffusion.schedule import Schedule
from xpsr_jax.evaluation.metrics import Metric
from xpsr_jax.images.writing import write_png
from xpsr_jax.inference.restore import restore
from xpsr_jax.models.rrdb import RRDBNet
from xpsr_jax.training.export import as_model
from xpsr_jax.training.images import open_images
from xpsr_jax.training.parameters import Parameters
from xpsr_jax.training.structure import Bundle, Structure, compute_of
from xpsr_jax.training.validation_scores import load_scores, mean_scores
from xpsr_jax.weights.model_folder import ClipTokenizer
from xpsr_jax.weights.networks import FIRST_STAGE, load_network

_SEED = 7


class Validated(NamedTuple):
    """The result of a validation.

    Attributes:
      pictures: the pictures by name, as they are written.
      scores: the mean of each metric over the pictures, by name; empty except in the first process.
    """

    pictures: dict[str, UInt8[np.ndarray, "_ _ 3"]]
    scores: dict[str, float]


class Validator:
    """Restores the validation pictures with the given parameters. The stage "autoencoder" reconstructs them instead."""

    def __init__(self, config: Config, structure: Structure, *, tokenizer: ClipTokenizer, mesh: jax.sharding.Mesh):
        self._config, self._structure = config, structure
        self._tokenizer, self._mesh = tokenizer, mesh
        self._first_stage: RRDBNet | None = None
        self._metrics: dict[str, Metric] | None = None
        self._examples: list[tuple[np.ndarray, np.ndarray, Caption]] | None = None
        self._reconstruct = jax.jit(
            lambda *parts, image: (n := structure.merge(*parts).autoencoder).decode(n.encode(image)),
            out_shardings=sharding.replicated(mesh),
        )
        self._predict = jax.jit(self._predict_constraint, out_shardings=sharding.replicated(mesh))

    def __call__(self, parameters: Parameters, frozen: Parameters, step: int) -> Validated:
        """Writes samples/<step>_<name>.png in the run's folder and measures the restored pictures.

        Every process must call it; the first one writes and measures.

        Args:
          parameters: the trained parameters, by path.
          frozen: the other parameters.
          step: the last step that changed the parameters.
        """
        if self._examples is None:
            self._examples = self._make_examples()
        originals = [hr for _, hr, _ in self._examples]
        if self._config.stage == "autoencoder":
            images = np.stack(originals).astype(np.float32) / 127.5 - 1
            decoded = np.asarray(self._reconstruct(parameters, frozen, image=images))
            restored = [round_to_uint8((image + 1) / 2) for image in decoded]
            rows = [list(row) for row in zip(originals, restored, strict=True)]
        else:
            folder = self._structure.first_stage
            if folder is not None and self._first_stage is None:
                self._first_stage = load_network(FIRST_STAGE, folder, compute=compute_of(self._config))
            bundle = self._structure.merge(parameters, frozen)
            model = as_model(bundle, self._config, self._structure, self._tokenizer, self._first_stage)
            lrs, _, captions = zip(*self._examples, strict=True)
            # The networks process crops at the size that they are trained on.
            sampling = dataclasses.replace(
                self._config.validation.sampling,
                upscale=self._config.data.degradation.upscale,
                process_size=self._config.data.crop_size,
            )
            restored = restore(model, lrs, captions, sampling, seed=_SEED, mesh=self._mesh)
            rows = [[_enlarge(lr, hr), out, hr] for lr, hr, out in zip(lrs, originals, restored, strict=True)]
        pictures = {f"validation_{i}": np.concatenate(row, axis=1) for i, row in enumerate(rows)}
        controlnet = self._structure.networks.controlnet
        heads = controlnet.return_rgbs or controlnet.use_latent_pred
        if self._config.stage in ("xpsr", "few_step") and self._config.loss.constraint > 0 and heads:
            for i, example in enumerate(self._examples):
                pictures[f"validation_{i}_constraint"] = self._constraint(parameters, frozen, *example)
        if distributed.is_first():
            folder = self._config.run_folder / "samples"
            folder.mkdir(parents=True, exist_ok=True)
            for name, picture in pictures.items():
                write_png(folder / f"{step:07d}_{name}.png", picture)
        return Validated(pictures, self._scores(restored, originals))

    def _scores(self, restored: Sequence[np.ndarray], originals: Sequence[np.ndarray]) -> dict[str, float]:
        if not distributed.is_first():
            return {}
        if self._metrics is None:
            self._metrics = load_scores(self._config.validation.metrics, crop_size=self._config.data.crop_size)
        return mean_scores(self._metrics, restored, originals)

    def _predict_constraint(self, *parameters: Parameters, **inputs: Array) -> tuple[Array, ...]:
        networks, schedule = self._structure.merge(*parameters), self._structure.networks.schedule
        return constraint_predictions(networks, schedule=schedule, **inputs)

    def _constraint(
        self, parameters: Parameters, frozen: Parameters, lr: np.ndarray, hr: np.ndarray, caption: Caption
    ) -> UInt8[np.ndarray, "h w 3"]:
        high_ids, low_ids = (tokenize_caption(text, self._tokenizer) for text in (caption.high, caption.low))
        predictions = self._predict(
            parameters,
            frozen,
            hr=hr / np.float32(127.5) - 1,
            lr=_enlarge(lr, hr) / np.float32(255),
            high_ids=high_ids,
            low_ids=low_ids,
        )
        return round_to_uint8((np.concatenate(predictions, axis=1) + 1) / 2)

    def _make_examples(self) -> list[tuple[np.ndarray, np.ndarray, Caption]]:
        source = open_images(self._config.validation.images or self._config.images)
        examples = []
        for i in range(self._config.validation.count):
            sample, rng = source[i % len(source)], np.random.default_rng((_SEED, i))
            crop = random_crop(sample.image, self._config.data, rng)
            degraded = degrade(crop.astype(np.float32) / 255, self._config.data.degradation, rng)
            examples.append(
                (round_to_uint8(degraded.lr), crop, Caption(sample.caption.high, describe(degraded.drawn, rng)))
            )
        return examples


def constraint_predictions(
    networks: Bundle,
    *,
    hr: Float[Array, "h w 3"],
    lr: Float[Array, "h w 3"],
    high_ids: Int[Array, "77"],
    low_ids: Int[Array, "77"],
    schedule: Schedule,
) -> tuple[Float[Array, "h w 3"], ...]:
    """The clean image as the heads of the Degradation-Free Constraint predict it (paper, eq. 3), at its own size.

    The pixel heads come first, finest first. Then come the decoded predictions of each scale's last latent head and of
    the mid block's head. The ControlNet sees the clean latents with the noise of the middle timestep, as in training.

    Args:
      hr: in [-1, 1]; only its latents are used.
      lr: in [0, 1].

    Returns: images in about [-1, 1].
    """
    latents = networks.autoencoder.encode(hr[None])
    timestep = jnp.array([schedule.num_train_timesteps // 2])
    noisy = add_noise(schedule, latents, jax.random.normal(jax.random.key(_SEED), latents.shape), timestep)
    features = networks.controlnet.encode_image(lr[None])
    high, low = networks.text_encoder(high_ids[None]), networks.text_encoder(low_ids[None])
    pixels = [jax.image.resize(rgb[0], hr.shape, "nearest") for rgb in features.rgb_predictions]
    predictions = networks.controlnet(noisy, timestep, high, low, features).latent_predictions
    if not predictions:
        return tuple(pixels)
    *layers, mid = predictions
    last = {prediction.shape: prediction for prediction in layers}
    enlarged = [jax.image.resize(prediction, latents.shape, "nearest") for prediction in (*last.values(), mid)]
    return (*pixels, *networks.autoencoder.decode(jnp.concatenate(enlarged)))


def _enlarge(lr: np.ndarray, hr: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    return cv2.resize(lr, hr.shape[1::-1], interpolation=cv2.INTER_CUBIC)
