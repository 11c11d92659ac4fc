import csv
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from command import python
from helpers import esd, lcg, naive_hill, with_singular_values
from models import llama_shapes, queries, random_state, tensors, write_checkpoint
from safetensors.torch import save_file

import specdiag
from specdiag.errors import SourceError, UsageError
from specdiag.spectra.square import cut_alpha, square_null
from specdiag.spectra.tail_rules import TAIL_RULES
from specdiag.spectra.tails import hill

ATTENTION = "model.layers.{}.self_attn.{}_proj.weight"
MLP = "model.layers.{}.mlp.{}_proj.weight"


def network(layers=2):
    """The layers of a LLaMA of Gaussian weights, without its embedding."""
    shapes = {name: shape for name, shape in llama_shapes(layers).items() if ".layers." in name}
    return tensors(random_state(shapes))


def one(w, **options):
    """The record of a single matrix."""
    (record,) = specdiag.analyze({"layers.0.self_attn.q_proj.weight": torch.as_tensor(w)}, device="cpu", **options)
    return record


def test_weightwatcher_on_minilm(minilm):
    report = specdiag.analyze(minilm, device="cpu")
    rows = list(csv.DictReader((Path(__file__).parents[1] / "data" / "ww_minilm.csv").read_text().splitlines()))
    assert len(rows) == 39
    for row in rows:
        r = report[f"{row['name']}.weight"]
        pairs = {
            "alpha": r.pl_alpha, "xmin": r.pl_xmin, "D": r.pl_ks, "num_pl_spikes": r.pl_k, "log_norm": r.log_norm,
            "alpha_weighted": r.alpha_weighted, "log_alpha_norm": r.log_alpha_norm, "entropy": r.entropy,
            "stable_rank": r.stable_rank, "matrix_rank": r.matrix_rank, "spectral_norm": r.spectral_norm**2,
            "norm": r.frobenius_norm**2, "sigma": (r.pl_alpha - 1) / r.pl_k**0.5,
        }  # fmt: skip
        for column, value in pairs.items():
            assert value == pytest.approx(float(row[column]), rel=1e-9), (row["name"], column)


def test_minilm_counts_and_roles(minilm):
    report = specdiag.analyze(minilm, device="cpu")
    roles = {r.role: r.n for r in report.summary.roles}
    assert roles == {"q": 6, "k": 6, "v": 6, "o": 6, "up": 6, "down": 6, "embed": 3, "other": 1}
    assert report.summary.n_tensors == 104
    assert len(report) + len(report.skipped) == 104
    square = {c.attention: c for c in report.summary.contrasts if c.basis == "square_alpha"}
    raw = {c.attention: c for c in report.summary.contrasts if c.basis == "alpha"}
    assert (raw["all"].n_positive, raw["all"].random_n_positive) == (6, 6)
    assert square["all"].n_positive in (4, 5)


