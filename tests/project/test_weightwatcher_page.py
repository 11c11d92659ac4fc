"""The page for users of WeightWatcher names all that it has, and says of it what it does."""

import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
from command import python
from safetensors import safe_open

import specdiag
from specdiag.report import COLUMNS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "weightwatcher.md").read_text()
WITHOUT_COUNTERPART = "none"

# Everything that WeightWatcher adds a column for, and what the page says of a convolution, of fingers, of failed fits.
SCRIPT = """
import inspect, json, logging, sys, warnings
import numpy as np
warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)
import matplotlib
matplotlib.use("Agg")
from weightwatcher import WeightWatcher

weights = dict(np.load(sys.argv[1]))

def analyse(names, **options):
    watcher = WeightWatcher(model={name: weights[name] for name in names}, log_level="ERROR")
    return watcher, watcher.analyze(**options)

def rows(details):
    return {row.pop("longname"): row for row in json.loads(details.to_json(orient="records"))}

def raises(**options):
    try:
        analyse(["dense.weight"], **options)
    except Exception as error:
        return type(error).__name__

dense, lora = ["dense.weight"], ["l.lora_A.weight", "l.lora_B.weight"]
small = ["small.weight"]
everything = dict(mp_fit=True, randomize=True, detX=True, vectors=True)
tables = [
    analyse(small, **everything, fix_fingers="clip_xmax", pool=False)[1],
    analyse(small, fit="TPL", pl_package="powerlaw")[1],
    analyse(lora, peft=True)[1],
    analyse(["small.weight", "next.weight"], intra=True)[1],
]
watcher, failed = analyse(["dense.weight", "tiny.weight"])
json.dump({
    "parameters": list(inspect.signature(WeightWatcher.analyze).parameters)[1:],
    "columns": sorted({column for table in tables for column in table}),
    "summary": [*analyse(small, mp_fit=True)[0].get_summary()],
    "plain": rows(analyse(["dense.weight", "low.weight", "conv.weight"], detX=True)[1]),
    "unscaled": rows(analyse(["conv.weight"], conv2d_norm=False)[1]),
    "glorot": rows(analyse(dense, glorot_fix=True)[1]),
    "failed": rows(failed),
    "mean": watcher.get_summary()["alpha"],
    "peak": rows(analyse(dense, fix_fingers="xmin_peak")[1]),
    "clipped": rows(analyse(dense, fix_fingers="clip_xmax", finger_thresh=-100.0)[1]),
    "clipped by hand": rows(analyse(dense, xmax=-2)[1]),
    "noise": rows(analyse(["query.weight"], mp_fit=True)[1]),
    "raised": [raises(fft=True), raises(channels="first")],
}, open(sys.argv[2], "w"))
"""


def tables(heading):
    """The rows of the tables below a heading of the page: names on the left, in the middle, and the text on the right."""
    section = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (body,) = (s for s in section if s.startswith(heading))
    lines = [line.strip("| ").split(" | ") for line in body.splitlines() if line.startswith("| `")]
    assert all(len(line) == 3 for line in lines)
    return [(re.findall(r"`(\w+)`", left), middle, text) for left, middle, text in lines]


def counterparts(rows):
    """The names in the middle column."""
    middles = [middle for _, middle, _ in rows if middle != WITHOUT_COUNTERPART]
    assert all(re.fullmatch(r"`\w+`(, `\w+`)*", middle) for middle in middles), middles
    return {name for middle in middles for name in re.findall(r"`(\w+)`", middle)}


def lefts(rows):
    return sorted(name for names, _, _ in rows for name in names)


@pytest.fixture(scope="module")
def weights(minilm):
    with safe_open(minilm / "model.safetensors", framework="numpy") as file:
        query = file.get_tensor("encoder.layer.0.attention.self.query.weight")
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((96, 64))
    found = {
        "query.weight": query,
        "dense.weight": dense,
        "tiny.weight": 1e-4 * dense,
        "low.weight": rng.standard_normal((96, 50)) @ rng.standard_normal((50, 64)),
        "conv.weight": rng.standard_normal((16, 8, 3, 3)),
        "small.weight": rng.standard_normal((30, 24)),
        "next.weight": rng.standard_normal((24, 20)),
        "l.lora_A.weight": rng.standard_normal((8, 30)),
        "l.lora_B.weight": rng.standard_normal((24, 8)),
    }
    return {name: values.astype(np.float32) for name, values in found.items()}


