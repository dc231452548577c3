"""The tutorial runs as it is written, in a small form; what is stored in it is what it shows."""

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs/tutorial.ipynb"


def test_the_stored_pictures_are_small_and_no_cell_failed() -> None:
    assert NOTEBOOK.stat().st_size < 500_000
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4


@pytest.mark.faults
def test_the_tutorial_runs_in_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="comes with the extra dev")
    nbformat = pytest.importorskip("nbformat", reason="comes with the extra dev")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    book = nbformat.read(NOTEBOOK, as_version=4)
    for line, short in {
        'HERE = Path("runs/tutorial")': f"HERE = Path({str(tmp_path / 'tutorial')!r})",
        "STEPS = 100": "STEPS = 20",
    }.items():
        [cell] = [cell for cell in book.cells if line in cell.source]
        cell.source = cell.source.replace(line, short)
    place = {"metadata": {"path": str(ROOT)}}
    nbclient.NotebookClient(book, timeout=280, resources=place).execute()
    assert (tmp_path / "tutorial/backbone/model.safetensors").exists()
