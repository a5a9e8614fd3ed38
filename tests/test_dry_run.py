"""xpsr restore --dry-run: its output, and that it writes nothing."""

import re
from pathlib import Path

import jax
import pytest
from PIL import Image

from tests.inference.tiny_model import tiny_model
from xpsr_jax.cli import restore
from xpsr_jax.weights.model_folder import save


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A model, two small photographs and a large one."""
    folder = tmp_path_factory.mktemp("work")
    save(tiny_model(), folder / "model")
    (folder / "photos").mkdir()
    for name, size in {"a": (9, 7), "b": (9, 7), "large": (40, 20)}.items():
        Image.new("RGB", size).save(folder / "photos" / f"{name}.png")
    return folder


def dry_run(work: Path, *more: object, code: int = 0) -> None:
    before = sorted(work.rglob("*"))
    words = [work / "photos", "--output", work / "out", "--model", work / "model", "--missing-captions", "empty"]
    assert restore.main([str(word) for word in [*words, "--dry-run", *more]]) == code
    assert sorted(work.rglob("*")) == before


def test_it_shows_sizes_tiles_evaluations_and_memory(work, capsys, monkeypatch):
    monkeypatch.setattr("jax.local_devices", lambda: jax.devices()[:1])
    dry_run(work, "--tile", 12, "--tile-overlap", 3)
    lines = capsys.readouterr().out.splitlines()
    assert f"3 of 3 images would be restored to {work / 'out'} on one device (cpu)." in lines
    assert "2 of 2 steps of ddpm, guidance of 1.5 in 2 of them." in lines
    assert "Each image, or tile of a large one, needs 4 evaluations of the networks." in lines
    rows = [re.split(r"  +", line) for line in lines]
    assert ["image", "size", "becomes", "networks see", "tiles", "evaluations"] in rows
    assert [row[1:] for row in rows if row[0].endswith("a.png")] == [["9 × 7", "36 × 28", "64 × 32", "1", "4"]]
    assert [row[1:] for row in rows if row[0].endswith("large.png")] == [
        ["40 × 20", "160 × 80", "160 × 96", "15", "60"]
    ]
    assert "In all 68 evaluations of the networks, in 3 batches." in lines
    memory = (
        r"Estimated memory: \d+ MB for the weights, \d+ MB for the computation, about 1\.0 GB for the process itself\."
    )
    assert re.fullmatch(memory, lines[-2])
    assert lines[-1] == "This was a dry run. Nothing was computed or written."


def test_broken_images_are_reported(work, capsys):
    (work / "photos" / "none.png").write_bytes(b"no picture")
    try:
        dry_run(work, code=1)
        assert "none.png" in capsys.readouterr().err
        dry_run(work, "--on-error", "skip", code=1)
        printed = capsys.readouterr()
        assert "none.png" in printed.err and "a.png" in printed.out
    finally:
        (work / "photos" / "none.png").unlink()