@pytest.fixture(scope="module")
def theirs(weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weightwatcher")
    np.savez(folder / "weights.npz", **weights)
    python(SCRIPT, folder / "weights.npz", folder / "out.json", cwd=folder)
    return json.loads((folder / "out.json").read_text())


def test_every_parameter_is_there(theirs):
    rows = tables("Parameters of analyze")
    assert lefts(rows) == sorted(theirs["parameters"])
    assert counterparts(rows) <= set(inspect.signature(specdiag.analyze).parameters)


def test_every_column_is_there(theirs):
    rows = tables("Columns of the details table")
    assert lefts(rows) == theirs["columns"]
    assert counterparts(rows) <= set(COLUMNS)


def test_every_metric_of_the_summary_is_there(theirs):
    rows = tables("get_summary")
    assert lefts(rows) == sorted(theirs["summary"])
    assert counterparts(rows) <= set(COLUMNS)


def test_what_is_the_same(theirs, weights):
    report = specdiag.analyze({name: weights[name] for name in ("dense.weight", "low.weight")}, device="cpu")
    ours, their = report["dense.weight"], theirs["plain"]["dense"]
    values = report.eigenvalues("dense.weight")
    for column, value in {
        "alpha": ours.pl_alpha, "xmin": ours.pl_xmin, "D": ours.pl_ks, "num_pl_spikes": ours.pl_k,
        "sigma": (ours.pl_alpha - 1) / ours.pl_k**0.5, "norm": ours.frobenius_norm**2, "log_norm": ours.log_norm,
        "spectral_norm": ours.spectral_norm**2, "lambda_max": ours.spectral_norm**2, "xmax": ours.spectral_norm**2,
        "log_spectral_norm": 2 * np.log10(ours.spectral_norm), "sv_max": ours.spectral_norm, "sv_min": values[0] ** 0.5,
        "alpha_weighted": ours.alpha_weighted, "log_alpha_norm": ours.log_alpha_norm, "entropy": ours.entropy,
        "stable_rank": ours.stable_rank, "matrix_rank": ours.matrix_rank, "rank_loss": ours.n_zero,
        "detX_num": ours.detx_k, "detX_val": values[-ours.detx_k], "ERG_gap": ours.detx_k - ours.pl_k,
        "detX_val_unrescaled": values[-ours.detx_k] / values.mean(), "num_evals": ours.n_eigenvalues,
    }.items():  # fmt: skip
        assert their[column] == pytest.approx(value, rel=1e-6), column
    assert (report["low.weight"].matrix_rank, theirs["plain"]["low"]["matrix_rank"]) == (50, 64)
    assert theirs["glorot"]["dense"]["norm"] == pytest.approx(their["norm"])


def test_convolutions_are_scaled(theirs, weights):
    ours = specdiag.analyze({"conv.weight": weights["conv.weight"]}, device="cpu")["conv.weight"]
    scaled, unscaled = theirs["plain"]["conv"], theirs["unscaled"]["conv"]
    two = np.log10(2)
    for column, value in {
        "norm": ours.frobenius_norm**2 / 2, "spectral_norm": ours.spectral_norm**2 / 2, "xmin": ours.pl_xmin / 2,
        "sv_max": ours.spectral_norm / 2**0.5, "log_norm": ours.log_norm - two, "alpha": ours.pl_alpha,
        "alpha_weighted": ours.alpha_weighted - ours.pl_alpha * two, "entropy": ours.entropy, "D": ours.pl_ks,
        "log_alpha_norm": ours.log_alpha_norm - ours.pl_alpha * two, "stable_rank": ours.stable_rank,
        "matrix_rank": ours.matrix_rank, "detX_num": ours.detx_k,
    }.items():  # fmt: skip
        assert scaled[column] == pytest.approx(value, rel=1e-6), column
    assert unscaled["norm"] == pytest.approx(ours.frobenius_norm**2)


def test_the_bulk_of_a_trained_matrix(theirs, weights):
    ours = specdiag.analyze({"query.weight": weights["query.weight"]}, device="cpu")["query.weight"]
    their = theirs["noise"]["query"]
    assert f"query matrix of MiniLM: {their['bulk_max']:.1f} there, {ours.mp_edge:.1f} here" in PAGE
    assert f"The same matrix: {their['num_spikes']} there, {ours.mp_spikes} here" in PAGE


def test_what_fails_there(theirs):
    failed = theirs["failed"]["tiny"]
    assert (failed["alpha"], failed["status"], failed["warning"]) == (-1, "failed", "over-trained")
    assert theirs["mean"] == pytest.approx((theirs["failed"]["dense"]["alpha"] - 1) / 2)
    assert theirs["peak"]["dense"]["alpha"] == -1
    assert theirs["raised"] == ["AttributeError", "TypeError"]


def test_clipping(theirs):
    clipped, by_hand = theirs["clipped"]["dense"], theirs["clipped by hand"]["dense"]
    assert clipped["num_fingers"] == 1
    assert clipped["raw_alpha"] == pytest.approx(theirs["plain"]["dense"]["alpha"])
    assert clipped["alpha"] == pytest.approx(by_hand["alpha"])


def test_how_much_clipping_changes(minilm):
    fits = [record for record in specdiag.analyze(minilm, tail="clip-xmax", device="cpu") if record.alpha is not None]
    assert f"It changes {sum(r.n_clipped > 0 for r in fits)} of MiniLM's {len(fits)} fits." in " ".join(PAGE.split())
