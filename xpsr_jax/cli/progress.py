"""The progress bar of a list of images, and how long all took."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from xpsr_jax.errors import printable

if TYPE_CHECKING:
    from xpsr_jax.inference.job import Progress


class ImagesBar:
    """Shows how much of the work is done, the time left, and the image at hand.

    tqdm computes the time left from the work, in which a step of a large image counts for more than one of a small.
    """

    def __init__(self, images: int, *, quiet: bool) -> None:
        """
        Args:
            images: to restore.
            quiet: show nothing; it shows nothing either where no terminal is.
        """
        form = "{percentage:3.0f}% |{bar:20}| {desc} [{elapsed} so far, {remaining} left]"
        self._bar = tqdm(total=1.0, bar_format=form, disable=True if quiet else None)
        self._images, self._finished, self._begin = images, 0, time.perf_counter()

    def show(self, progress: "Progress") -> None:
        """Moves the bar."""
        name = printable(Path(progress.at.name).name)
        self._bar.set_description_str(
            f"{min(self._finished + 1, self._images)} of {self._images}: {name}", refresh=False
        )
        self._bar.update(progress.work - self._bar.n)

    def count(self) -> None:
        """One image more is restored, or has failed."""
        self._finished += 1

    def end(self, restored: int) -> str:
        """Takes the bar away; returns how long so many images took, for the end of a line, nothing for none."""
        self._bar.close()
        seconds = time.perf_counter() - self._begin
        return f"; {tqdm.format_interval(seconds)} in all, {seconds / restored:.1f} s an image" if restored else ""
