"""xpsr doctor: its output, even if something is broken."""

import re
from pathlib import Path

import jax
import pytest

from xpsr_jax.cli import doctor
from xpsr_jax.version import __version__


def said(capsys) -> dict[str, list[str]]:
    """The lines of each section."""
    assert doctor.main([]) == 0
    sections: dict[str, list[str]] = {}
    for line in capsys.readouterr().out.splitlines():
        title, text = line[:12].strip(), line[12:]
        sections.setdefault(title.removesuffix(":") or list(sections)[-1], []).append(text)
    return sections


@pytest.fixture
def without_jax(monkeypatch, tmp_path) -> Path:
    """The file of a fake jax, which new processes import."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(doctor.__file__).parents[2]}")
    return tmp_path / "jax.py"


def test_it_shows_versions_devices_kernels_caches_free_space_and_extras(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(Path(doctor.__file__).parents[2]))
    monkeypatch.setenv("XPSR_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "programs"))
    monkeypatch.setenv("HF_HUB_TOKEN", "secret")
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs" / "a").write_bytes(bytes(2_000_000))
    sections = said(capsys)
    assert list(sections) == ["versions", "devices", "kernels", "caches", "room", "extras", "variables"]
    assert (
        sections["versions"][0].startswith(f"xpsr-jax {__version__} (")
        and f"jax {jax.__version__}" in sections["versions"]
    )
    assert sections["devices"] == [f"cpu {i}: cpu" for i in range(8)]
    assert sections["kernels"][0] == "attention, float32: chunked"
    assert sections["caches"][0] == f"xpsr_jax: {tmp_path / 'cache'}, does not exist yet"
    assert sections["caches"][1] == f"compiled programs: {tmp_path / 'programs'}, 2 MB in 1 files"
    assert re.fullmatch(r"memory: [\d.]+ [GM]B of [\d.]+ [GM]B free", sections["room"][0])
    assert any(line.startswith("dev: ") for line in sections["extras"])
    assert "HF_HUB_TOKEN=(hidden)" in sections["variables"] and "JAX_PLATFORMS=cpu" in sections["variables"]


@pytest.mark.parametrize(
    ("program", "line"),
    [
        ("raise ImportError('libcudart is missing\\nhere')", r"failed: ImportError: libcudart is missing\\nhere"),
        ("import os; os.abort()", r"failed: the process ended with exit code -6: .*"),
        ("def local_devices(): raise RuntimeError('no TPU')", r"failed: RuntimeError: no TPU"),
    ],
)
def test_a_broken_jax_is_one_line(program, line, without_jax, capsys):
    without_jax.write_text(program)
    sections = said(capsys)
    assert len(sections["devices"]) == 1 and re.fullmatch(line, sections["devices"][0])
    assert len(sections["kernels"]) == 1 and sections["kernels"][0].startswith("failed: ")
    assert sections["versions"] and sections["room"]


def test_a_device_that_never_answers_is_one_line(without_jax, capsys, monkeypatch):
    without_jax.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(doctor, "_PATIENCE", 0.2)
    assert said(capsys)["devices"] == ["failed: no answer within 0.2 s"]
