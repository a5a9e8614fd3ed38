"""Twenty steps in float32 have the same losses on every mesh. A run can move from one mesh to another."""

import pytest

from tests.marks import marked_long
from tests.soak import runs

STEPS = 20
FIELDS = {"steps": STEPS, "checkpoint_every": 100, "mesh__replicated_bytes": 0}
# For each name: number of processes, devices per process, fields.
MESHES = {
    "data 8": (1, 8, {"mesh__data": 8, "mesh__fsdp": 1}),
    "data 2 x fsdp 4": (1, 8, {"mesh__data": 2, "mesh__fsdp": 4}),
    "fsdp 8": (1, 8, {"mesh__data": 1, "mesh__fsdp": 8}),
    "accumulation 4": (1, 1, {"accumulation": 4}),
    "accumulation 4, fsdp 2": (1, 2, {"accumulation": 4, "mesh__data": 1, "mesh__fsdp": 2}),
    "two processes x 4 devices": (2, 4, {"mesh__data": 2, "mesh__fsdp": 4}),  # joined as by SLURM
}
# The other meshes, and the tests in test_processes.py, test everything that these test, and more.
SIMPLER = ("data 8", "fsdp 8", "accumulation 4", "two processes x 4 devices")


@pytest.fixture(scope="module")
def single(photos, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "single"
    runs.ended_well(runs.start(runs.command(run, photos, **FIELDS)))
    return run


@pytest.mark.parametrize("mesh", marked_long(MESHES, SIMPLER))
def test_losses_of_twenty_steps_are_equal(mesh, single, photos, tmp_path):
    processes, devices, fields = MESHES[mesh]
    run = tmp_path / "run"
    words = runs.command(run, photos, **FIELDS | fields)
    outs = runs.ended_well(runs.start(words, processes=processes, devices=devices, slurm=processes > 1))
    counted = "1 device" if processes * devices == 1 else f"{processes * devices} devices"
    assert f", {counted}" + (f" of {processes} processes" if processes > 1 else "\n") in outs[0]
    ours, theirs = ([{"loss": line["loss"]} for line in runs.metrics(each)] for each in (run, single))
    assert len(ours) == STEPS
    difference = runs.largest_difference(ours, theirs)
    print(f"{mesh}: {difference:.1e}")
    assert difference < 1e-5  # measured 3.9e-7 to 6.7e-7


def test_a_run_moves_from_eight_devices_to_four_to_one(single, photos, tmp_path):
    run = tmp_path / "run"
    for devices, steps, changes in ((8, 6, 0), (4, 12, 1), (1, STEPS, 1)):
        fields = FIELDS | {"steps": steps, "mesh__data": 1, "mesh__fsdp": devices}
        (out,) = runs.ended_well(runs.start(runs.command(run, photos, **fields), devices=devices))
        assert f", {devices} device{'' if devices == 1 else 's'}\n" in out
        assert out.count("changed since: mesh.fsdp: was ") == changes
    difference = runs.largest_difference(runs.metrics(run), runs.metrics(single))
    print(f"8, 4, 1 devices: {difference:.1e} of any term")
    assert difference < 1e-4
    ours, theirs = (runs.parameters(each / "model") for each in (run, single))
    assert ours.keys() == theirs.keys()
