"""What the settings make of the sampling: its first step, which steps are done alike; and the batches."""

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import jax
import numpy as np

from xpsr_jax.config import Sampling
from xpsr_jax.diffusion.guidance import is_guided
from xpsr_jax.diffusion.samplers import Sampler, Table

Size = TypeVar("Size", bound=Hashable)


class Run(NamedTuple):
    """Consecutive steps that are done alike: `first` to `last` - 1.

    Attributes:
        guided: whether the negative half is run.
        conditioned: whether the ControlNet's residuals count.
    """

    first: int
    last: int
    guided: bool
    conditioned: bool


def full_table(sampler: Sampler, steps: int, first: int) -> Table:
    """A sampler's table, filled up to one length for any number of steps, so that one program serves them all."""
    padding = sampler.schedule.num_train_timesteps - steps
    return jax.tree.map(lambda column: np.pad(column, (0, padding)), sampler.table(steps, first))


def first_step(sampling: Sampling) -> int:
    """Index of the first step that is run: of 10 steps at strength 0.35, the last 3 are."""
    return sampling.steps - max(int(sampling.steps * sampling.strength), 1)


def plan_runs(sampling: Sampling, *, at_most: int) -> Iterator[Run]:
    """The steps that are run, in runs of `at_most`.

    Step i of n lies in an interval if i / n and (i + 1) / n do, whatever the strength.
    """

    def within(interval: tuple[float, float], step: int) -> bool:
        return interval[0] <= step / sampling.steps and (step + 1) / sampling.steps <= interval[1]

    guidance = is_guided(sampling.guidance_scale, sampling.guidance_form)

    def done_as(step: int) -> tuple[bool, bool]:
        guided = guidance and within(sampling.guidance_interval, step)
        return guided, within(sampling.conditioning_interval, step)

    for (guided, conditioned), steps in itertools.groupby(range(first_step(sampling), sampling.steps), done_as):
        first, *others = steps
        last = first + len(others) + 1
        for begin in range(first, last, at_most):
            yield Run(begin, min(begin + at_most, last), guided, conditioned)


def plan_batches(
    sizes: Sequence[Size], capacity: int, alone: Callable[[Size], bool] = lambda size: False
) -> list[list[int]]:
    """Indices of images in batches of one size, at most `capacity` each, in the order of their first images.

    Images of a size for which `alone` is true get a batch each.
    """
    groups: dict[Size, list[int]] = {}
    for i, size in enumerate(sizes):
        groups.setdefault(size, []).append(i)
    batches = []
    for size, group in groups.items():
        most = 1 if alone(size) else capacity
        batches += [group[i : i + most] for i in range(0, len(group), most)]
    return sorted(batches, key=lambda batch: batch[0])
