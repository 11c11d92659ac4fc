"""benchmarks/quantisation.py, and its table in docs/quantisation.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import BENCHMARKS, benchmark


def test_the_docs_show_the_committed_figures() -> None:
    done = benchmark("quantisation.py", "--docs", "--check")
    assert done.returncode == 0, done.stderr


def test_the_benchmark_gives_its_committed_figures(tmp_path: Path) -> None:
    done = benchmark("quantisation.py", "--formats", "int8,nf4,q4_1", "--out", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    committed = json.loads((BENCHMARKS / "results" / "quantisation.json").read_text())
    assert list(found["formats"]) == ["int8", "nf4", "q4_1"]
    for key, entry in [*found["formats"].items(), ("fracast", found["fracast"])]:
        expected = committed["formats"].get(key, committed["fracast"])
        assert entry["low_rank"] == expected["low_rank"]
        for column in ("alpha", "square_alpha"):
            assert entry[column]["mean"] == pytest.approx(expected[column]["mean"], abs=1e-4)
            assert entry[column]["matrices"] == expected[column]["matrices"]


def test_the_committed_figures_say_what_the_docs_say() -> None:
    """Fewer bits, larger changes; rounding makes tails lighter; its error is known."""
    formats = json.loads((BENCHMARKS / "results" / "quantisation.json").read_text())["formats"]
    size = {key: entry["alpha"]["mean_absolute"] for key, entry in formats.items()}
    assert size["bf16"] < size["int8"] < size["fp8-tensor"] < size["gptq4"] < size["gptq3"] < size["gptq2"]
    assert all(entry["alpha"]["mean"] > 0.0015 for entry in formats.values() if entry["bits"] <= 5)
    assert all(entry["alpha"]["mean_absolute"] < 0.006 for entry in formats.values() if entry["bits"] >= 4)
    for key, entry in formats.items():
        if entry["estimated"] is not None:
            known = 0.13 if key in ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0") else 0.08
            assert entry["estimated"]["median"] == pytest.approx(1, abs=known), key
