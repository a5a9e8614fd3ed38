"""The common part of benchmarks that use a TPU's compiler without a TPU."""

import sys
from collections.abc import Callable

import jax

from xpsr_jax.config import Mesh
from xpsr_jax.errors import UserError
from xpsr_jax.pods import chips

TOPOLOGY = "v5e:2x2"


def on_chips(run: Callable[[jax.sharding.Mesh], None]) -> int:
    """Runs a benchmark on a mesh of `TOPOLOGY`. Returns the exit code: 1 if there is no compiler for it."""
    jax.config.update("jax_platforms", "cpu")
    try:
        mesh = chips.make_pod_mesh(TOPOLOGY, Mesh())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    run(mesh)
    return 0
