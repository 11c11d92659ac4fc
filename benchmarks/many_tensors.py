"""Processor time of files with very many tensors: to list them, and to measure tiny matrices.

User and system time of whole commands, so that other programs count little; medians of interleaved rounds. All values
are zeros or Gaussian noise of seed 0.

    python benchmarks/many_tensors.py        # some minutes; writes results/many_tensors.json
    python benchmarks/many_tensors.py --docs # puts the figures of that file into docs/scale.md
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import measured_models
import numpy as np
from measure import HERE, environment
from pages import add_options, table, update
from report import machine, versions

OUT = measured_models.ROOT / "benchmarks" / "results" / "many_tensors.json"
DOCS = measured_models.ROOT / "docs" / "scale.md"
BUILD = measured_models.BUILD / "many"
_BYTES = {"F32": 4, "F8_E4M3": 1}


def matrices(count: int = 100_000) -> Path:
    """Matrices of 2 x 2, each in a block of its own."""
    names = (f"model.layers.{i}.w.weight" for i in range(count))
    return _safetensors("matrices", dict.fromkeys(names, ("F32", (2, 2))))


def vectors(count: int = 100_000) -> Path:
    """Gains of norms, and a matrix."""
    gains = {f"model.layers.{i}.input_layernorm.weight": ("F32", (2,)) for i in range(count)}
    return _safetensors("vectors", {**gains, "lm_head.weight": ("F32", (2, 2))})


def experts(layers: int = 61, count: int = 256) -> Path:
    """A mixture of experts in float8, a scale beside each weight."""
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for layer, expert, (name, shape) in product(
        range(layers), range(count), (("gate", (4, 8)), ("up", (4, 8)), ("down", (8, 4)))
    ):
        key = f"model.layers.{layer}.mlp.experts.{expert}.{name}_proj.weight"
        tensors |= {key: ("F8_E4M3", shape), f"{key}_scale_inv": ("F32", (1, 1))}
    return _safetensors("experts", tensors)


def noise(count: int = 20_000) -> Path:
    """Matrices of 2 x 2 of Gaussian noise, a query in each layer."""
    names = (f"model.layers.{i}.self_attn.q_proj.weight" for i in range(count))
    values = np.random.default_rng(0).standard_normal(4 * count, np.float32)
    return _safetensors("noise", dict.fromkeys(names, ("F32", (2, 2))), values.tobytes())


def pickled(count: int = 100_000) -> Path:
    """The matrices as a torch file."""
    import torch

    path = BUILD / f"matrices-{count}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({f"model.layers.{i}.w.weight": torch.zeros(2, 2) for i in range(count)}, path)
    return path


def _safetensors(name: str, tensors: Mapping[str, tuple[str, tuple[int, ...]]], values: bytes | None = None) -> Path:
    path = BUILD / f"{name}-{len(tensors)}.safetensors"
    if path.exists():
        return path
    header: dict[str, dict[str, object]] = {}
    end = 0
    for key, (dtype, shape) in tensors.items():
        begin, end = end, end + _BYTES[dtype] * int(np.prod(shape))
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": (begin, end)}
    content = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(content).to_bytes(8, "little") + content + (values or bytes(end)))
    return path


CASES: Mapping[str, tuple[Callable[[], Path], tuple[str, ...]]] = {
    "list 100,000 matrices, each in a block of its own, as safetensors": (matrices, ("--dry-run",)),
    "list the same in a torch file": (pickled, ("--dry-run",)),
    "list 93,696 tensors of a mixture of experts in float8, with scales, as safetensors": (experts, ("--dry-run",)),
    "list 100,000 vectors and a matrix, as safetensors": (vectors, ("--dry-run",)),
    "analyse 20,000 matrices of 2 x 2, as safetensors": (noise, ("--no-cache",)),
    "list one matrix, as safetensors": (lambda: matrices(1), ("--dry-run",)),
}
"""Commands that are timed, with their file and options."""


def main() -> None:
    """Measure and write; or put the figures where they are quoted."""
    parser = argparse.ArgumentParser(description="Processor time of files with very many tensors.")
    parser.add_argument("--rounds", type=int, default=3, help="times that each command is run")
    parser.add_argument("--out", type=Path, default=OUT, help="where the JSON goes")
    add_options(parser, DOCS)
    options = parser.parse_args()
    if options.docs:
        found = {"many": many_table(json.loads(options.out.read_text()))}
        sys.exit(
            update(options.docs_file, found, options.out, "benchmarks/many_tensors.py --docs", check=options.check)
        )
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for name, (write, arguments) in [case for _ in range(options.rounds) for case in CASES.items()]:
        seconds[name].append(_processor_seconds(write(), arguments))
        print(f"{name}: {seconds[name][-1]:.1f} s", file=sys.stderr, flush=True)
    results = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(("specdiag", "torch", "numpy", "safetensors")),
        "seconds": seconds,
    }
    options.out.write_text(json.dumps(results, indent=1) + "\n")


def many_table(results: dict[str, Any]) -> str:
    """Medians."""
    body = [(name, f"{median(values):.1f} s") for name, values in results["seconds"].items()]
    rounds, cpu = len(next(iter(results["seconds"].values()))), results["machine"]["cpu"]
    times = "Once each" if rounds == 1 else f"Medians of {rounds} rounds"
    return (
        f"{table(('command', 'processor time'), body)}\n\n{times} on one of two cores "
        f"({cpu}), which other programs shared."
    )


def _processor_seconds(source: Path, arguments: tuple[str, ...]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        out = () if "--dry-run" in arguments else ("-o", str(Path(folder) / "report.json"))
        command = [sys.executable, "-m", "specdiag", "analyze", str(source), *arguments, *out]
        child = subprocess.Popen(
            command, env=environment(), cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} exited with {child.returncode}")
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
