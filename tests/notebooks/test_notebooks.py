"""The notebooks: every cell runs in the small form, as from a plain install; and what is stored of them is in order."""

import base64
import io
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from tests.test_docs import missing

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_BYTES = 400_000
by_name = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)


def read(file: Path) -> nbformat.NotebookNode:
    return nbformat.read(file, as_version=4)


def pictures(notebook: nbformat.NotebookNode) -> list[Image.Image]:
    """What its cells show."""
    data = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [each[kind] for each in data for kind in ("image/jpeg", "image/png") if kind in each]
    return [Image.open(io.BytesIO(base64.b64decode(each))) for each in shown]


@by_name
def test_every_cell_runs(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # a notebook's own folder is another one
    monkeypatch.setenv("XPSR_NOTEBOOK", "small")
    monkeypatch.delenv("XLA_FLAGS")  # which makes eight devices of one
    # Half the time to compile, as `compiled_quickly` has it.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.setenv("JAX_XLA_PROFILE_VERSION", "1")
    notebook = read(file)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    assert len(pictures(notebook)) == len(pictures(read(file)))


@by_name
def test_what_is_stored(file: Path):
    """Whole, with its pictures, and of a run that went well from the first cell to the last; small enough for git."""
    assert file.stat().st_size < MOST_BYTES
    notebook = read(file)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown" and "pip install xpsr-jax" in notebook.cells[0].source
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert all(output.output_type in ("stream", "display_data", "execute_result") for output in outputs)
    assert all(output.get("name") != "stderr" for output in outputs)
    # Of whoever ran it nothing is told.
    said = "".join(output.get("text", "") for output in outputs)
    assert not re.search(r"/(home|root|tmp|work|Users)/", said)
    assert pictures(notebook)


@by_name
def test_what_it_names_is_there(file: Path, tmp_path: Path):
    text = "\n\n".join(cell.source for cell in read(file).cells if cell.cell_type == "markdown")
    (tmp_path / "notebook.md").write_text(text)
    assert list(missing(tmp_path / "notebook.md")) == []
