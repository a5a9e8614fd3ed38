"""TPU chips: what one has, and meshes of them that exist for the compiler alone."""

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
      hbm: bytes of memory that the compiler hands out, which is a little less than the chip has.
      flops: peak of bfloat16 products, per second.
      bandwidth: bytes that go to memory or come from it, per second.
    """

    hbm: float
    flops: float
    bandwidth: float


# Peaks: cloud.google.com/tpu/docs/v5e, /v5p and /v6e. Memory: what the compiler of libtpu 0.0.42 says is available when
# a program does not fit; the same pages have 16, 95 and 32 GB.
CHIPS = {
    "v5e": Chip(hbm=15.75 * 2**30, flops=197e12, bandwidth=819e9),
    "v5p": Chip(hbm=95.74 * 2**30, flops=459e12, bandwidth=2765e9),
    "v6e": Chip(hbm=31.25 * 2**30, flops=918e12, bandwidth=1640e9),
}


def make_pod_mesh(topology: str, sizes: config.Mesh) -> jax.sharding.Mesh:
    """The mesh of a run upon the chips of a topology such as "v5e:4x4" or "v5p:2x2x4"; nothing can run on them.

    Raises UserError where Google's compiler is not installed, or there is no such topology or mesh.
    """
    chip(topology)
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise UserError(
            "compiling for a TPU takes Google's compiler, libtpu, and no TPU: "
            f'pip install "jax[tpu]=={importlib.metadata.version("jax")}"'
        )
    # Nothing is run: no metadata server is asked, no device is locked, and a lock that was left behind means nothing.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ |= {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}
    # Warnings are for us too: what the partitioner complains of is counted.
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "1")
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"there is no topology {topology}: {error}") from error
    return sharding.make_mesh(sizes, devices)


def chip(topology: str) -> Chip:
    """The chip that a topology is made of. Raises UserError for a name that is none."""
    match = re.fullmatch(r"(\w+):\d+(x\d+){1,2}", topology)
    if match is None or match[1] not in CHIPS:
        raise UserError(
            f"--topology {topology} is none of {', '.join(CHIPS)} with a slice's sizes: v5e:4x4, v5p:2x2x4, v6e:8x8"
        )
    return CHIPS[match[1]]
