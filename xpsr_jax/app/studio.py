"""A model that stays in memory, and restores one file after the other."""

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

# The longest file name, in bytes. `free_path` may add a number to it.
_LONGEST_NAME = 250
# The most sizes of pictures for which compiled programs are kept. JAX would keep all of them for ever.
MAX_SIZES = 16


class Settings(NamedTuple):
    """The settings of a restoration."""

    sampling: Sampling
    seed: int
    format: Format

    def name_of(self, source: Path) -> str:
        """The file name of the result. A very long name is cut."""
        ending = f"_restored{SUFFIX_OF[self.format]}"
        return os.fsencode(source.stem)[: _LONGEST_NAME - len(ending)].decode(errors="ignore") + ending


class Studio:
    """Restores files like `xpsr restore`, one at a time over all visitors.

    Compiled programs are kept between files. A new seed, strength, number of steps or scale needs no compilation.

    Attributes:
        defaults: the model's own settings.
        least_steps: the smallest number of steps. 0 for a model with a first stage (0 steps return that stage's
            result), otherwise 1.
        note: the model's note.
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
        """Reads an image. Raises UserError if the file is not an image or is too large."""
        return read_picture(source, max_pixels=self._max_pixels)

    def restore_files(
        self, tasks: Sequence[Task], settings: Settings, *, on_progress: Callable[[Progress], None]
    ) -> Iterator[Restored | Failed]:
        """Restores files with `inference.job.restore_files`. A file that fails does not end the work.

        Args:
            tasks: the files.
            settings: the settings for all of them.
            on_progress: an exception that it raises ends the work.

        Raises UserError if a setting cannot be used, or if the disk is full.
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
        """Restores one file. Writes the same result as `xpsr restore` to `output`.

        Args:
            on_steps: called with the number of finished steps (first with 0) and of all steps. An exception that it
                raises ends the work.

        Raises:
            UserError: the file is not an image, it or the result is too large, or a setting cannot be used.
        """
        task = Task(source, output, caption, source.name)
        events = self.restore_files([task], settings, on_progress=lambda now: on_steps(now.done, now.total))
        for event in events:
            if isinstance(event, Failed):
                raise UserError(event.message)

    @contextlib.contextmanager
    def at_work(self, size: tuple[int, int]) -> Iterator[None]:
        """Holds the lock while a picture of this network size is restored. Other restorations wait."""
        with self._at_work:
            self._sizes.add(size)
            if len(self._sizes) > MAX_SIZES:
                jax.clear_caches()
                self._sizes = {size}
            yield


class _OneAtATime(Restorer):
    """A Restorer that shares a lock with the other restorers of its studio, so that only one works at a time."""

    def __init__(self, studio: Studio, model: Model, sampling: Sampling) -> None:
        super().__init__(model, sampling)
        self._studio = studio

    def __call__(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], *args: Any, **options: Any) -> Any:
        with self._studio.at_work(self.network_size(*images[0].shape[:2])):
            return super().__call__(images, *args, **options)
