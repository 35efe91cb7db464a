"""The notebook runs from its first cell to its last. What calibration and training cost is cut down."""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "recipes" / "quickstart.ipynb"
#: What stands in cells, and what is run.
CHEAPER = {
    "distill_steps=40,": "distill_steps=2, batch=1, crop=32, calibration_size=64,",
    "--calibration-crops 8": "--calibration-crops 8 --calibration-size 64",
    "[:192, :576]": "[:96, :288]",
}
#: What is run before the first cell: that the parts fit together does not need factors that are close.
FIRST = "from tests.conftest import few_steps\nquick = few_steps()\nquick.__enter__()"


def test_quickstart_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parent.parent))
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for written, run in CHEAPER.items():
        assert sum(written in cell.source for cell in code) == 1
        for cell in code:
            cell.source = cell.source.replace(written, run)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(FIRST))  # type: ignore[no-untyped-call]
    NotebookClient(
        notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    shown = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "MACs 5.02 -> 4.08 G, parameters 799737 -> 771964" in shown
    assert "ONNX Runtime" in shown and "1 files written" in shown
    in_memory = re.search(r"compressed in memory ([0-9.]+) dB", shown)
    assert in_memory is not None and float(in_memory[1]) > 28  # the noisy crop has 20 dB
    assert "['comparison.png', 'report.html', 'report.json', 'report.md']" in shown
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3
