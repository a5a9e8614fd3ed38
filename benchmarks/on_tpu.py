"""What the benchmarks share that ask a TPU's compiler, with no TPU there."""

import sys
from collections.abc import Callable

import jax

from xpsr_jax.config import Mesh
from xpsr_jax.errors import UserError
from xpsr_jax.pods import chips

TOPOLOGY = "v5e:2x2"


def on_chips(run: Callable[[jax.sharding.Mesh], None]) -> int:
    """Runs a benchmark upon a mesh of `TOPOLOGY`; returns the exit code: 1 where there is no compiler for it."""
    jax.config.update("jax_platforms", "cpu")
    try:
        mesh = chips.make_pod_mesh(TOPOLOGY, Mesh())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    run(mesh)
    return 0
