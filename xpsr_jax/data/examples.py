"""Makes a training example: crop, flip, degrade, caption, tokenise (method §6, §9)."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from xpsr_jax.data.captions import Caption
from xpsr_jax.data.config import DataConfig
from xpsr_jax.data.degradation import Drawn, degrade
from xpsr_jax.data.embeddings import TextEmbeddings
from xpsr_jax.data.quality import describe
from xpsr_jax.data.resize import resize
from xpsr_jax.data.rounding import round_to_uint8
from xpsr_jax.data.samples import Sample
from xpsr_jax.data.tokens import pad_or_cut
from xpsr_jax.errors import UserError

Example = dict[str, np.ndarray]


@runtime_checkable
class Tokenizer(Protocol):
    """The part of a transformers CLIPTokenizer that is used here."""

    pad_token_id: int

    def __call__(self, text: str, **options: bool) -> Mapping[str, list[int]]:
        """The tokenised text: a mapping with its token ids under "input_ids".

        Args:
          text: a caption.
          options: `padding`, `truncation` and others of transformers' tokenizers.
        """
        ...


class Pair(NamedTuple):
    """A target and its degraded version.

    Attributes:
      hr: the target.
      lr: the degraded version at the same size.
      small: the degraded version before it was enlarged; None for a ready-made pair.
      drawn: the drawn degradation; None for a ready-made pair, where it is unknown.
      first_stage: the first stage's picture of the degraded version, at the same size; None if it is not stored.
    """

    hr: UInt8[np.ndarray, "s s 3"]
    lr: UInt8[np.ndarray, "s s 3"]
    small: UInt8[np.ndarray, "s/4 s/4 3"] | None
    drawn: Drawn | None
    first_stage: UInt8[np.ndarray, "s s 3"] | None = None


def make_example(
    sample: Sample,
    config: DataConfig,
    *,
    tokenizer: Tokenizer | None,
    embeddings: TextEmbeddings | None = None,
    first_stage: bool = False,
    seed: int,
    index: int,
) -> Example:
    """One element of the batches of `make_pipeline`, without the batch axis. Pure in (seed, index).

    Args:
      sample: the photograph, or a ready-made pair.
      tokenizer: a transformers CLIPTokenizer; not needed with `config.degrade=False`.
      embeddings: text embeddings to use instead of tokens; None: tokens.
      first_stage: whether the model has a first stage. Its stored picture is then `lr`; with
        `config.first_stage="computed"` the example also has the arrays that the picture is computed from.
      seed: the run's seed.
      index: position in the endless stream, from 0.

    Raises UserError for a pair whose sizes do not fit, a caption without an embedding, a first stage's picture that is
    not stored but should be, or a ready-made pair whose first stage's picture should be computed.
    """
    rng = np.random.default_rng((seed, index))
    example: Example = {"key": np.asarray(rng.integers(2**32, dtype=np.uint32)), "index": np.asarray(index, np.int64)}
    if not config.degrade:
        return example | {"hr": _centred(random_crop(sample.image, config, rng))}
    if tokenizer is None:
        raise ValueError("Degraded examples have captions, which need a tokenizer.")

    pair = make_pair(sample, config, rng)
    negative = rng.random() < config.negative_target_probability
    clean = rng.random() < config.clean_input_probability and not negative
    caption = choose_caption(sample, pair, config, clean=clean, negative=negative, rng=rng)
    for name, text in (("high", caption.high), ("low", caption.low)):
        ids = tokenize_caption(text, tokenizer)
        example |= {f"{name}_ids": ids} if embeddings is None else {f"{name}_embedding": embeddings.find(ids, text)}
    lr = pair.lr
    if first_stage and config.first_stage == "stored":
        if pair.first_stage is None:
            raise UserError(
                f"{sample.path} has no stored picture of the first stage. Make pairs with xpsr "
                "prepare pairs --first-stage, or let training compute the pictures: --data.first-stage computed"
            )
        lr = pair.first_stage
    elif first_stage:
        if pair.small is None:
            raise UserError(
                f"{sample.path} is a ready-made pair, for which the first stage's picture cannot be computed; use "
                "--data.first-stage stored"
            )
        example |= {"small": _from_8_bits(pair.small), "clean": np.asarray(clean)}
    return example | {
        "hr": _centred(pair.lr if negative else pair.hr),
        "lr": _from_8_bits(pair.hr if clean else lr),
    }


def make_pair(sample: Sample, config: DataConfig, rng: np.random.Generator) -> Pair:
    """A crop of the photograph and its degraded version. For a ready-made pair, the same crop of both images.

    Raises:
      UserError: a ready-made LR image does not fit its HR image.
    """
    if sample.lr is not None:
        # Pairs were scaled, mirrored and cut when they were made (method §6).
        as_stored = dataclasses.replace(config, crop_scale=(1.0, 1.0), flip_probability=0.0)
        images = [sample.image, _enlarge(sample)]
        if sample.first_stage is not None:
            if sample.first_stage.shape != sample.image.shape:
                raise UserError(
                    f"The first stage's picture of {sample.path} does not have the size of the HR image. Make the "
                    "pairs again with xpsr prepare pairs --first-stage"
                )
            images.append(sample.first_stage)
        together = random_crop(np.concatenate(images, axis=2), as_stored, rng)
        hr, lr, *clean = (np.ascontiguousarray(image) for image in np.split(together, len(images), axis=2))
        return Pair(hr, lr, None, None, clean[0] if clean else None)
    crop = random_crop(sample.image, config, rng)
    degraded = degrade(crop.astype(np.float32) / np.float32(255), config.degradation, rng)
    lr = round_to_uint8(resize(degraded.lr, crop.shape[:2], "bicubic"))
    return Pair(round_to_uint8(degraded.hr), lr, round_to_uint8(degraded.lr), degraded.drawn)


def _enlarge(sample: Sample) -> UInt8[np.ndarray, "h w 3"]:
    """The ready-made LR image at the HR image's size."""
    assert sample.lr is not None
    size, small = sample.image.shape[:2], sample.lr.shape[:2]
    if size == small:
        return sample.lr
    if size[0] % small[0] or size[0] * small[1] != size[1] * small[0]:
        raise UserError(
            f"The LR image of {sample.path} has {small[1]} x {small[0]} pixels, its HR image {size[1]} x {size[0]}; "
            "they must have the same size, or the HR image must be larger by a whole factor."
        )
    return round_to_uint8(resize(sample.lr.astype(np.float32) / np.float32(255), size, "bicubic"))


