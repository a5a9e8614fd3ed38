"""Facts about this machine: its cache folder and its processes."""

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """The cache folder: XPSR_JAX_CACHE if it is set, otherwise ~/.cache/xpsr_jax.

    None (no cache) if XPSR_JAX_CACHE is empty, or if there is no home folder.
    """
    if (named := os.environ.get("XPSR_JAX_CACHE")) is not None:
        return Path(named) if named else None
    try:
        return Path.home() / ".cache" / "xpsr_jax"
    except RuntimeError:
        return None


def process_runs(pid: int) -> bool:
    """Whether a process with this id runs on this machine, of any user."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's process
        return True
    return True
