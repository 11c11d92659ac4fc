"""The benchmark runs, checks that the work is equal, and docs/comparison.md shows what it last said."""

import importlib
import json
import sys
from pathlib import Path

import pytest
from command import benchmark, call

from specdiag.analysis import cost
from specdiag.analysis.source import open_source

ROOT = Path(__file__).parents[2]
PEERS = ("alphadecay", "weightwatcher")
sys.path.append(str(ROOT / "benchmarks"))
tables = importlib.import_module("scale_tables")
OURS = (
    "specdiag float32",
    "specdiag default",
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "peers.json"
    done = benchmark("peers.py", "--models", "tiny", "--rounds", 1, "--process-rounds", 1, "--out", out)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()) | {"stdout": done.stdout}


@pytest.mark.slow
def test_every_contender_is_measured_with_its_ratio_and_its_floor(results):
    tiny = results["models"]["tiny"]
    assert tiny["matrices"] == 14
    for what in ("compute_seconds", "process_seconds", "peak_bytes"):
        assert {*PEERS, *OURS} <= tiny[what].keys()
        for spread in tiny[what].values():
            assert 0 < spread["low"] <= spread["median"] <= spread["high"]
            assert len(spread["rounds"]) == 1
        for name in OURS:
            for peer in PEERS:
                ratio = tiny[what][peer]["rounds"][0] / tiny[what][name]["rounds"][0]
                assert tiny["times_better"][what][name][peer] == pytest.approx(ratio)
    gflop = sum(n * n * m + 4 / 3 * n**3 for n, m in 8 * [(64, 64)] + 6 * [(64, 172)]) / 1e9
    assert tiny["gflop"] == pytest.approx(gflop)
    for name in OURS:
        floor = gflop / tiny["syrk_gflops"]["float32" if name.endswith("float32") else "float64"]
        assert tiny["of_floor"][name] == pytest.approx(tiny["compute_seconds"][name]["median"] / floor)


@pytest.mark.slow
def test_a_run_says_where_it_ran_and_prints_a_line_for_each(results):
    assert results["machine"]["cpu"]
    assert results["machine"]["cores"] > 0
    assert {"python", "torch", "weightwatcher"} <= results["versions"].keys()
    assert results["command"].startswith("python benchmarks/peers.py --models tiny")
    for name in (*PEERS, *OURS, "specdiag, embeddings too"):
        assert f"\n{name} " in results["stdout"]


@pytest.mark.slow
def test_the_same_matrices_got_the_same_exponents(results):
    checks = {(c["peer"], c["specdiag"]): c for c in results["models"]["tiny"]["agreement"]}
    assert {("alphadecay", "specdiag float32"), ("weightwatcher", "specdiag default")} <= checks.keys()
    for check in checks.values():
        assert check["matrices"] == 14
        assert 0 <= check["largest"] <= check["tolerance"] <= 1e-3


@pytest.mark.parametrize("answers", [{"a": 2.0}, {"a": 2.0, "b": 3.1}])
def test_unequal_work_stops_the_run(answers):
    """Another set of matrices, or another exponent: counter-test of the agreement."""
    expected = {"a": 2.0, "b": 3.0}
    code = (
        "import sys; sys.path.insert(0, 'benchmarks'); import peers\n"
        f"found = {{'alpha': {answers}, 'pl_alpha': {{}}}}\n"
        f"peers._agreement({{'alphadecay': {{'alpha': {expected}}}, **dict.fromkeys(peers.OURS, found)}}, coarse=False)"
    )
    done = call([sys.executable, "-c", code], cwd=ROOT)
    assert done.returncode == 1
    assert "differ" in done.stderr


def test_the_page_shows_the_committed_figures():
    done = benchmark("peers.py", "--docs", "--check")
    assert done.returncode == 0, done.stderr


def test_the_committed_figures_are_those_of_the_full_benchmark_on_a_quiet_machine():
    results = json.loads((ROOT / "benchmarks" / "results" / "peers.json").read_text())
    assert results["rounds"] >= 7
    assert set(results["models"]) == {"minilm", "135m-bf16", "135m"}
    assert results["cores_used_by_others"] <= 0.1


def test_the_docs_show_the_committed_figures_of_scale_and_dry_run_estimates_by_them():
    done = benchmark("scale.py", "--docs", "--check")
    assert done.returncode == 0, done.stderr
    committed = json.loads((ROOT / "benchmarks" / "results" / "scale.json").read_text())
    for dtype, fitted in tables.fit(committed["parts"]["calibration"]).items():
        assert fitted == pytest.approx(cost.NANOSECONDS[dtype])
    unseen = [row for row in committed["parts"]["models"] if row["model"] in ("1b", "1b-bf16", "7b-layer")]
    for row in unseen:
        predicted = tables._of_model(cost.NANOSECONDS, row["model"], row["way"], row["jobs"])
        assert predicted == pytest.approx(row["seconds"], rel=0.25)


def test_the_docs_show_the_committed_times_of_many_tensors():
    done = benchmark("many_tensors.py", "--docs", "--check")
    assert done.returncode == 0, done.stderr


def test_files_of_many_tensors_are_listed_whole(tmp_path, monkeypatch):
    many = importlib.import_module("many_tensors")
    monkeypatch.setattr(many, "BUILD", tmp_path)
    for path, count in ((many.matrices(3), 3), (many.vectors(3), 4), (many.experts(1, 2), 12), (many.noise(3), 3)):
        assert open_source(path).n_tensors == count
    assert open_source(many.pickled(3)).n_tensors == 3


def test_a_matrix_is_counted_by_its_sides():
    fitted = {"float64": (1.0, 10.0, 100.0, 1000.0, 10000.0)}
    assert tables.seconds(fitted, 2, 5, "float64") == (20 + 80 + 400 + 10000 + 10000) / 1e9
    assert tables.seconds(fitted, 5, 2, "float64") == tables.seconds(fitted, 2, 5, "float64")


def test_without_a_gpu_nothing_is_measured_and_nothing_fails():
    code = (
        "import sys, runpy, torch; sys.path.insert(0, 'benchmarks'); torch.cuda.is_available = lambda: False\n"
        "runpy.run_path('benchmarks/gpu.py', run_name='__main__')"
    )
    done = call([sys.executable, "-c", code], cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "torch finds no CUDA device here: nothing was measured\n")
    assert benchmark("gpu.py", "--docs", "--check").returncode == 0
