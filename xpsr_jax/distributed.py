"""Several processes that work together, each with its own devices: a TPU pod, SLURM, Kubernetes, or started by hand.

All functions also work with a single process.
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
    """Joins this process with the others. Call it before anything touches a device.

    Args:
      mode: "on": there must be other processes. "auto": join if JAX finds a cluster (Cloud TPU, SLURM, Open MPI,
        Kubernetes), or if the arguments below are set. "off": this process works alone.
      coordinator: address of the first process, host:port; None: found by JAX.
      processes: number of processes; None: found by JAX.
      process: number of this process, from 0; None: found by JAX.

    Raises UserError if a value is missing or contradicts another.
    """
    named = [value for value in (coordinator, processes, process) if value is not None]
    if mode == "off":
        if named:
            raise UserError("--distributed off cannot be used with --coordinator, --processes or --process")
        return
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except ValueError as error:
        # This error means that JAX found no cluster.
        if mode == "auto" and not named and "coordinator_address should be defined" in str(error):
            return
        raise UserError(
            f"the processes cannot be joined ({error}). JAX finds Cloud TPU, SLURM, Open MPI and Kubernetes by itself; "
            "elsewhere set --coordinator HOST:PORT, --processes N and --process I, with I from 0 to N - 1"
        ) from error


def part_of(
    mode: ProcessMode = "auto",
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> tuple[int, int]:
    """The number of this process, from 0, and the number of all, for processes that share work but run independently.

    If the numbers are not given, the processes connect once to find them. After that no process waits for another, or
    depends on it. Call it before anything touches a device. Arguments and errors are those of `start`, but a
    coordinator is optional.
    """
    if mode != "off" and coordinator is None and processes is not None and process is not None:
        if not 0 <= process < processes:
            raise UserError(f"--process must be from 0 to --processes - 1, not {process} of {processes}")
        return process, processes
    try:
        start(mode, coordinator=coordinator, processes=processes, process=process)
    except RuntimeError:
        # Devices are already in use. This happens when another program calls this function.
        if mode == "on" or (coordinator, processes, process) != (None, None, None):
            raise
    if not jax.distributed.is_initialized():
        return 0, 1
    # Uses only the CPU backend, and clears it afterwards: a backend created now would depend on the other processes.
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
    """Whether this is the first process, which writes the files that only one process may write."""
    return jax.process_index() == 0


def all_agree(verdict: bool) -> bool:
    """Whether the verdict is True in every process. All processes must call it."""
    return bool(np.all(multihost_utils.process_allgather(np.asarray(verdict))))


def by_first(act: Callable[[], object]) -> None:
    """Calls `act` in the first process. A UserError there is raised in all processes."""
    problem: UserError | None = None
    try:
        if is_first():
            act()
    except UserError as error:
        problem = error
    if not all_agree(problem is None):
        raise problem or UserError("the first process has failed; see its message")


def from_first(values: np.ndarray) -> np.ndarray:
    """The first process's array, in every process. All must call it, with arrays of the same shape and type."""
    return np.asarray(multihost_utils.broadcast_one_to_all(values))


def from_all(values: np.ndarray) -> np.ndarray:
    """The arrays of all processes, concatenated along the first axis. All processes must call it."""
    return np.asarray(multihost_utils.process_allgather(values, tiled=True))


def whole(array: jax.Array) -> np.ndarray:
    """The whole array on the host, even if its parts are on other devices and processes. All processes must call it."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def wait_for_all(what: str) -> None:
    """Waits until all processes have called it."""
    multihost_utils.sync_global_devices(what)
