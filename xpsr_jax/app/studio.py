"""A model that is kept ready, and restores one file after the other."""

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

from xpsr_jax.config import Sampling
from xpsr_jax.data.captions import Caption
from xpsr_jax.errors import UserError
from xpsr_jax.images.picture import Picture
from xpsr_jax.images.reading import read_picture
from xpsr_jax.images.writing import SUFFIX_OF, Format
from xpsr_jax.inference.job import Failed, Policy, Progress, Restored, Task, restore_files
from xpsr_jax.inference.restore import Restorer
from xpsr_jax.weights.model_folder import Model

# Bytes of a file's name; `unused` may add a number.
_LONGEST_NAME = 250
# Pictures of another size need programs of their own. JAX would keep them for ever.
MAX_SIZES = 16


class Settings(NamedTuple):
    """How to restore."""

    sampling: Sampling
    seed: int
    format: Format

    def name_of(self, source: Path) -> str:
        """What the result is called; the name of a photograph whose name is very long is cut."""
        ending = f"_restored{SUFFIX_OF[self.format]}"
        return os.fsencode(source.stem)[: _LONGEST_NAME - len(ending)].decode(errors="ignore") + ending


class Studio:
    """Restores files as `xpsr restore` does, one at a time, whoever asks.

    Programs are kept from one file to the next: seed, strength, steps and scales need no new ones.

    Attributes:
        defaults: the model's own settings.
        least_steps: 0 where the model has a first stage, whose picture is the result then; otherwise 1.
        note: the model's.
    """

    def __init__(self, model: Model, *, max_pixels: int) -> None:
        self.defaults: Sampling = model.defaults
        self.least_steps = 1 if model.first_stage is None else 0
        self.note = model.note
        self._max_pixels = max_pixels
        self._restorer = functools.lru_cache(maxsize=4)(functools.partial(_OneAtATime, self, model))
        self._sizes: set[tuple[int, int]] = set()
        self._at_work = threading.Lock()

    def read(self, source: Path) -> Picture:
        """Raises UserError if it is no image or too large."""
        return read_picture(source, max_pixels=self._max_pixels)

    def restore_files(
        self, tasks: Sequence[Task], settings: Settings, *, on_progress: Callable[[Progress], None]
    ) -> Iterator[Restored | Failed]:
        """What `inference.job.restore_files` yields; a file that fails does not end the work.

        Args:
            on_progress: what it raises ends the work.

        Raises UserError if a setting cannot be used, or for a full disk.
        """
        policy = Policy(self._max_pixels, settings.seed, settings.format, skip_errors=True)
        yield from restore_files(self._restorer(settings.sampling), tasks, policy, on_progress=on_progress)

    def restore_file(
        self,
        source: Path,
        output: Path,
        caption: Caption,
        settings: Settings,
        *,
        on_steps: Callable[[int, int], None],
    ) -> None:
        """Writes to `output` what `xpsr restore` would.

        Args:
            on_steps: called with the number of steps done and of all, at first with 0. What it raises ends the work.

        Raises:
            UserError: the file is no image, it or the result is too large, or a setting cannot be used.
        """
        task = Task(source, output, caption, source.name)
        events = self.restore_files([task], settings, on_progress=lambda now: on_steps(now.done, now.total))
        for event in events:
            if isinstance(event, Failed):
                raise UserError(event.message)

    @contextlib.contextmanager
    def at_work(self, size: tuple[int, int]) -> Iterator[None]:
        """While a picture of this network size is restored. Others wait."""
        with self._at_work:
            self._sizes.add(size)
            if len(self._sizes) > MAX_SIZES:
                jax.clear_caches()
                self._sizes = {size}
            yield


class _OneAtATime(Restorer):
    """A Restorer that waits for the others of its studio."""

    def __init__(self, studio: Studio, model: Model, sampling: Sampling) -> None:
        super().__init__(model, sampling)
        self._studio = studio

    def __call__(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], *args: Any, **options: Any) -> Any:
        with self._studio.at_work(self.network_size(*images[0].shape[:2])):
            return super().__call__(images, *args, **options)
