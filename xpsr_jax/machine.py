"""What this machine has: a place for results that can be made again, processes."""

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """Where results that can be made again are kept: XPSR_JAX_CACHE, else ~/.cache/xpsr_jax.

    None (nothing is kept) if XPSR_JAX_CACHE is empty, or if there is no home folder.
    """
    if (named := os.environ.get("XPSR_JAX_CACHE")) is not None:
        return Path(named) if named else None
    try:
        return Path.home() / ".cache" / "xpsr_jax"
    except RuntimeError:
        return None


def process_runs(pid: int) -> bool:
    """Whether a process of this number runs here, anybody's."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # It is another user's.
        return True
    return True
