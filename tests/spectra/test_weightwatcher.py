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
details = weightwatcher.WeightWatcher(model=sys.argv[1], log_level="ERROR").analyze(max_N=30000)
columns = ["longname", "alpha", "xmin", "D", "num_pl_spikes", "stable_rank", "log_alpha_norm", "entropy"]
json.dump(details[columns].to_dict("records"), open(sys.argv[2], "w"))
"""


def test_live_on_a_perturbed_copy(minilm, tmp_path):
    rng = np.random.default_rng(0)
    weights = {
        name: (w + 0.3 * w.std() * rng.standard_normal(w.shape)).astype(np.float32)
        for name, w in load_file(minilm / "model.safetensors").items()
        if "layer.0." in name or "layer.5." in name
    }
    folder = write_checkpoint(tmp_path / "perturbed", weights, config=None)
    out = tmp_path / "out.json"
    python(SCRIPT, folder, out)
    rows = json.loads(out.read_text())
    report = specdiag.analyze(folder, device="cpu")
    assert len(rows) == len(report) == 12
    for row in rows:
        r = report[f"{row['longname']}.weight"]
        for column, value in {
            "alpha": r.pl_alpha, "xmin": r.pl_xmin, "D": r.pl_ks, "num_pl_spikes": r.pl_k,
            "stable_rank": r.stable_rank, "log_alpha_norm": r.log_alpha_norm, "entropy": r.entropy,
        }.items():  # fmt: skip
            assert value == pytest.approx(row[column], rel=1e-6), (row["longname"], column)
