"""A model that is kept ready, and restores one file after the other."""

import functools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax

from xpsr_jax.config import Sampling
from xpsr_jax.data.captions import Caption
from xpsr_jax.errors import UserError
from xpsr_jax.images.picture import Picture
from xpsr_jax.images.reading import read_picture
from xpsr_jax.images.writing import SUFFIX_OF, Format
from xpsr_jax.inference.files import checked_size, write_restored
from xpsr_jax.inference.restore import Restorer, not_finite
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
    """Restores files as sample.py does, one at a time, whoever asks.

    Programs are kept from one file to the next: seed, strength, steps and scales need no new ones.

    Attributes:
        defaults: the model's own settings.
        note: the model's.
    """

    def __init__(self, model: Model, *, max_pixels: int) -> None:
        self.defaults: Sampling = model.defaults
        self.note = model.note
        self._max_pixels = max_pixels
        self._restorer = functools.lru_cache(maxsize=4)(functools.partial(Restorer, model))
        self._sizes: set[tuple[int, int]] = set()
        self._at_work = threading.Lock()

    def read(self, source: Path) -> Picture:
        """Raises UserError if it is no image or too large."""
        return read_picture(source, max_pixels=self._max_pixels)

    def restore_file(
        self,
        source: Path,
        output: Path,
        caption: Caption,
        settings: Settings,
        *,
        on_steps: Callable[[int, int], None],
    ) -> None:
        """Writes to `output` what sample.py would.

        Args:
            on_steps: called with the number of steps done and of all, at first with 0. What it raises ends the work.

        Raises:
            UserError: the file is no image, it or the result is too large, or a setting cannot be used.
        """
        restorer = self._restorer(settings.sampling)
        size = checked_size(restorer, source, self._max_pixels, settings.format)
        picture = self.read(source)
        done = 0

        def advance(steps: int) -> None:
            nonlocal done
            done += steps
            on_steps(done, restorer.steps)

        with self._at_work:
            self._sizes.add(size)
            if len(self._sizes) > MAX_SIZES:
                jax.clear_caches()
                self._sizes = {size}
            advance(0)
            [rgb] = restorer([picture.rgb], [caption], seed=settings.seed, on_steps=advance)
        if rgb is None:
            raise UserError(not_finite(source.name))
        write_restored(output, picture, rgb, upscale=settings.sampling.upscale, format=settings.format)
