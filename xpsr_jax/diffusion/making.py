"""Makes the sampler that the settings name."""

from typing import Protocol, runtime_checkable

from xpsr_jax.diffusion.choices import SamplerName
from xpsr_jax.diffusion.consistency import Consistency
from xpsr_jax.diffusion.ddim import Ddim
from xpsr_jax.diffusion.ddpm import Ddpm
from xpsr_jax.diffusion.dpm_solver import DpmSolver
from xpsr_jax.diffusion.euler import Euler
from xpsr_jax.diffusion.samplers import Sampler
from xpsr_jax.diffusion.schedule import Schedule
from xpsr_jax.diffusion.unipc import UniPc


@runtime_checkable
class SamplerSettings(Protocol):
    """The fields of `config.Sampling` that `make_sampler` reads.

    Attributes:
        sampler: the sampler's name.
        eta: randomness of "ddim", from 0 (none) to 1 (as random as DDPM).
        karras: visit Karras' noise levels; only for the samplers in `choices.KARRAS`.
    """

    @property
    def sampler(self) -> SamplerName:
        """Name of the sampler."""
        ...

    @property
    def eta(self) -> float:
        """From 0 to 1; used only by "ddim"."""
        ...

    @property
    def karras(self) -> bool:
        """Whether to visit Karras' noise levels; used only by the samplers in `choices.KARRAS`."""
        ...


def make_sampler(settings: SamplerSettings, schedule: Schedule) -> Sampler:
    """The sampler that the settings name."""
    match settings.sampler:
        case "ddpm":
            return Ddpm(schedule)
        case "ddim":
            return Ddim(schedule, settings.eta)
        case "dpm_solver":
            return DpmSolver(schedule, settings.karras)
        case "unipc":
            return UniPc(schedule, settings.karras)
        case "euler":
            return Euler(schedule, karras=settings.karras)
        case "euler_ancestral":
            return Euler(schedule, ancestral=True)
        case "consistency":
            return Consistency(schedule)
