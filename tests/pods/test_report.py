"""The figures of a compiled program, and the report as text."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.training import tiny
from xpsr_jax import sharding
from xpsr_jax.config import Mesh, Precision
from xpsr_jax.pods import compiling, report
from xpsr_jax.pods.chips import CHIPS
from xpsr_jax.pods.report import Report

ROWS = 1024
FITS = Report("v5e:4x4", 16, "training", 32, 4 * 2**30, 8 * 2**30, 12.5 * 2**30, 30e12, 0.25, 120e9)


@pytest.fixture(scope="module")
def compiled():
    """A program over 8 devices with an all-gather, an all-reduce and a permutation. Rows of x and w are split."""
    mesh = sharding.make_mesh(Mesh(data=1, fsdp=8))

    @jax.shard_map(mesh=mesh, in_specs=(PartitionSpec("fsdp"), PartitionSpec("fsdp")), out_specs=PartitionSpec("fsdp"))
    def program(x, w):
        whole = jax.lax.all_gather(w, "fsdp", tiled=True)
        total = jax.lax.psum(x.sum(0), "fsdp")
        return jax.lax.ppermute(x @ whole + total[:64], "fsdp", [(i, (i + 1) % 8) for i in range(8)])

    where = NamedSharding(mesh, PartitionSpec("fsdp"))
    x = jax.ShapeDtypeStruct((ROWS, 256), jnp.float32, sharding=where)
    w = jax.ShapeDtypeStruct((256, 64), jnp.float32, sharding=where)
    return jax.jit(program).lower(x, w).compile()


def test_collectives_by_kind_and_bytes(compiled):
    assert report.collectives(compiled.as_text()) == {
        "all-gather": (1, 256 * 64 * 4),
        "all-reduce": (1, 256 * 4),
        "collective-permute": (1, ROWS // 8 * 64 * 4),
    }


def test_asynchronous_collectives_count_once():
    """Such pairs are in TPU programs. The `-done` has the type of the result."""
    text = """
  %all-gather-start.1 = (bf16[8,128]{1,0}, bf16[32,128]{1,0:T(8,128)(2,1)S(1)}) all-gather-start(%p.1), channel_id=1
  %all-gather-done.1 = bf16[32,128]{1,0:T(8,128)(2,1)S(1)} all-gather-done(%all-gather-start.1)
  ROOT %all-to-all = (f32[4]{0}, f32[4]{0}) all-to-all(%a, %b), dimensions={0}
  %fusion.2 = f32[8]{0} fusion(%all-gather-done.1), calls=%all-reduce-like
"""
    assert report.collectives(text) == {"all-gather": (1, 32 * 128 * 2), "all-to-all": (1, 32)}


def test_measures_of_one_device(compiled):
    found = Report("v5e:2x4", 8, "training", 8, **report.measure(compiled, CHIPS["v5e"]))
    assert found.arguments == (ROWS * 256 + 256 * 64) * 4 // 8
    assert found.peak >= found.arguments + found.temporaries + ROWS // 8 * 64 * 4
    products = 2 * ROWS // 8 * 256 * 64
    assert products <= found.flops < 1.1 * products
    thrice = report.measure(compiled, CHIPS["v5e"], rounds=3)
    assert thrice["flops"] == 3 * found.flops and thrice["moved"] == 3 * found.moved
    assert report.from_json(json.loads(json.dumps(dataclasses.asdict(found)))) == found


def test_loops_are_found():
    """Their bodies are counted once, so the report says how many loops there are."""
    x = jax.ShapeDtypeStruct((64, 32, 32), jnp.float32)
    looped = jax.jit(lambda x: jax.lax.map(lambda y: y @ y, x)).lower(x).compile()
    found = report.measure(looped, CHIPS["v5e"])
    assert found["loops"] == 1 and found["flops"] < 2 * 64 * 32**3 / 8
    for options in ({"sampling": True}, {"rounds": 2}):
        assert report.measure(looped, CHIPS["v5e"], **options)["loops"] == 0


def test_custom_kernels_are_counted_by_their_stated_cost():
    call = '%k = bf16[4] custom-call(%x), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{'
    cost = '"cost_estimate":{"flops":"276","transcendentals":"5","bytes_accessed":"268"}}}'
    assert report.custom_calls(f"{call}{cost}\n{call}}}}}\n%y = f32[2] add(%a, %b)") == [(276, 268), None]


def test_operations_without_an_estimate_are_left_out():
    """XLA counts -1 s for each of them."""
    assert report._seconds(0.25) == 0.25
    assert report._seconds(0.25 - 2) == 0.25


def test_the_report_of_a_program_that_fits():
    text = report.render(dataclasses.replace(FITS, collectives={"all-gather": (20, 3 * 2**30)}))
    assert "4.00 GiB arguments, 8.00 GiB temporaries; at most 12.50 GiB of 15.75 GiB, fits" in text
    assert "250.0 ms per step, 128.0 images per second, 61% of the peak 197 TFLOP/s" in text
    assert "20 all-gather (3.00 GiB)" in text
    assert "warning" not in text and "custom kernels" not in text
    marked = dataclasses.replace(FITS, custom_calls=5, silent_calls=2, rematerializations=2, rounds=4, loops=3)
    text = report.render(marked)
    for words in (
        "5 that the compiler cannot analyse: 3 counted by the work that they state, 2 not counted",
        "2 involuntary full rematerializations",
        "microbatches 4 times",
        "3 other loops",
    ):
        assert words in text


def test_suggestions_for_a_program_that_does_not_fit():
    config = dataclasses.replace(tiny.config(), batch_size=64, mesh=Mesh(data=4, fsdp=4))
    large = dataclasses.replace(FITS, peak=CHIPS["v5e"].hbm + 1)
    assert FITS.fits and not large.fits and not dataclasses.replace(FITS, peak=None, shortage="17G of 15.75G").fits
    text = "\n".join(report.suggestions(large, config))
    for flag in ("--precision.remat", "--accumulation 2", "--mesh.fsdp -1", "--precision.frozen-dtype bfloat16"):
        assert flag in text
    spare = dataclasses.replace(config, batch_size=16, mesh=Mesh(), precision=Precision())
    assert report.suggestions(large, spare) == ["more chips, or chips with more memory"]
    assert "--batch-size 16" in report.suggestions(dataclasses.replace(large, program="sampling"), config)[0]


def test_the_program_that_runs_before_must_fit_too():
    first = dataclasses.replace(FITS, program="first stage", peak=FITS.peak - 1)
    both = dataclasses.replace(FITS, program="sampling", before=first)
    assert both.fits and not dataclasses.replace(both, before=dataclasses.replace(first, peak=2 * FITS.peak)).fits
    alone = [report.render(dataclasses.replace(each, before=None)) for each in (first, both)]
    assert report.render(both).split("\n\n") == alone
    assert report.from_json(json.loads(json.dumps(dataclasses.asdict(both)))) == both


def test_the_compilers_messages_are_captured_and_passed_on(capfd):
    with compiling.captured_stderr() as (said, terminal):
        os.write(2, f"[spmd] {compiling.COMPLAINT}. The compiler ...\n".encode())
        terminal.write("progress\n")
    assert said[0].count(compiling.COMPLAINT) == 1
    first, second = capfd.readouterr().err.splitlines()
    assert first == "progress" and compiling.COMPLAINT in second
    os.write(2, b"as before\n")
    assert capfd.readouterr().err == "as before\n"
