"""Placement: the mesh, the rules by path and shape, and their effect on the full-size training."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from xpsr_jax import sharding
from xpsr_jax.config import Mesh, Networks, load_config
from xpsr_jax.errors import UserError
from xpsr_jax.models.layers import Compute
from xpsr_jax.models.transformer import Attention
from xpsr_jax.pods.report import collectives
from xpsr_jax.training.state import abstract_state, make_optimizer
from xpsr_jax.training.structure import make_structure

EVERYTHING = ("unet", "controlnet", "autoencoder", "text_encoder")


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [((1, -1), (1, 8)), ((-1, 1), (8, 1)), ((2, -1), (2, 4)), ((-1, 8), (1, 8)), ((4, 2), (4, 2))],
)
def test_mesh(sizes, shape):
    mesh = sharding.make_mesh(Mesh(*sizes))
    assert mesh.shape == {"data": shape[0], "fsdp": shape[1]}


@pytest.mark.parametrize("sizes", [(3, -1), (-1, -1), (2, 2), (16, 1)])
def test_sizes_that_do_not_fit_the_devices_are_refused(sizes):
    with pytest.raises(UserError, match=rf"mesh.data={sizes[0]} and mesh.fsdp={sizes[1]} .* 8 devices"):
        sharding.make_mesh(Mesh(*sizes))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((0, 8), "must be at least 1, or -1, not 0"), ((-2, 4), "data must be at least -1, not -2")],
)
def test_sizes_out_of_range_are_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        Mesh(*sizes)


def test_parameters_by_path_and_shape():
    mesh = sharding.make_mesh(Mesh(data=2, fsdp=4))
    shapes = {
        "a.kernel": (3, 3, 512, 1024),  # its largest dimension
        "b.kernel": (3, 3, 1024, 511),  # the largest dimension that is divisible by 4
        "c.kernel": (1023, 511),  # none is divisible
        "d.kernel": (256, 256),  # exactly 256 KiB
        "e.bias": (1_000_000,),  # by its path
        "f.embedding": (49408, 768),
    }
    parameters = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    specs = {path: s.spec for path, s in sharding.parameter_shardings(parameters, mesh).items()}
    assert specs == {
        "a.kernel": PartitionSpec(None, None, None, "fsdp"),
        "b.kernel": PartitionSpec(None, None, "fsdp", None),
        "c.kernel": PartitionSpec(),
        "d.kernel": PartitionSpec(),
        "e.bias": PartitionSpec(),
        "f.embedding": PartitionSpec("fsdp", None),
    }
    smaller = sharding.parameter_shardings(parameters, mesh, replicated_bytes=0)
    assert smaller["d.kernel"].spec == PartitionSpec("fsdp", None)
    alone = sharding.parameter_shardings(parameters, sharding.make_mesh(Mesh(data=8, fsdp=1)))
    assert {s.spec for s in alone.values()} == {PartitionSpec()}


def test_each_device_gets_its_part():
    mesh = sharding.make_mesh(Mesh(data=2, fsdp=4))
    array = np.arange(32, dtype=np.float32).reshape(8, 4)
    where = sharding.parameter_shardings({"a.kernel": array}, mesh, replicated_bytes=0)["a.kernel"]
    placed = sharding.place(array, where, jnp.bfloat16)
    assert placed.dtype == jnp.bfloat16 and placed.addressable_shards[0].data.shape == (2, 4)
    np.testing.assert_array_equal(placed, array)
    batch = sharding.shard_batch({"x": array}, mesh)["x"]
    assert len({str(shard.index) for shard in batch.addressable_shards}) == 8
    np.testing.assert_array_equal(batch, array)


def test_layers_gather_split_kernels_and_split_nothing_else():
    """With 2 heads on 8 devices, activations could not be split. Gradients keep the kernels' shardings."""
    mesh = sharding.make_mesh(Mesh(data=1, fsdp=8))
    layer = Attention(64, 2, compute=Compute(), rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    shapes = {str(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    shardings = list(sharding.parameter_shardings(shapes, mesh, replicated_bytes=2**10).values())
    places = jax.tree.unflatten(jax.tree.structure(state), shardings)
    x = jax.random.normal(jax.random.key(0), (8, 16, 64))

    def gradient(state, x):
        with sharding.gathering_kernels(mesh):
            return jax.grad(lambda state: jnp.sum(nnx.merge(graph, state)(x) ** 2))(state)

    step = jax.jit(gradient, in_shardings=(places, sharding.batch_sharding(mesh)), out_shardings=places)
    lowered = step.lower(state, x)
    constraints = re.findall(r"sdy\.sharding_constraint .*?<@mesh, (.*?)>", lowered.as_text())
    assert constraints == ["[{}, {}]"] * 4  # the kernels of q, k, v and out; not their gradients
    found = collectives(lowered.compile().as_text())
    assert found.keys() <= {"all-gather", "all-reduce", "reduce-scatter"}
    assert found["all-gather"][1] <= 2 * 4 * 64 * 64 * 4  # four kernels, for both passes
    alone = jax.jit(jax.grad(lambda state: jnp.sum(nnx.merge(graph, state)(x) ** 2)))(state)
    for ours, theirs in zip(jax.tree.leaves(step(state, x)), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * float(jnp.abs(theirs).max()))


def test_the_full_size_training_on_a_pod():
    """configs/xpsr.py on 64 chips, with shapes only: all trained parameters are found and split (method §5)."""
    config = load_config("configs/xpsr.py")
    structure = make_structure(dataclasses.replace(config, networks=Networks(from_scratch=EVERYTHING)))
    shapes = structure.shapes()
    assert structure.trained | structure.frozen == shapes.keys()
    assert {path.partition(".")[0] for path in structure.trained} == {"unet", "controlnet"}
    assert sum(math.prod(shapes[path].shape) for path in structure.trained) == 868_451_469

    mesh = AbstractMesh((1, 64), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))
    shardings = sharding.parameter_shardings(shapes, mesh)
    state = abstract_state(config, structure, make_optimizer(config, structure.trained), shardings)
    arrays = jax.tree.leaves(state)
    total = sum(size(array.shape, array) for array in arrays)
    assert total == 3 * 4 * 868_451_469 + 3 * 4  # parameters, two moments; three counts
    whole = sum(size(array.shape, array) for array in arrays if array.sharding.is_fully_replicated)
    assert whole < 0.002 * total  # 0.14 %
    a_chip = sum(size(array.sharding.shard_shape(array.shape), array) for array in arrays)
    assert a_chip < 1.1 * total / 64  # 1.09


def size(shape, array):
    """Size in bytes."""
    return math.prod(shape) * array.dtype.itemsize
