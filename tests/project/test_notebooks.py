"""Every notebook runs from top to bottom, imports public names, and holds the outputs of the present results."""

import ast
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from helpers import PATIENCE
from nbclient import NotebookClient

import specdiag
from specdiag.analysis.cache import RESULTS_VERSION

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
LARGEST = 300_000
SAYS = {
    "01_checkpoint_to_spectra": "square_alpha all ",
    "02_choosing_a_weight_decay": "shape share: 0.87",
    "03_trajectories_of_a_run": "steps [0, 20, 40, 60, 80, 100, 120]",
    "04_training_with_the_recommended_decay": "equal weights: True",
    "05_predict_the_norms_of_a_run": "above, as predicted: True",
}
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def printed(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)


@pytest.mark.filterwarnings("ignore")  # of the kernel's transport, not of the notebook
@each
def test_notebook_runs(path, minilm, monkeypatch):
    monkeypatch.setenv("SPECDIAG_CHECKPOINT", str(minilm))
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=int(PATIENCE), kernel_name="python3").execute(cwd=path.parent)
    assert SAYS[path.stem] in printed(notebook)


@each
def test_the_stored_outputs_are_those_of_the_present_results(path):
    """`make notebooks` stores them."""
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata["specdiag"]["results_version"] == RESULTS_VERSION
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    assert not any(cell.metadata for cell in code)
    said = printed(notebook)
    assert SAYS[path.stem] in said
    assert path.stat().st_size < LARGEST
    for place in (os.path.realpath(sys.prefix), str(Path.home()), os.environ.get("TMPDIR", "/tmp/")):
        assert place not in said
    assert not re.search(r"\d s\b|a second|\x1b", said), "times differ from run to run"


@each
def test_only_public_names_are_imported(path):
    public = {"specdiag", *(f"specdiag.{name}" for name in (*specdiag.__all__, "plot", "optim", "train"))}
    for cell in nbformat.read(path, as_version=4).cells:
        for node in ast.walk(ast.parse(cell.source)) if cell.cell_type == "code" else ():
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {name for name in names if name.startswith("specdiag")} <= public
