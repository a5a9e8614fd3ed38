"""Several processes that work as one, each with its own devices: a TPU pod, SLURM, Kubernetes, or some started by hand.

Everything here does without others where there is one process.
"""

from collections.abc import Callable

import jax
import jax.extend.backend
import numpy as np
from jax.experimental import multihost_utils

from xpsr_jax.config import ProcessMode
from xpsr_jax.errors import UserError


def start(
    mode: ProcessMode = "auto",
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Joins this process with the others. To be called before anything touches a device.

    Args:
      mode: "on": there are others, or it is an error. "auto": if JAX finds that there are (Cloud TPU, SLURM, Open MPI,
        Kubernetes), or if the arguments below say so. "off": this process is alone.
      coordinator: host and port of the first process, host:port; None: as JAX finds it.
      processes: their number; None: as JAX finds it.
      process: number of this one, from 0; None: as JAX finds it.

    Raises UserError if something of this is missing or contradicts itself.
    """
    named = [value for value in (coordinator, processes, process) if value is not None]
    if mode == "off":
        if named:
            raise UserError("--distributed off goes with no --coordinator, --processes or --process")
        return
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except ValueError as error:
        # This is how JAX says that it found no cluster.
        if mode == "auto" and not named and "coordinator_address should be defined" in str(error):
            return
        raise UserError(
            f"the processes cannot be joined ({error}). JAX finds Cloud TPU, SLURM, Open MPI and Kubernetes by itself; "
            "elsewhere name --coordinator HOST:PORT, --processes N and --process I, I from 0 to N - 1"
        ) from error


def part_of(
    mode: ProcessMode = "auto",
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> tuple[int, int]:
    """Which process this is, from 0, and of how many, for work that they share without working as one.

    They meet for a moment to learn it, if nobody tells them; then none waits for another, or falls with it. To be
    called before anything touches a device. Arguments and errors are those of `start`, but a coordinator need not be
    named.
    """
    if mode != "off" and coordinator is None and processes is not None and process is not None:
        if not 0 <= process < processes:
            raise UserError(f"--process must be from 0 to --processes - 1, not {process} of {processes}")
        return process, processes
    try:
        start(mode, coordinator=coordinator, processes=processes, process=process)
    except RuntimeError:
        # A program that uses devices already is one that calls this as a function.
        if mode == "on" or (coordinator, processes, process) != (None, None, None):
            raise
    if not jax.distributed.is_initialized():
        return 0, 1
    # Asked of the CPU, whose devices are then forgotten: any made now would depend on the others for ever.
    platforms = jax.config.values["jax_platforms"]
    jax.config.update("jax_platforms", "cpu")
    try:
        found = jax.process_index(), jax.process_count()
        jax.extend.backend.clear_backends()
    finally:
        jax.config.update("jax_platforms", platforms)
        jax.distributed.shutdown()
    return found


def is_first() -> bool:
    """Whether this is the process that writes what only one may write."""
    return jax.process_index() == 0


def all_agree(verdict: bool) -> bool:
    """Whether the verdict is True in every process. All have to ask."""
    return bool(np.all(multihost_utils.process_allgather(np.asarray(verdict))))


def by_first(act: Callable[[], object]) -> None:
    """Lets the first process act. Raises UserError in all of them if it does there."""
    problem: UserError | None = None
    try:
        if is_first():
            act()
    except UserError as error:
        problem = error
    if not all_agree(problem is None):
        raise problem or UserError("the first process cannot go on; it says why")


def from_first(values: np.ndarray) -> np.ndarray:
    """The first process's array, in every process. All have to give one of its shape and type, and to call this."""
    return np.asarray(multihost_utils.broadcast_one_to_all(values))


def from_all(values: np.ndarray) -> np.ndarray:
    """The arrays of all processes, one after the other along the first axis. All have to call it."""
    return np.asarray(multihost_utils.process_allgather(values, tiled=True))


def whole(array: jax.Array) -> np.ndarray:
    """An array on the host, whichever devices and processes hold its parts. All have to call it."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def wait_for_all(what: str) -> None:
    """Until every process is here."""
    multihost_utils.sync_global_devices(what)
