"""What the settings make of the sampling: its table, its first step, which steps are done alike; and the batches."""

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from xpsr_jax.config import Sampling
from xpsr_jax.diffusion.guidance import is_guided
from xpsr_jax.diffusion.making import make_sampler
from xpsr_jax.diffusion.process import levels_at
from xpsr_jax.diffusion.samplers import Sampler, Table
from xpsr_jax.diffusion.schedule import Schedule

Size = TypeVar("Size", bound=Hashable)
# Of Python or numpy on the host, of JAX within a program.
Number = float | Float[Any, ""]


class Run(NamedTuple):
    """Consecutive steps that are done alike: `first` to `last` - 1.

    Attributes:
        guided: whether the negative half is run.
        conditioned: whether the ControlNet's residuals count.
        features: what is done about features of the networks: "unused" (every step is whole), "kept" (a single whole
            step, which leaves them), "used" (of the step before, upon which the outermost layers alone are computed).
    """

    first: int
    last: int
    guided: bool
    conditioned: bool
    features: Literal["unused", "kept", "used"] = "unused"


class Scales(NamedTuple):
    """Numbers of a step, which may change without another program.

    Attributes:
        guidance: s of the guidance.
        rescale: of the guidance, from 0 to 1.
        conditioning: of the ControlNet's residuals.
    """

    guidance: Number
    rescale: Number
    conditioning: Number


@dataclass(frozen=True)
class Steps:
    """All that the settings and a model's noise schedule say of the steps.

    Attributes:
        sampler: which one.
        table: its steps, filled up to one length for any number of them.
        runs: the steps that are run, those done alike together.
        first_level: signal and sigma before the first step that is run.
        second_level: signal and sigma of the second noising, of the start "lr_noised_twice".
        sampling: the settings.
    """

    sampler: Sampler
    table: Table
    runs: tuple[Run, ...]
    first_level: tuple[Number, Number]
    second_level: tuple[Number, Number]
    sampling: Sampling

    @property
    def count(self) -> int:
        """Steps that are run for an image."""
        return sum(run.last - run.first for run in self.runs)

    @property
    def guided(self) -> bool:
        """Whether any of them has a negative half."""
        return any(run.guided for run in self.runs)

    @property
    def partly_guided(self) -> bool:
        """Whether some of them have a negative half and others do not."""
        return len({run.guided for run in self.runs}) > 1

    def scales(self, run: Run) -> Scales:
        """The numbers of a run's steps."""
        conditioning = self.sampling.conditioning_scale if run.conditioned else 0
        return Scales(float(self.sampling.guidance_scale), float(self.sampling.guidance_rescale), float(conditioning))


def plan_steps(sampling: Sampling, schedule: Schedule) -> Steps:
    """What is known of the steps before sampling. Raises UserError for settings that the schedule does not allow."""
    spacing = sampling.spacing or schedule.timestep_spacing
    schedule = dataclasses.replace(schedule, timestep_spacing=spacing)
    sampler = make_sampler(sampling, schedule)
    first = first_step(sampling)
    table = full_table(sampler, sampling.steps, first)
    return Steps(
        sampler,
        table,
        # No more than a tenth of the steps between two looks at the progress.
        tuple(plan_runs(sampling, at_most=max(sampling.steps // 10, 1))),
        first_level=(table.signal[first], table.sigma[first]),
        second_level=levels_at(schedule, jnp.int32(sampling.added_noise_level)),
        sampling=sampling,
    )


def full_table(sampler: Sampler, steps: int, first: int) -> Table:
    """A sampler's table, filled up to one length for any number of steps, so that one program serves them all."""
    padding = sampler.schedule.num_train_timesteps - steps
    table: Table = jax.tree.map(lambda column: np.pad(column, (0, padding)), sampler.table(steps, first))
    return table


def first_step(sampling: Sampling) -> int:
    """Index of the first step that is run: of 10 steps at strength 0.35, the last 3 are."""
    return sampling.steps - max(int(sampling.steps * sampling.strength), 1)


def plan_runs(sampling: Sampling, *, at_most: int) -> Iterator[Run]:
    """The steps that are run, in runs of `at_most`.

    Step i of n lies in an interval if i / n and (i + 1) / n do, whatever the strength. With a `cache_interval` of K,
    every K-th step of one form is whole, beginning with the first.
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
        if sampling.cache_interval == 1:
            for begin in range(first, last, at_most):
                yield Run(begin, min(begin + at_most, last), guided, conditioned)
            continue
        for begin in range(first, last, sampling.cache_interval):
            yield Run(begin, begin + 1, guided, conditioned, "kept")
            end = min(begin + sampling.cache_interval, last)
            if begin + 1 < end:
                yield Run(begin + 1, end, guided, conditioned, "used")


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
