"""Pictures that show how far a training is: LR, restored and original side by side, of fixed crops and degradations."""

import dataclasses
from typing import Any

import cv2
import jax
import numpy as np
from jaxtyping import UInt8

from xpsr_jax.config import Config
from xpsr_jax.data.captions import Caption
from xpsr_jax.data.degradation import degrade
from xpsr_jax.data.jpeg import to_uint8
from xpsr_jax.data.pipeline import random_crop
from xpsr_jax.data.quality import describe
from xpsr_jax.inference.image_io import write_png
from xpsr_jax.inference.restore import restore
from xpsr_jax.training.export import as_model
from xpsr_jax.training.images import open_images
from xpsr_jax.training.parameters import Parameters
from xpsr_jax.training.structure import Structure

_SEED = 7


class Validator:
    """Restores the validation pictures with the given parameters; in the autoencoder's stage it reconstructs them."""

    def __init__(self, config: Config, structure: Structure, *, tokenizer: Any, mesh: jax.sharding.Mesh):
        self._config, self._structure = config, structure
        self._tokenizer, self._mesh = tokenizer, mesh
        self._examples: list[tuple[np.ndarray, np.ndarray, Caption]] | None = None
        self._reconstruct = jax.jit(
            lambda *parts, image: (n := structure.merge(*parts).autoencoder).decode(n.encode(image))
        )

    def __call__(self, parameters: Parameters, frozen: Parameters, step: int) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """Writes samples/<step>_<i>.png in the run's folder and returns the same pictures by name."""
        if self._examples is None:
            self._examples = self._make_examples()
        if self._config.stage == "autoencoder":
            originals = [hr for _, hr, _ in self._examples]
            images = np.stack(originals).astype(np.float32) / 127.5 - 1
            decoded = np.asarray(self._reconstruct(parameters, frozen, image=images))
            rows = [[hr, to_uint8((image + 1) / 2)] for hr, image in zip(originals, decoded, strict=True)]
        else:
            model = as_model(self._structure.merge(parameters, frozen), self._config, self._structure, self._tokenizer)
            lrs, hrs, captions = zip(*self._examples, strict=True)
            # The networks see crops of the size that they are trained on.
            sampling = dataclasses.replace(
                self._config.validation.sampling,
                upscale=self._config.data.degradation.upscale,
                process_size=self._config.data.crop_size,
            )
            restored = restore(model, lrs, captions, sampling, seed=_SEED, mesh=self._mesh)
            rows = [[_enlarge(lr, hr), out, hr] for lr, hr, out in zip(lrs, hrs, restored, strict=True)]
        pictures = {f"validation_{i}": np.concatenate(row, axis=1) for i, row in enumerate(rows)}
        if jax.process_index() == 0:
            folder = self._config.run_folder / "samples"
            folder.mkdir(parents=True, exist_ok=True)
            for name, picture in pictures.items():
                write_png(folder / f"{step:07d}_{name}.png", picture)
        return pictures

    def _make_examples(self) -> list[tuple[np.ndarray, np.ndarray, Caption]]:
        source = open_images(self._config.validation.images or self._config.images)
        examples = []
        for i in range(self._config.validation.count):
            sample, rng = source[i % len(source)], np.random.default_rng((_SEED, i))
            crop = random_crop(sample.image, self._config.data, rng)
            degraded = degrade(crop.astype(np.float32) / 255, self._config.data.degradation, rng)
            examples.append((to_uint8(degraded.lr), crop, Caption(sample.caption.high, describe(degraded.drawn, rng))))
        return examples


def _enlarge(lr: np.ndarray, hr: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    return cv2.resize(lr, hr.shape[1::-1], interpolation=cv2.INTER_CUBIC)
