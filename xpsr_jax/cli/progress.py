"""The progress bar for a list of images, and the total time."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from xpsr_jax.errors import printable

if TYPE_CHECKING:
    from xpsr_jax.inference.job import Progress


class ImagesBar:
    """Shows the finished part of the work, the remaining time and the current image.

    The remaining time is computed from the work. A step of a large image counts more than a step of a small one.
    """

    def __init__(self, images: int, *, quiet: bool) -> None:
        """
        Args:
            images: number of images to restore.
            quiet: show nothing. Without a terminal, nothing is shown either.
        """
        form = "{percentage:3.0f}% |{bar:20}| {desc} [{elapsed} elapsed, {remaining} left]"
        self._bar = tqdm(total=1.0, bar_format=form, disable=True if quiet else None)
        self._images, self._finished, self._begin = images, 0, time.perf_counter()

    def show(self, progress: "Progress") -> None:
        """Updates the bar."""
        name = printable(Path(progress.at.name).name)
        self._bar.set_description_str(
            f"{min(self._finished + 1, self._images)} of {self._images}: {name}", refresh=False
        )
        self._bar.update(progress.work - self._bar.n)

    def count(self) -> None:
        """Counts one more image as restored or failed."""
        self._finished += 1

    def end(self, restored: int) -> str:
        """Closes the bar; returns the time that the images took as the end of a line, "" if none was restored."""
        self._bar.close()
        seconds = time.perf_counter() - self._begin
        return f"; {tqdm.format_interval(seconds)} in total, {seconds / restored:.1f} s per image" if restored else ""
