"""WeightWatcher itself, live, on a checkpoint that its published numbers do not know."""

import json

import numpy as np
import pytest
from command import python
from models import write_checkpoint
from safetensors.numpy import load_file

import specdiag

# The values are written without NaN: a failed fit is alpha -1 there.
SCRIPT = """
import json, logging, sys, warnings
warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)
import weightwatcher
options = json.loads(sys.argv[3])
details = weightwatcher.WeightWatcher(model=sys.argv[1], log_level="ERROR").analyze(max_N=30000, **options)
columns = [
    "longname", "alpha", "xmin", "xmax", "D", "num_pl_spikes", "stable_rank", "log_alpha_norm", "entropy", "raw_alpha",
    "num_fingers",
]
json.dump(details[[c for c in columns if c in details]].to_dict("records"), open(sys.argv[2], "w"))
"""


def analyse(folder, out, **options):
    """Rows of WeightWatcher on a folder."""
    python(SCRIPT, folder, out, json.dumps(options))
    return json.loads(out.read_text())


def test_live_on_a_perturbed_copy(minilm, tmp_path):
    rng = np.random.default_rng(0)
    weights = {
        name: (w + 0.3 * w.std() * rng.standard_normal(w.shape)).astype(np.float32)
        for name, w in load_file(minilm / "model.safetensors").items()
        if "layer.0." in name or "layer.5." in name
    }
    folder = write_checkpoint(tmp_path / "perturbed", weights, config=None)
    rows = analyse(folder, tmp_path / "out.json")
    report = specdiag.analyze(folder, device="cpu")
    assert len(rows) == len(report) == 12
    for row in rows:
        r = report[f"{row['longname']}.weight"]
        for column, value in {
            "alpha": r.pl_alpha, "xmin": r.pl_xmin, "D": r.pl_ks, "num_pl_spikes": r.pl_k,
            "stable_rank": r.stable_rank, "log_alpha_norm": r.log_alpha_norm, "entropy": r.entropy,
        }.items():  # fmt: skip
            assert value == pytest.approx(row[column], rel=1e-6), (row["longname"], column)


def test_clipped_power_laws(minilm, tmp_path):
    """The same exponents, and the same eigenvalues left out, on trained weights, noise, heavy tails and planted fingers."""
    rng = np.random.default_rng(0)
    trained = load_file(minilm / "model.safetensors")
    state = {name: w for name, w in trained.items() if w.ndim == 2 and "layer.5." in name}
    for seed in range(3):
        noise = rng.standard_normal((150, 220))
        fingers = np.outer(rng.standard_normal(150), rng.standard_normal(220)) * rng.uniform(0.1, 0.5)
        state |= {f"noise.{seed}.weight": noise, f"finger.{seed}.weight": noise + fingers}
        state[f"heavy.{seed}.weight"] = rng.standard_t(2.5, (150, 220))
    state = {name: w.astype(np.float32) for name, w in state.items()}
    folder = write_checkpoint(tmp_path / "model", state, config=None)
    rows = analyse(folder, tmp_path / "out.json", fix_fingers="clip_xmax")
    report = specdiag.analyze(folder, device="cpu", tail="clip-xmax")
    assert len(rows) == len(report) == 15
    for row in rows:
        r = report[f"{row['longname']}.weight"]
        for column, value in {
            "alpha": r.alpha, "raw_alpha": r.pl_alpha, "xmin": r.xmin, "D": r.ks, "num_pl_spikes": r.k + r.n_clipped,
            "xmax": report.eigenvalues(r.key)[-1 - r.n_clipped], "num_fingers": max(r.n_clipped - 1, 0),
        }.items():  # fmt: skip
            assert value == pytest.approx(row[column], rel=1e-6), (row["longname"], column)
    assert len({r.n_clipped for r in report}) > 3
