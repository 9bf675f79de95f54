"""Protects `examples/`: the notebook runs in a kernel, and the model on one page trains and answers."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"


def test_the_notebook_is_stored_without_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")


def test_the_notebook_runs_in_a_kernel(tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="no nbclient: pip install 'videopanda[dev]'")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    (answer,) = [output for output in shown["answer"] if output.output_type == "execute_result"]
    assert "<b>white</b>" in answer.data["text/html"]
    assert '<img alt="frames"' in answer.data["text/html"]
    assert any(output.get("text", "").startswith("circle\n") for output in shown["fields"])
    (explanation,) = [output for output in shown["explain"] if output.output_type == "execute_result"]
    assert '<img alt="frames"' in explanation.data["text/html"]
    said = "".join(output.text for outputs in shown.values() for output in outputs if output.get("name") == "stderr")
    assert [line for line in said.splitlines() if not re.search("tqdm|Loading weights|^$", line)] == []  # no warnings
    assert "circle" in "".join(output.text for output in shown["chat"] if output.get("name") == "stdout")


def test_one_page_can_be_read_in_a_sitting():
    assert len((EXAMPLES / "one_page.py").read_text(encoding="utf-8").splitlines()) <= 300


def test_one_page_trains_and_answers(tmp_path):
    report = tmp_path / "report.json"
    options = ["--steps", "3", "--clips", "6", "--output", report]
    command = [sys.executable, EXAMPLES / "one_page.py", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    scores = json.loads(report.read_text(encoding="utf-8"))["scores"]
    assert {"colour", "shape", "all"} <= set(scores)
    assert scores["all"]["questions"] == sum(row["questions"] for name, row in scores.items() if name != "all") > 6
    assert all(0 <= row["right"] <= 100 for row in scores.values())
    assert "step 3 of 3" in done.stdout
