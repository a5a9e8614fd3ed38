"""Records which functions JAX compiles."""

import contextlib
import logging
import re
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """The names of the functions that are compiled in the block, or loaded from the cache on disk.

    A function's `_cache_size` is not used: it may count calls that only the dispatcher distinguishes, and that are not
    compiled again.
    """
    names: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if found := re.match(r"Compiling jit\((\w+)\)", record.getMessage()):
                names.append(found[1])

    logger, handler = logging.getLogger("jax._src.interpreters.pxla"), Handler()
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            yield names
    finally:
        logger.removeHandler(handler)
