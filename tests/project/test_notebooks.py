"""Every notebook runs from top to bottom."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from helpers import PATIENCE
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
SAYS = {
    "01_checkpoint_to_spectra": "square_alpha all ",
    "02_choosing_a_weight_decay": "shape share: 0.87",
    "03_trajectories_of_a_run": "steps [0, 20, 40, 60, 80, 100, 120]",
    "04_training_with_the_recommended_decay": "equal weights: True",
    "05_predict_the_norms_of_a_run": "above, as predicted: True",
}


@pytest.mark.filterwarnings("ignore")  # of the kernel's transport, not of the notebook
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, minilm, monkeypatch):
    monkeypatch.setenv("SPECDIAG_CHECKPOINT", str(minilm))
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=int(PATIENCE), kernel_name="python3").execute(cwd=path.parent)
    printed = "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", []))
    assert SAYS[path.stem] in printed
    for place in (os.environ["SPECDIAG_CHECKPOINT"], sys.prefix, str(Path.home())):
        assert place not in path.read_text(), "the committed notebook names no machine"
