"""The reference network for benchmarks/pod_estimates.py: Stable Diffusion 1.5's UNet in Flax, from diffusers 0.39.

It needs its own environment, because later releases of diffusers have no Flax models:

python benchmarks/pod_anchor.py '{"topology": "v5e:2x2", "gradient": false, "samples": 2, "options": {}}'

It prints one line of JSON. It does not import xpsr_jax.
"""

import json
import math
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

REPLICATED_BYTES = 2**18


def main(topology: str, gradient: bool, samples: int, options: dict[str, Any]) -> None:
    from diffusers import FlaxUNet2DConditionModel  # type: ignore[attr-defined, unused-ignore]
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = jax.make_mesh((1, len(devices)), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices)
    network = FlaxUNet2DConditionModel(cross_attention_dim=768, sample_size=64, dtype=jnp.bfloat16)
    shapes = jax.eval_shape(lambda: network.init_weights(jax.random.key(0)))

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        """Shards a parameter like xpsr_jax.sharding. It is bfloat16 for the forward pass, float32 for the gradient."""
        divisible = [axis for axis, n in enumerate(leaf.shape) if n % len(devices) == 0]
        spec = PartitionSpec()
        if math.prod(leaf.shape) * 4 > REPLICATED_BYTES and divisible:
            largest = max(divisible, key=lambda axis: leaf.shape[axis])
            spec = PartitionSpec(*("fsdp" if axis == largest else None for axis in range(leaf.ndim)))
        dtype = jnp.float32 if gradient else jnp.bfloat16
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=NamedSharding(mesh, spec))

    parameters = jax.tree.map(place, shapes)
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    batch = samples * len(devices)
    inputs = (
        jax.ShapeDtypeStruct((batch, 4, 64, 64), jnp.bfloat16, sharding=split),
        jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=split),
        jax.ShapeDtypeStruct((batch, 77, 768), jnp.bfloat16, sharding=split),
    )

    def forward(parameters: Any, *inputs: Any) -> Any:
        return network.apply({"params": parameters}, *inputs).sample

    def loss_gradient(parameters: Any, *inputs: Any) -> Any:
        again = jax.checkpoint(forward)
        gradients = jax.grad(lambda p: jnp.mean(again(p, *inputs).astype(jnp.float32) ** 2))(parameters)
        return jax.lax.with_sharding_constraint(gradients, jax.tree.map(lambda leaf: leaf.sharding, parameters))

    program = jax.jit(loss_gradient if gradient else forward)
    compiled = program.lower(parameters, *inputs).compile(compiler_options=options)
    cost, memory, text = compiled.cost_analysis(), compiled.memory_analysis(), compiled.as_text()
    assert cost is not None and memory is not None and text is not None
    found = {
        "seconds": cost["optimal_seconds"],
        "flops": cost["flops"],
        "moved": cost["bytes accessed"],
        "temporaries": memory.temp_size_in_bytes,
        "loops": len(re.findall(r" while\(", text)),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
