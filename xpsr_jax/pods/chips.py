"""TPU chips: their capacities, and meshes of chips that exist only for the compiler."""

import importlib.metadata
import importlib.util
import os
import re
from dataclasses import dataclass

import jax
from jax.experimental import topologies

from xpsr_jax import config, sharding
from xpsr_jax.errors import UserError


@dataclass(frozen=True)
class Chip:
    """One TPU chip.

    Attributes:
      hbm: bytes of memory that the compiler can use, a little less than the chip's memory.
      flops: peak of bfloat16 products, per second.
      bandwidth: bytes per second to and from memory.
    """

    hbm: float
    flops: float
    bandwidth: float


# Peaks: cloud.google.com/tpu/docs/v5e, /v5p and /v6e. Memory: the limit that libtpu 0.0.42's compiler reports when a
# program does not fit. The same pages say 16, 95 and 32 GB.
CHIPS = {
    "v5e": Chip(hbm=15.75 * 2**30, flops=197e12, bandwidth=819e9),
    "v5p": Chip(hbm=95.74 * 2**30, flops=459e12, bandwidth=2765e9),
    "v6e": Chip(hbm=31.25 * 2**30, flops=918e12, bandwidth=1640e9),
}


def make_pod_mesh(topology: str, sizes: config.Mesh) -> jax.sharding.Mesh:
    """The mesh of a run on the chips of a topology such as "v5e:4x4" or "v5p:2x2x4". It is only for compiling.

    Raises UserError if Google's compiler is not installed, or if the topology or the mesh is not possible.
    """
    chip(topology)
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise UserError(
            "compiling for a TPU needs Google's compiler, libtpu (but no TPU): "
            f'pip install "jax[tpu]=={importlib.metadata.version("jax")}"'
        )
    # Nothing is run. So libtpu need not ask a metadata server, and it must not lock a device or respect an old lock.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ |= {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}
    # Warnings must be printed, because the partitioner's warnings are counted.
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "1")
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"there is no topology {topology}: {error}") from error
    return sharding.make_mesh(sizes, devices)


def chip(topology: str) -> Chip:
    """The chip of a topology. Raises UserError for a name that is not a topology."""
    match = re.fullmatch(r"(\w+):\d+(x\d+){1,2}", topology)
    if match is None or match[1] not in CHIPS:
        raise UserError(
            f"--topology {topology} is not one of {', '.join(CHIPS)} with a slice's size, like v5e:4x4 or v5p:2x2x4"
        )
    return CHIPS[match[1]]
