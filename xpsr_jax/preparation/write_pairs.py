"""Writes ready-made pairs: training sets in the released layout (method §6, §9), and sets for evaluation."""

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

import cv2
import numpy as np
from jaxtyping import UInt8

from xpsr_jax.data.captions import Caption, write_captions
from xpsr_jax.data.config import DataConfig
from xpsr_jax.data.examples import Pair, make_pair
from xpsr_jax.data.offline_pairs import CLEAN, HIGH_HR, HIGH_LR, LOW_HR, LOW_LR
from xpsr_jax.data.quality import describe
from xpsr_jax.data.sample_sources import StoredSource
from xpsr_jax.data.samples import Sample
from xpsr_jax.errors import UserError
from xpsr_jax.preparation.pieces import Choice, Outcome
from xpsr_jax.serialisation import Range, check_fields

# Limit of a file name, in bytes.
_LONGEST_NAME = 255


@dataclass(frozen=True)
class WritePairs:
    """Writes pairs. Pair number n = round * images + image: each round has one crop of every image.

    A pair is a pure function of the seed and its number.

    Attributes:
      images: number of images to use, from the start of the source.
      first_stage: folder of a first stage whose pictures are written too, as `first_stage/<name>.png`; None: no
        pictures.
      evaluation: False: `dataset_<round>/HR/<name>.png`, LR at the same size, and a text file for each caption, which
        `OfflinePairs` reads. True: `HR/<name>_<round>.png`, LR at its own size, and both captions of the LR image for
        `write_evaluation_captions`.
    """

    source: StoredSource
    choice: Choice
    data: DataConfig
    seed: Annotated[int, Range(0, 2**64 - 1)]
    images: int
    evaluation: bool
    first_stage: Path | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, folder: Path, number: int, numbers: range) -> Outcome:
        """Writes one piece's pairs. The outcome reports images that `choice` leaves out.

        Args:
          folder: the folder of the whole result; subfolders are created.
          number: the number of the piece; not used, because each pair has its own files.
          numbers: the numbers of the pairs, each round * images + image.

        Raises UserError if the source already contains pairs.
        """
        outcome = Outcome()
        for n in numbers:
            round_, index = divmod(n, self.images)
            if (found := self.choice.read(self.source, index, outcome)) is None:
                continue
            sample, rng = found[1], np.random.default_rng((self.seed, n))
            if sample.lr is not None:
                raise UserError(f"{self.source.root} already contains pairs; name a source of photographs.")
            pair = make_pair(sample, self.data, rng)
            name = PurePosixPath(sample.path).with_suffix("")
            if self.evaluation:
                self._write_evaluation(folder, f"{name}_{round_}", sample, pair, outcome)
            else:
                self._write_training(folder / f"dataset_{round_}", name, sample, pair, rng)
            outcome.written += 1
        return outcome

    def _write_training(
        self, folder: Path, name: PurePosixPath, sample: Sample, pair: Pair, rng: np.random.Generator
    ) -> None:
        of_lr = sample.lr_caption or Caption()
        drawn = self.data.low_caption_from == "drawn"
        texts = {
            HIGH_HR: sample.caption.high,
            HIGH_LR: of_lr.high,
            LOW_LR: describe(pair.drawn, rng) if drawn else of_lr.low,
            LOW_HR: describe(None, rng) if drawn else sample.caption.low,
        }
        for kind, text in texts.items():
            _write(folder / kind / f"{name}.txt", (" ".join(text.split()) + "\n").encode())
        pictures = {"HR": pair.hr, "LR": pair.lr}
        if self.first_stage is not None:
            assert pair.small is not None
            pictures[CLEAN] = _first_stage(self.first_stage)(pair.small)
        for kind, image in pictures.items():
            _write(folder / kind / f"{name}.png", _png(image))

    def _write_evaluation(self, folder: Path, name: str, sample: Sample, pair: Pair, outcome: Outcome) -> None:
        assert pair.small is not None
        _write(folder / "HR" / f"{name}.png", _png(pair.hr))
        _write(folder / "LR" / f"{name}.png", _png(pair.small))
        outcome.captions[f"{name}.png"] = [sample.caption.high, describe(pair.drawn)]


@functools.cache
def _first_stage(folder: Path) -> Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "H W 3"]]:
    """The first stage in a folder, as a function of LR images. Raises UserError if its picture is not finite."""
    # Imported here, because only pairs with a first stage need JAX.
    from flax import nnx

    from xpsr_jax.inference.compilation import use_compilation_cache
    from xpsr_jax.inference.first_stage import run_first_stage
    from xpsr_jax.weights.networks import FIRST_STAGE, load_network

    use_compilation_cache()
    graph, weights = nnx.split(load_network(FIRST_STAGE, folder))

    def clean(small: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
        pictures, finite = run_first_stage(graph, weights, small[None])
        if not bool(finite[0]):
            raise UserError(f"{folder}: the first stage's picture has NaN or infinite values; try other weights")
        return np.asarray(pictures[0])

    return clean


def _write(file: Path, content: bytes) -> None:
    """Writes a file without a temporary name. The whole folder has one, and an interrupted piece is written again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def _png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def write_evaluation_captions(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Writes `LR/captions.jsonl`, which `xpsr restore` needs in addition to the LR images."""
    captions = {name: Caption(*texts) for outcome in outcomes for name, texts in outcome.captions.items()}
    (folder / "LR").mkdir(exist_ok=True)  # Missing if the pictures were already uploaded to a bucket.
    write_captions(folder / "LR" / "captions.jsonl", captions)


def check_names(names: Sequence[str], *, rounds: int, evaluation: bool) -> None:
    """Raises UserError if two images' pairs would have the same name (a.png and a.jpg), or if a name is too long.

    Args:
        rounds, evaluation: as in `WritePairs`. The names of evaluation pairs also contain the round.
    """
    ending = f"_{rounds - 1}.png" if evaluation else ".png"
    seen: dict[PurePosixPath, str] = {}
    for name in names:
        if len(os.fsencode(PurePosixPath(name).stem + ending)) > _LONGEST_NAME:
            raise UserError(f"{name}: the names of its pairs would have more than {_LONGEST_NAME} bytes; rename it")
        other = seen.setdefault(PurePosixPath(name).with_suffix(""), name)
        if other != name:
            raise UserError(f"the pairs of {other} and {name} would have the same name; rename one of the images")
