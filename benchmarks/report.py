"""Reduce measurements to medians and ratios, and write them as tables, for the terminal and docs/comparison.md."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import pages
from measure import LIBRARY_CHOICES
from measured_models import COARSE

from specdiag.system.distributions import version

_PACKAGES = ("specdiag", "torch", "numpy", "scipy", "safetensors", "weightwatcher", "powerlaw", "diffract-core")
QUIET = 0.1
"""Processors that others may use, on average, in a run worth quoting."""


def header(missing: Mapping[str, str], rounds: int, process_rounds: int) -> dict[str, Any]:
    """Where, when, with what."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/peers.py", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(_PACKAGES),
        "ignored_variables": sorted(v for v in os.environ if v.startswith(LIBRARY_CHOICES)),
        "left_out": dict(missing),
        "rounds": rounds,
        "process_rounds": process_rounds,
        "models": {},
    }


def machine() -> dict[str, Any]:
    """The machine and its settings."""
    return {"cpu": processor(), "cores": len(os.sched_getaffinity(0)), "system": platform.system()}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python, and of these packages where they are installed."""
    return {"python": platform.python_version()} | {p: v for p in packages if (v := _version(p))}


def figures(
    title: str,
    folder: Path,
    compute: dict[str, Any],
    process: Mapping[str, list[tuple[float, int]]],
    peers: Iterable[str],
    ours: Iterable[str],
) -> dict[str, Any]:
    """One model: every round, medians, ratios per round and their median, distance from the floor."""
    shapes = block_shapes(folder)
    gflop = sum(n * n * m + 4 / 3 * n**3 for n, m in map(sorted, shapes)) / 1e9
    rates = {dtype: median(r["gflops"][dtype] for r in compute["rates"]) for dtype in ("float32", "float64")}
    floor = {dtype: gflop / rate for dtype, rate in rates.items()}
    measured: dict[str, dict[str, Sequence[float]]] = {
        "compute_seconds": compute["seconds"],
        "process_seconds": {name: [seconds for seconds, _ in rounds] for name, rounds in process.items()},
        "peak_bytes": {name: [peak for _, peak in rounds] for name, rounds in process.items()},
    }
    return {
        "title": title,
        "matrices": len(shapes),
        "gflop": gflop,
        "blas": compute["rates"][0]["blas"],
        "syrk_gflops": rates,
        "floor_seconds": floor,
        "agreement": compute["agreement"],
        "alphadecay_arithmetic_seconds": spread(compute["arithmetic"]),
        **{what: {name: spread(r) for name, r in rounds.items()} for what, rounds in measured.items()},
        "of_floor": {name: median(compute["seconds"][name]) / floor[_arithmetic(name, folder)] for name in ours},
        "times_better": {
            what: {name: times_better(rounds, name, peers) for name in ours} for what, rounds in measured.items()
        },
    }


def _arithmetic(name: str, folder: Path) -> str:
    """The type in which a contender of ours computes the weights of a folder."""
    return "float32" if name.endswith("float32") or folder.name.endswith(COARSE) else "float64"


def times_better(rounds: Mapping[str, Sequence[float]], name: str, peers: Iterable[str]) -> dict[str, float]:
    """The median over rounds of what a peer takes over what `name` takes in the same round, for each peer."""
    return {p: median(a / b for a, b in zip(rounds[p], rounds[name], strict=True)) for p in peers if p in rounds}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes, and every value."""
    return {"median": median(values), "low": min(values), "high": max(values), "rounds": list(values)}


def block_shapes(folder: Path) -> list[tuple[int, int]]:
    """Shapes of the block matrices of a safetensors file, from its header."""
    with (folder / "model.safetensors").open("rb") as file:
        entries = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    found = [tuple(entry["shape"]) for name, entry in entries.items() if "layer" in name]
    return [(shape[0], shape[1]) for shape in found if len(shape) == 2 and prod(shape)]