@pytest.mark.parametrize(
    ("w", "status"),
    [
        (np.zeros((64, 80), np.float32), "zero"),
        (np.eye(64, dtype=np.float32), "degenerate"),
        (np.linalg.qr(lcg(96, 64, 1))[0].astype(np.float32), "degenerate"),
        ((lcg(64, 8, 1) @ lcg(8, 96, 2)).astype(np.float32), "low_rank"),
        ((lcg(64, 31, 1) @ lcg(31, 64, 2)).astype(np.float64), "low_rank"),
        (lcg(40, 300, 1).astype(np.float32), "too_few"),
        (np.where(np.arange(6400).reshape(64, 100) == 7, np.inf, 1.0).astype(np.float32), "nonfinite"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_degenerate_input_has_a_status_and_no_alpha(w, status, dtype):
    record = one(w, dtype=dtype)
    assert record.status == status
    assert record.alpha is record.alpha_null is record.rho is record.z is None
    assert record.square_alpha is None
    if status != "nonfinite":
        assert record.frobenius_norm == pytest.approx(np.linalg.norm(w), rel=1e-5)
    if status in ("low_rank", "zero"):
        assert record.matrix_rank == np.linalg.matrix_rank(w)


def test_orthogonal_bf16_is_degenerate_and_noise_is_not():
    orthogonal = torch.from_numpy(np.linalg.qr(lcg(128, 128, 1))[0]).bfloat16()
    assert one(orthogonal).status == "degenerate"
    assert one(torch.from_numpy(lcg(128, 128, 1)).bfloat16()).status == "ok"


def test_low_rank_of_two_thirds_still_has_an_alpha():
    """Zeros below the threshold: Hill drops nothing, for parity with its reference."""
    w = np.diag(np.r_[np.zeros(20), np.arange(1.0, 45)])
    record = one(w)
    assert record.status == "ok"
    assert (record.n_zero, record.matrix_rank) == (20, 44)
    assert record.alpha == pytest.approx(1.6881224, abs=1e-6)
    assert record.alpha == pytest.approx(naive_hill(np.diag(w) ** 2 + 0.0), rel=1e-9)


def test_one_bad_tensor_poisons_nothing():
    state = network()
    clean = specdiag.analyze(state, device="cpu")
    bad = dict(state)
    bad[ATTENTION.format(0, "q")] = torch.full((64, 64), float("nan"))
    bad[MLP.format(1, "up")] = torch.zeros(160, 64)
    found = specdiag.analyze(bad, device="cpu")
    assert found.summary.statuses == {"ok": 12, "nonfinite": 1, "zero": 1}
    for a, b in zip(found, clean, strict=True):
        assert a == b or a.status in ("nonfinite", "zero")
    assert found[ATTENTION.format(0, "q")].n_nonfinite == 64 * 64
    assert all(c.difference == c.difference for c in found.summary.contrasts)


def test_every_number_of_one_record():
    w = lcg(64, 171, 1)
    r, eigenvalues = one(w), esd(w)
    assert (r.rows, r.cols, r.n_eigenvalues, r.n_zero, r.status) == (64, 171, 64, 0, "ok")
    assert r.alpha == r.alpha_50 == pytest.approx(3.0314009469762127, rel=1e-9)
    assert r.alpha_25 == pytest.approx(hill(eigenvalues, 0.25).alpha, rel=1e-9)
    assert r.alpha_75 == pytest.approx(hill(eigenvalues, 0.75).alpha, rel=1e-9)
    assert (r.k, r.xmin) == (32, pytest.approx(eigenvalues[32]))
    assert r.se_iid == pytest.approx((r.alpha - 1) / 32**0.5)
    assert 0 < r.alpha_error < 1e-12
    assert r.rho == pytest.approx((r.alpha - 1) / (r.alpha_null - 1))
    assert abs(r.z) < 4
    assert r.pl_alpha == pytest.approx(5.199482, abs=1e-6)
    assert r.square_rho == pytest.approx((r.square_alpha - 1) / (square_null((64, 171)) - 1), rel=1e-12)
    assert r.square_alpha == pytest.approx(cut_alpha(eigenvalues[None], 171).alpha, rel=1e-9)
    assert (r.living_rows, r.living_cols) == (64, 171)
    assert r.spectral_norm == pytest.approx(np.linalg.norm(w, 2))
    assert r.frobenius_norm == pytest.approx(np.linalg.norm(w))
    assert (r.method, r.compute_dtype, r.tail) == ("gram", "float64", "hill")


@pytest.mark.parametrize("tail", TAIL_RULES)
def test_tails(tail):
    w = lcg(96, 200, 1)
    r = one(w, tail=tail)
    assert r.tail == tail
    rule = TAIL_RULES[tail]
    if rule.windows is None:
        assert r.alpha == pytest.approx(rule.fit(esd(w), 0.5).alpha, rel=1e-9)
    if not rule.has_null:
        assert r.rho is r.alpha_null is None
    if tail == "ks":
        assert (r.alpha, r.k) == (r.pl_alpha, r.pl_k)
    if tail == "farms":
        assert r.alpha == pytest.approx(2.15, abs=0.1)
        assert r.alpha_null == pytest.approx(2.15, abs=0.05)
    else:
        assert r.z is None or tail == "hill"


def test_tail_fraction_moves_alpha_and_its_null_together():
    w = np.random.default_rng(0).standard_normal((300, 800))
    alphas = [one(w, tail_fraction=f) for f in (0.1, 0.25, 0.5, 0.75)]
    assert [r.alpha for r in alphas] == pytest.approx([9.14, 4.89, 2.99, 2.19], rel=0.04)
    assert all(r.rho == pytest.approx(1, abs=0.05) for r in alphas)
    assert [r.z is None for r in alphas] == [True, True, False, True]


def test_float32_withholds_what_it_cannot_know():
    r = one(lcg(100, 100, 1), dtype="float32")
    assert r.compute_dtype == "float32"
    assert r.n_zero is r.matrix_rank is r.detx_k is r.entropy is None
    exact = one(lcg(100, 100, 1))
    for name in ("alpha", "pl_alpha", "effective_rank", "stable_rank", "mp_edge", "log_alpha_norm"):
        assert getattr(r, name) == pytest.approx(getattr(exact, name), rel=1e-4), name
    assert abs(r.alpha - exact.alpha) <= r.alpha_error


@pytest.mark.parametrize(("shape", "alpha"), [((64, 64), 2.1294118), ((64, 256), 3.5191008)])
def test_float32_values(shape, alpha):
    record = one(lcg(*shape, 1), dtype="float32")
    assert record.compute_dtype == "float32"
    assert record.alpha == pytest.approx(alpha, abs=record.alpha_error + 1e-7)
    assert record.alpha_error < 1e-4


def test_float32_falls_back_where_rounding_would_show():
    w = with_singular_values(np.geomspace(1e-2, 1e2, 100), (100, 150))
    r = one(w, dtype="float32")
    assert (r.method, r.compute_dtype) == ("gram", "float64")
    assert r.alpha == pytest.approx(hill(esd(w)).alpha, rel=1e-6)
    steep = with_singular_values(np.geomspace(1e-9, 1, 100), (100, 150))
    r = one(steep)
    assert (r.method, r.compute_dtype) == ("svd", "float64")
    assert r.alpha == pytest.approx(hill(esd(steep)).alpha, rel=1e-6)


def test_svd_float32_is_the_reference_to_the_bit():
    torch.set_num_threads(1)
    w = torch.randn(96, 300, generator=torch.Generator().manual_seed(1))
    eigs, _ = torch.sort(torch.square(torch.linalg.svdvals(w.float()).flatten()), descending=False)
    i, n = int(len(eigs) / 2), float(len(eigs) - int(len(eigs) / 2))
    logs = torch.log(eigs)
    reference = (1 + n / (torch.sum(logs[i:]) - n * logs[i])).item()
    assert one(w, method="svd", dtype="float32").alpha == reference


def test_jobs_do_not_change_a_bit():
    state = network(3)
    assert specdiag.analyze(state, jobs=1).records == specdiag.analyze(state, jobs=4).records


def test_model_state_dict_and_file_agree(tmp_path):
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.self_attn = torch.nn.MultiheadAttention(64, 4)
            self.linear1, self.linear2 = torch.nn.Linear(64, 160), torch.nn.Linear(160, 64)
            self.norm1 = torch.nn.LayerNorm(64)

    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([Layer(), Layer()])})
    write_checkpoint(tmp_path, model.state_dict(), config=None)
    reports = [specdiag.analyze(s, device="cpu") for s in (model, model.state_dict(), tmp_path)]
    assert {r.source.kind for r in reports} == {"memory", "dir"}
    by_name = [{r.key: r for r in report} for report in reports]
    assert by_name[0] == by_name[1] == by_name[2]
    assert {r.role for r in reports[0]} == {"q", "k", "v", "o", "up", "down"}


def test_tied_weights_are_analysed_once(tmp_path):
    rng = np.random.default_rng(0)
    embed = rng.standard_normal((300, 64)).astype(np.float32)
    state = {k: v.numpy() for k, v in network().items()}
    state |= {"model.embed_tokens.weight": embed, "lm_head.weight": embed.copy()}
    write_checkpoint(tmp_path, state, config=None)
    report = specdiag.analyze(tmp_path, device="cpu")
    tied = [s for s in report.skipped if "tied" in s.reason]
    assert len(tied) == 1
    assert len([r for r in report if r.family == "embedding"]) == 1
    state["lm_head.weight"] = embed + np.float32(1e-3)
    write_checkpoint(tmp_path, state, config=None)
    assert len([r for r in specdiag.analyze(tmp_path) if r.family == "embedding"]) == 2


def test_selection():
    state = network()
    assert {r.role for r in specdiag.analyze(state, roles=["q", "down"])} == {"q", "down"}
    report = specdiag.analyze(state, include=["*.layers.0.*"], exclude=["*mlp*"])
    assert len(report) == 4
    assert len(report.skipped) == 10
    assert {s.reason for s in report.skipped} == {"not selected"}
    with pytest.raises(UsageError, match=r"include='nope\*' matches none of 14 matrices; their names look like"):
        specdiag.analyze(state, include=["nope*"])
    with pytest.raises(UsageError, match=r"unknown roles='query'; roles are q, k, v"):
        specdiag.analyze(state, roles=["query"])
    with pytest.raises(UsageError, match=r"tail_fraction=1.5 is not between 0 and 1"):
        specdiag.analyze(state, tail_fraction=1.5)
    with pytest.raises(UsageError, match=r"unknown tail='hil'; choose from hill"):
        specdiag.analyze(state, tail="hil")
    with pytest.raises(SourceError, match="none of the 14 matrices has"):
        specdiag.analyze(state, roles=["router"])


def test_nothing_to_analyse():
    with pytest.raises(SourceError, match="nothing to analyse in 2 tensors"):
        specdiag.analyze({"norm.weight": torch.ones(8), "norm.bias": torch.ones(8)})


def test_a_file_without_tensors_is_called_so(tmp_path):
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(SourceError, match="holds no tensors: save the weights again"):
        specdiag.analyze(tmp_path)
    np.savez(tmp_path / "arrays.npz")
    with pytest.raises(SourceError, match="is a zip archive without members"):
        specdiag.analyze(tmp_path / "arrays.npz")


def test_memory_limit_reduces_workers_or_says_so():
    state = network()
    assert specdiag.analyze(state, jobs=4, memory=1 << 30).provenance.jobs == 4
    assert specdiag.analyze(state, jobs=4, memory=700_000).provenance.jobs < 4
    with pytest.raises(UsageError, match=r"needs about [\d.]+ KiB and memory= allows 1000 bytes"):
        specdiag.analyze(state, memory=1000)


def test_interruption_keeps_what_was_done():
    def stop(progress):
        if progress.matrices == 5:
            raise KeyboardInterrupt

    with pytest.raises(specdiag.Interrupted) as caught:
        specdiag.analyze(network(), progress=stop, jobs=2, randomize=True)
    report = caught.value.report
    assert len(report) == 5
    assert not report.complete
    assert all(report.eigenvalues(r.key, randomized=True)[-1] ** 0.5 == r.rand_spectral_norm for r in report)
    full = {r.key: r for r in specdiag.analyze(network(), randomize=True)}
    assert all(full[r.key] == r for r in report)


def test_progress_reaches_the_end():
    seen = []
    specdiag.analyze(network(), progress=seen.append)
    assert [p.matrices for p in seen] == list(range(1, 15))
    assert seen[-1].fraction == pytest.approx(1)
    assert seen[-1].nbytes == seen[-1].n_bytes == 2 * (4 * 64 * 64 + 3 * 64 * 160) * 4


def test_threads_are_gone_afterwards():
    before = threading.active_count()
    specdiag.analyze(network(), jobs=3)
    for thread in threading.enumerate():
        if thread.name.startswith("specdiag"):
            thread.join(timeout=5)
    assert threading.active_count() == before


def test_randomize_tells_a_few_huge_entries_from_structure():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((120, 200))
    structured = noise + 40 * np.outer(rng.standard_normal(120), rng.standard_normal(200)) / 120
    trap = noise.copy()
    trap[3, 5] = 200
    found = [one(w, randomize=True) for w in (noise, structured, trap)]
    assert [r.rand_spikes for r in found] == [0, 0, 1]
    assert found[1].mp_spikes == 1
    assert found[2].rand_spectral_norm == pytest.approx(200, rel=0.05)
    assert one(noise, randomize=True) == found[0]
    assert one(noise, randomize=True, seed=1).rand_spectral_norm != found[0].rand_spectral_norm
    assert one(noise).rand_spikes is None


def test_randomized_eigenvalues_are_those_of_permuted_entries():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((120, 200)) + 40 * np.outer(rng.standard_normal(120), rng.standard_normal(200)) / 120
    state = network(1) | {"model.layers.0.mlp.gate_proj.weight": torch.from_numpy(w)}
    report = specdiag.analyze(state, device="cpu", randomize=True)
    for r in report:
        found = report.eigenvalues(r.key, randomized=True)
        assert found.shape == (r.n_eigenvalues,)
        assert (np.diff(found) >= 0).all()
        assert found[-1] ** 0.5 == r.rand_spectral_norm
        assert found.sum() == pytest.approx(r.frobenius_norm**2)
    gate = "model.layers.0.mlp.gate_proj.weight"
    found, other = report.eigenvalues(gate, randomized=True), esd(rng.permutation(w.reshape(-1)).reshape(w.shape))
    assert np.quantile(found, [0.1, 0.5, 0.9, 1]) == pytest.approx(np.quantile(other, [0.1, 0.5, 0.9, 1]), rel=0.1)
    assert report.eigenvalues(gate)[-1] > 2 * found[-1]


def test_randomized_eigenvalues_are_there_exactly_where_the_record_says_so():
    state = network(1) | {
        "zero.weight": torch.zeros(64, 64),
        "bad.weight": torch.full((64, 64), torch.nan),
        "conv.weight": torch.randn(8, 4, 3, 3),
        "few.weight": torch.randn(8, 80),
    }
    for randomize in (True, False):
        report = specdiag.analyze(state, device="cpu", randomize=randomize)
        for r in report:
            assert (r.rand_spectral_norm is not None) == (randomize and r.name not in ("zero.weight", "bad.weight"))
            if r.rand_spectral_norm is not None:
                assert report.eigenvalues(r.key, randomized=True).shape == report.eigenvalues(r.key).shape
                continue
            why = f"its status is {r.status}" if randomize else "analyze with randomize=True"
            with pytest.raises(UsageError, match=f"'{r.name}' has no eigenvalues with its entries permuted: {why}"):
                report.eigenvalues(r.key, randomized=True)
    assert report.records == specdiag.analyze(state, device="cpu").records


def test_untrained_llama_shapes_score_their_null():
    """The raw exponent of random weights: attention 2.13, MLP 3.0; rho 1 for both."""
    rng = np.random.default_rng(0)
    state = {
        ATTENTION.format(0, "q"): torch.from_numpy(rng.standard_normal((512, 512))),
        MLP.format(0, "up"): torch.from_numpy(rng.standard_normal((1376, 512))),
    }
    q, up = specdiag.analyze(state, device="cpu")
    assert (q.alpha, up.alpha) == (pytest.approx(2.126, abs=0.04), pytest.approx(3.003, abs=0.05))
    assert (q.rho, up.rho) == (pytest.approx(1, abs=0.03), pytest.approx(1, abs=0.03))
    assert abs(q.z) < 4 > abs(up.z)
    assert up.square_alpha == pytest.approx(q.square_alpha, abs=0.04)


WATCHED = """
import os, sys
import specdiag
import specdiag.spectra.eigenvalues as engine
from specdiag.analysis import workers
from specdiag.spectra import solvers

solve, seen = engine.torch_eigvalsh, []

def watched(gram):
    found = solve(gram)
    seen.append(len(os.listdir("/proc/self/task")))
    return found

row = solvers.Crossing("", "", 64, 64, "here")
engine.torch_eigvalsh, solvers.crossing, workers.crossing = watched, lambda: row, lambda: row
specdiag.analyze(sys.argv[1], jobs=2)
print(len(seen), max(seen))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted on Linux")
def test_workers_with_torch_have_one_thread_each_whatever_is_the_default(tmp_path):
    """Else each has the OpenMP threads of torch beside it, and two workers on two processors are slower than one."""
    path = write_checkpoint(tmp_path / "six", queries(6, 96, 96))
    found = []
    for threads in ("1", "2"):
        environment = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": "1"}
        found.append(python(WATCHED, path, env=environment).stdout.split())
    assert found[0] == found[1]
    assert found[0][0] == "6"


def test_a_product_of_factors_that_was_stored_in_float64_has_no_noise_to_be_compared_with():
    """Its only noise is the rounding of the float32 in which it was computed."""
    torch.manual_seed(0)
    product = torch.randn(100, 40) @ torch.randn(40, 400)
    for stored in (product, product.double(), product.double() / 100):
        (record,) = specdiag.analyze({"layers.0.mlp.up_proj.weight": stored}, device="cpu")
        assert record.mp_edge is record.mp_spikes is record.mp_softrank is record.square_alpha is None