def random_crop(
    image: UInt8[np.ndarray, "h w c"], config: DataConfig, rng: np.random.Generator
) -> UInt8[np.ndarray, "s s c"]:
    """A square crop of the photograph, randomly reduced and mirrored.

    A photograph smaller than the crop is extended by reflection to the right and below.

    Args:
      image: 8 bits; 3 channels, or the channels of several images of one size together.
      config: its `crop_size`, `crop_scale` and `flip_probability` are used.
      rng: draws the scale, the position and the mirroring, in this order.
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


def tokenize_caption(text: str, tokenizer: Tokenizer) -> Int[np.ndarray, "77"]:
    """CLIP token ids, padded or cut to 77 (the end token stays)."""
    ids = tokenizer(text, padding=False, truncation=False, verbose=False)["input_ids"]
    return np.array(pad_or_cut(ids, tokenizer.pad_token_id), np.int32)


def choose_caption(
    sample: Sample, pair: Pair, config: DataConfig, *, clean: bool, negative: bool, rng: np.random.Generator
) -> Caption:
    """The two captions of a pair, randomly dropped (method §6).

    Args:
      sample: provides the captions of the files.
      pair: provides the drawn degradation for the low-level caption.
      clean: whether the LR image is the HR image itself.
      negative: whether the target stays degraded. The high-level caption then has `config.negative_words`, and nothing
        is dropped.
    """
    of_hr, of_lr = sample.caption, sample.lr_caption or Caption()
    high = (of_hr.high or of_lr.high) if config.high_caption_from == "hr" else (of_lr.high or of_hr.high)
    if config.low_caption_from == "drawn" and pair.drawn is not None:
        low = describe(None if clean else pair.drawn, rng)
    else:
        low = of_hr.low if clean else of_lr.low or of_hr.low
    drop_both, drop_high, drop_low = rng.random(3) < (config.caption_dropout, config.high_dropout, config.low_dropout)
    if negative:
        # The words must stay: an empty caption with a degraded target would teach that any image may stay degraded.
        words = ", ".join(config.negative_words)
        return Caption(f"{high} {words}" if high and rng.random() < 0.5 else words, low)
    return Caption("" if drop_both or drop_high else high, "" if drop_both or drop_low else low)


def _from_8_bits(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    return image.astype(np.float32) / np.float32(255)


def _centred(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    return image.astype(np.float32) / np.float32(127.5) - np.float32(1)
