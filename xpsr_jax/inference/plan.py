"""Plans the sampling from its settings (table, first step, runs of similar steps), and plans the batches of images."""

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
from xpsr_jax.diffusion.process import evaluations_of, levels_at
from xpsr_jax.diffusion.samplers import Sampler, Table
from xpsr_jax.diffusion.schedule import Schedule

Size = TypeVar("Size", bound=Hashable)
# A Python or numpy number on the host, a JAX scalar within a program.
Number = float | Float[Any, ""]


class Run(NamedTuple):
    """Consecutive steps that are computed in the same way: `first` to `last` - 1.

    Attributes:
        first: index of the first step.
        last: index after the last step.
        guided: whether the negative half is computed.
        conditioned: whether the ControlNet's residuals are used.
        features: how the networks' features are cached. "unused": every step computes all layers. "kept": a single step
            that computes all layers and keeps their features. "used": the steps compute only the outermost layers, from
            the kept features.
    """

    first: int
    last: int
    guided: bool
    conditioned: bool
    features: Literal["unused", "kept", "used"] = "unused"


class Scales(NamedTuple):
    """The scales of a step. They can change without a new compilation.

    Attributes:
        guidance: scale s of the guidance.
        rescale: rescaling of the guidance, from 0 to 1.
        conditioning: scale of the ControlNet's residuals.
    """

    guidance: Number
    rescale: Number
    conditioning: Number


@dataclass(frozen=True)
class Steps:
    """The plan of all steps, from the settings and the model's noise schedule.

    Attributes:
        sampler: the sampler.
        table: the sampler's table of steps, padded to the same length for any number of steps.
        runs: the steps that are run, grouped into runs.
        first_level: signal and sigma before the first step that is run.
        second_level: signal and sigma of the second noising, for the start "lr_noised_twice".
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
        """The number of steps that are run for an image."""
        return sum(run.last - run.first for run in self.runs)

    @property
    def guided(self) -> bool:
        """Whether any step has a negative half."""
        return any(run.guided for run in self.runs)

    @property
    def partly_guided(self) -> bool:
        """Whether some steps have a negative half and others do not."""
        return len({run.guided for run in self.runs}) > 1

    def scales(self, run: Run) -> Scales:
        """The scales of a run's steps."""
        conditioning = self.sampling.conditioning_scale if run.conditioned else 0
        return Scales(float(self.sampling.guidance_scale), float(self.sampling.guidance_rescale), float(conditioning))


def plan_steps(sampling: Sampling, schedule: Schedule) -> Steps:
    """Plans the steps of a sampling. Raises UserError for settings that the schedule does not allow."""
    spacing = sampling.spacing or schedule.timestep_spacing
    schedule = dataclasses.replace(schedule, timestep_spacing=spacing)
    sampler = make_sampler(sampling, schedule)
    first = first_step(sampling)
    table = full_table(sampler, sampling.steps, first)
    return Steps(
        sampler,
        table,
        # Progress is reported at least after every tenth of the steps.
        tuple(plan_runs(sampling, at_most=max(sampling.steps // 10, 1))),
        first_level=(table.signal[first], table.sigma[first]),
        second_level=levels_at(schedule, jnp.int32(sampling.added_noise_level)),
        sampling=sampling,
    )


def full_table(sampler: Sampler, steps: int, first: int) -> Table:
    """A sampler's table, padded to the same length for any number of steps, so that one program serves them all."""
    padding = sampler.schedule.num_train_timesteps - steps
    table: Table = jax.tree.map(lambda column: np.pad(column, (0, padding)), sampler.table(steps, first))
    return table


def first_step(sampling: Sampling) -> int:
    """The index of the first step that is run. Example: of 10 steps at strength 0.35, only the last 3 are run."""
    return sampling.steps - evaluations_of(sampling.steps, sampling.strength)


def plan_runs(sampling: Sampling, *, at_most: int) -> Iterator[Run]:
    """Groups the steps that are run into runs of `at_most` steps.

    Step i of n is in an interval if i / n and (i + 1) / n are. The strength does not matter for this. With a
    `cache_interval` of K, the first and then every K-th step computes all layers; the count starts again when guidance
    or conditioning changes.
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
    """Groups images of equal size into batches of at most `capacity`. Batches are in the order of their first images.

    An image of a size for which `alone` is true gets its own batch. Returns the indices of each batch.
    """
    groups: dict[Size, list[int]] = {}
    for i, size in enumerate(sizes):
        groups.setdefault(size, []).append(i)
    batches = []
    for size, group in groups.items():
        most = 1 if alone(size) else capacity
        batches += [group[i : i + most] for i in range(0, len(group), most)]
    return sorted(batches, key=lambda batch: batch[0])
