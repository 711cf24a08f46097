# SPDX-License-Identifier: Apache-2.0
"""The example notebook, executed cell by cell in a kernel of its own."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "memory.ipynb"


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    codes = [cell for cell in cells if cell["cell_type"] == "code"]
    assert codes
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in codes)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_notebook_runs_and_shows_what_it_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="pip install 'longmem[notebook]'")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel", reason="pip install 'longmem[notebook]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(NOTEBOOK.parents[2]), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    shown = {cell["id"]: _outputs(cell) for cell in notebook.cells if cell["cell_type"] == "code"}
    assert "<b>LongMem</b>" in shown["model"]
    assert "<svg" in shown["score"]
    assert "register" in shown["store"]
    assert "Memory of default/register" in shown["document"]
    with_memory, without_memory = map(float, re.findall(r"\d+\.\d+", shown["pipeline"]))
    assert with_memory < without_memory / 2
    # the fact is copied from the memory
    written, fact = shown["generate"].strip().split("\nin the register: ")
    assert fact.startswith(written)


def _outputs(cell: Any) -> str:
    """Return what a cell shows, as HTML where there is HTML."""
    texts = []
    for output in cell["outputs"]:
        data = output.get("data", {})
        texts.append(output.get("text") or data.get("text/html") or data.get("text/plain"))
    return "".join(texts)
