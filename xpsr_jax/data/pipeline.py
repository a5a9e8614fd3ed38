"""From photographs to training batches: crop, flip, degrade, caption, tokenise (method §6, §9), with grain.

An example is a pure function of (seed, position in the endless stream), whatever the number of processes, threads or
restarts.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import cv2
import grain
import numpy as np
from jaxtyping import Float, Int, UInt8

from xpsr_jax.data.captions import Caption
from xpsr_jax.data.degradation import XPSR, DegradationConfig, Degraded, degrade
from xpsr_jax.data.jpeg import to_uint8
from xpsr_jax.data.quality import describe
from xpsr_jax.data.resize import resize
from xpsr_jax.data.sources import Sample, Source
from xpsr_jax.data.tokens import pad_or_cut
from xpsr_jax.errors import UserError

Example = dict[str, np.ndarray]


class Tokenizer(Protocol):
    """What is used of a transformers CLIPTokenizer."""

    pad_token_id: Any

    def __call__(self, text: str, **options: Any) -> Any: ...


@dataclass(frozen=True)
class DataConfig:
    """What a training example is.

    Attributes:
      crop_size: side of the square HR crop in pixels.
      crop_scale: the photograph is resized by a uniform factor from this range before the crop, not to less than the
        crop.
      flip_probability: of mirroring left to right.
      degrade: False gives batches of `hr`, `key` and `index` only, `hr` as it is in the photograph: enough for an
        autoencoder.
      degradation: how LR images are made.
      clean_input_probability: of `lr` being the HR image itself, with a low-level caption of its good quality (method
        §6).
      caption_dropout: of replacing both captions by "".
      high_dropout, low_dropout: of replacing the one by "".
      high_caption_from: the caption of the HR image or of its degraded version; where there is only one, that one.
      low_caption_from: "drawn" describes the degradation that was drawn, "file" takes the caption of the degraded image
        (for want of it, of the photograph).
      negative_target_probability: of a target that stays degraded (`lr`), with a high-level caption of
        `negative_words`, alone or after the real one. It gives the negative prompt something to mean. No dropout and no
        clean input then.
      negative_words: those words.
    """

    crop_size: int = 512
    crop_scale: tuple[float, float] = (1.0, 1.0)
    flip_probability: float = 0.5
    degrade: bool = True
    degradation: DegradationConfig = XPSR
    clean_input_probability: float = 0.1
    caption_dropout: float = 0.0
    high_dropout: float = 0.0
    low_dropout: float = 0.0
    high_caption_from: Literal["hr", "lr"] = "hr"
    low_caption_from: Literal["drawn", "file"] = "drawn"
    negative_target_probability: float = 0.0
    negative_words: tuple[str, ...] = ("blurry", "dotted", "noise", "unclear", "low-res", "over-smoothed")


def make_pipeline(
    source: Source,
    config: DataConfig,
    *,
    tokenizer: Tokenizer | None = None,
    seed: int = 0,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    shuffle: bool = True,
    epochs: int | None = None,
    threads: int = 2,
    prefetch: int = 4,
) -> grain.IterDataset[Example]:
    """Batches for this process, endless unless `epochs` is given.

    `iter()` of it is a grain DatasetIterator: it can be saved and resumed (`get_state`, `set_state`, orbax).

    A batch is a dict, b = batch_size / process_count, s = crop_size:
      hr         float32 (b, s, s, 3) in [-1, 1], in steps of 1/255 of [0, 1] as an image file has them: the target
      lr         float32 (b, s, s, 3) in [0, 1], in the same steps: LR, upsampled bicubically to the HR size
      high_ids, low_ids   int32 (b, 77): the captions' CLIP tokens
      key        uint32 (b,): a seed for this sample's noise in training
      index      int64 (b,): the sample's position in the stream

    Args:
      tokenizer: a transformers CLIPTokenizer; not needed with `config.degrade=False`.
      batch_size: of all processes together. Put together in the order of processes, their batches are those of one
        process.
      epochs: how often the source is gone through, each time in another order. A last incomplete batch is left out.
      threads: that make batches in parallel. OpenCV's own threads are switched off in this Python process: they would
        get in the way.
      prefetch: batches kept ready.
    """
    _check(config, seed=seed, batch_size=batch_size, process_index=process_index, process_count=process_count)
    if epochs is not None and len(source) * epochs < batch_size:
        raise UserError(f"{len(source)} images, {epochs} times, do not fill one batch of {batch_size}.")
    cv2.setNumThreads(1)
    samples = grain.MapDataset.source(source).seed(seed)
    if shuffle:
        samples = samples.shuffle()
    examples = samples.repeat(epochs).map_with_index(
        lambda index, sample: make_example(sample, config, tokenizer=tokenizer, seed=seed, index=index)
    )
    # Cut first, then shared out: each process has a contiguous part of every global batch. All have the same number of
    # parts: a process with one more would wait for the others for ever.
    parts = examples.batch(batch_size // process_count, drop_remainder=True)
    batches = parts[process_index : len(examples) // batch_size * process_count : process_count]
    return batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch))


def make_example(sample: Sample, config: DataConfig, *, tokenizer: Tokenizer | None, seed: int, index: int) -> Example:
    """One element of the batches of `make_pipeline`, without the batch axis: pure in (seed, index)."""
    rng = np.random.default_rng((seed, index))
    example: Example = {"key": np.asarray(rng.integers(2**32, dtype=np.uint32)), "index": np.asarray(index, np.int64)}
    crop = random_crop(sample.image, config, rng)
    if not config.degrade:
        return example | {"hr": _centred(crop)}
    if tokenizer is None:
        raise ValueError("Degraded examples have captions, which need a tokenizer.")

    degraded = degrade(crop.astype(np.float32) / np.float32(255), config.degradation, rng)
    hr, lr = to_uint8(degraded.hr), to_uint8(resize(degraded.lr, crop.shape[:2], "bicubic"))
    negative = rng.random() < config.negative_target_probability
    clean = rng.random() < config.clean_input_probability and not negative
    caption = _caption(sample, degraded, config, clean=clean, negative=negative, rng=rng)
    return example | {
        "hr": _centred(lr if negative else hr),
        "lr": (hr if clean else lr).astype(np.float32) / np.float32(255),
        "high_ids": tokenize(caption.high, tokenizer),
        "low_ids": tokenize(caption.low, tokenizer),
    }


def random_crop(
    image: UInt8[np.ndarray, "h w 3"], config: DataConfig, rng: np.random.Generator
) -> UInt8[np.ndarray, "s s 3"]:
    """A square piece of the photograph, perhaps reduced and mirrored.

    A smaller photograph is continued by reflection to the right and below.
    """
    size = config.crop_size
    scale = max(rng.uniform(*config.crop_scale), min(1.0, size / min(image.shape[:2])))
    window = round(size / scale)
    height, width = image.shape[:2]
    if height < window or width < window:
        right, below = max(0, window - width), max(0, window - height)
        image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REFLECT_101)
        height, width = image.shape[:2]
    top, left = rng.integers(height - window + 1), rng.integers(width - window + 1)
    crop = image[top : top + window, left : left + window]
    if window != size:
        interpolation = cv2.INTER_AREA if window > size else cv2.INTER_CUBIC
        crop = cv2.resize(crop, (size, size), interpolation=interpolation)
    if rng.random() < config.flip_probability:
        crop = crop[:, ::-1]
    return np.ascontiguousarray(crop)


def tokenize(text: str, tokenizer: Tokenizer) -> Int[np.ndarray, "77"]:
    """CLIP token ids, padded or cut to 77 (the end token stays)."""
    ids = tokenizer(text, padding=False, truncation=False, verbose=False)["input_ids"]
    return np.array(pad_or_cut(ids, tokenizer.pad_token_id), np.int32)


def _caption(
    sample: Sample, degraded: Degraded, config: DataConfig, *, clean: bool, negative: bool, rng: np.random.Generator
) -> Caption:
    of_hr, of_lr = sample.caption, sample.lr_caption or Caption()
    high = (of_hr.high or of_lr.high) if config.high_caption_from == "hr" else (of_lr.high or of_hr.high)
    if config.low_caption_from == "drawn":
        low = describe(None if clean else degraded.drawn, rng)
    else:
        low = of_hr.low if clean else of_lr.low or of_hr.low
    drop_both, drop_high, drop_low = rng.random(3) < (config.caption_dropout, config.high_dropout, config.low_dropout)
    if negative:
        # The words must stay: an empty caption with a degraded target would teach that any image may stay degraded.
        words = ", ".join(config.negative_words)
        return Caption(f"{high} {words}" if high and rng.random() < 0.5 else words, low)
    return Caption("" if drop_both or drop_high else high, "" if drop_both or drop_low else low)


def _centred(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    return image.astype(np.float32) / np.float32(127.5) - np.float32(1)


def _check(config: DataConfig, *, seed: int, batch_size: int, process_index: int, process_count: int) -> None:
    if not 0 <= seed < 2**32:
        raise UserError(f"The data seed must lie in 0 to 2^32 - 1, got {seed}.")
    if not 0 <= process_index < process_count:
        raise ValueError(f"There is no process {process_index} of {process_count}.")
    if batch_size < 1 or batch_size % process_count:
        raise UserError(f"The batch size {batch_size} must be a positive multiple of the {process_count} processes.")
    upscale = config.degradation.upscale
    if config.crop_size < 1 or (config.degrade and config.crop_size % upscale):
        raise UserError(f"The crop size {config.crop_size} must be a positive multiple of upscale={upscale}.")
    low, high = config.crop_scale
    if not 0 < low <= high:
        raise UserError(f"crop_scale must be a rising range of positive factors, got {config.crop_scale}.")
    if config.negative_target_probability > 0 and not config.negative_words:
        raise UserError("negative_target_probability is set but negative_words is empty.")