def table(results: dict[str, Any]) -> str:
    """Everything, for a terminal."""
    machine = results["machine"]
    lines = [f"{machine['cpu']}, {machine['cores']} cores; {results['rounds']} rounds, median (min-max)"]
    others = results["cores_used_by_others"]
    if others is not None and others > QUIET:
        lines.append(f"NOT TO BE QUOTED: others kept {others:.2f} cores busy meanwhile; run again on a quiet machine")
    for model in results["models"].values():
        rates = ", ".join(f"{rate:.0f} GFLOP/s {dtype}" for dtype, rate in model["syrk_gflops"].items())
        lines += [
            "",
            f"{model['title']}: {model['matrices']} matrices, {model['gflop']:.1f} GFLOP, syrk {rates}",
            f"{'':32}{'compute s':>20}{'process s':>20}{'peak MiB':>9}{'of floor':>9}  compute, process, memory",
        ]
        lines += [_line(name, model) for name in model["compute_seconds"]]
        arithmetic = _seconds(model["alphadecay_arithmetic_seconds"])
        lines.append(f"{'alphadecay, arithmetic alone':32}{arithmetic:>20}")
        for check in model["agreement"]:
            lines.append(
                f"{check['column']} of {check['specdiag']} and {check['peer']}: {check['matrices']} matrices agree to "
                f"{check['largest']:.0e}"
            )
    return "\n".join(lines)


def _line(name: str, model: dict[str, Any]) -> str:
    line = f"{name:32}{_seconds(model['compute_seconds'][name]):>20}{_seconds(model['process_seconds'][name]):>20}"
    line += f"{model['peak_bytes'][name]['median'] / 2**20:9.0f}"
    if name not in model["of_floor"]:
        return line
    line += f"{model['of_floor'][name]:9.2f}"
    better = model["times_better"]
    for peer in better["compute_seconds"][name]:
        ratios = "/".join(f"{ratios[name][peer]:.1f}" for ratios in better.values())
        line += f"  {ratios}x {peer}"
    return line


def _seconds(s: dict[str, Any]) -> str:
    return f"{s['median']:.2f} ({s['low']:.2f}-{s['high']:.2f})"


def update_docs(path: Path, source: Path, *, check: bool) -> int:
    """Put the figures into docs/comparison.md, or with `check` say whether they stand there; an exit code."""
    if not source.exists():
        print(f"{source} does not exist: run benchmarks/peers.py", file=sys.stderr)
        return 1
    sections = {"bench": _figures(json.loads(source.read_text()))}
    return pages.update(path, sections, source, "benchmarks/peers.py --docs", check=check)


def _figures(results: dict[str, Any]) -> str:
    """The figures in Markdown: compute and its ratio for every model, the process for the last."""
    found = list(results["models"].values())
    last, machine = found[-1], results["machine"]
    head = ["", *(f"{m['title']}, {m['matrices']} matrices" for m in found), "whole process", "peak memory"]
    rows: list[list[str]] = []
    for name in last["compute_seconds"]:
        cells = [_cell(m, name) for m in found]
        process, peak = last["process_seconds"][name]["median"], last["peak_bytes"][name]["median"]
        rows.append([name, *cells, f"{process:.1f} s", f"{peak / 2**20:.0f} MiB"])
    caption = (
        "Seconds from files in the page cache to exponents, without imports. In brackets: how many times faster than "
        f"AlphaDecay's loop / WeightWatcher. Median of {results['rounds']} interleaved rounds on "
        f"{machine['cores']} cores ({machine['cpu']}), {results['date'][:10]}. Whole process and peak memory: "
        f"{last['title']}, median of {results['process_rounds']}. All measure the same matrices, "
        "without embeddings, and their exponents agree."
    )
    return f"{pages.table(head, rows)}\n\n{caption}"


def _cell(model: dict[str, Any], name: str) -> str:
    seconds = f"{model['compute_seconds'][name]['median']:.2f}"
    rounds = {way: found["rounds"] for way, found in model["compute_seconds"].items()}
    if name not in model["of_floor"] and name.startswith("specdiag"):
        of_blocks = times_better({name: rounds[name], "blocks": rounds["specdiag default"]}, "blocks", [name])[name]
        return f"{seconds} ({of_blocks:.2f} of its blocks)"
    ratios = model["times_better"]["compute_seconds"].get(name, {})
    shown = [f"{ratios[p]:.1f}x" for p in ("alphadecay", "weightwatcher") if p in ratios]
    return f"{seconds} ({' / '.join(shown)})" if shown else seconds


def processor() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
