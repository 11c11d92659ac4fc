"""Everything that a GPU is needed for, in one command: tests, parity with the CPU, the peer's loop, a training step.

* tests: `pytest -m gpu`;
* parity: the largest relative difference of an upper eigenvalue to the CPU in float64, by shape and type;
* peers: AlphaDecay's arithmetic (torch.linalg.svdvals, one matrix after the other, on the same device) against
  specdiag, interleaved, from files in the page cache to exponents, with the peak of the device's memory;
* training: a step of a LLaMA, alone and with AlphaDecay measuring all matrices at every step.

    make gpu                                             # eight minutes at most; writes benchmarks/results/gpu.json
    python benchmarks/gpu.py --docs                      # puts the figures of that file into docs/scale.md
    python benchmarks/gpu.py --device cpu --models tiny --out FILE   # the same code where there is none
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import measured_models
import numpy as np
import torch
from measure import warm
from pages import add_options, table, update
from report import machine, versions

from specdiag import analyze
from specdiag.optim import AlphaDecay
from specdiag.spectra.accelerator import disagreement, solve
from specdiag.spectra.eigenvalues import ComputeType
from specdiag.spectra.float_types import FLOAT_TYPES

OUT = measured_models.ROOT / "benchmarks" / "results" / "gpu.json"
DOCS = measured_models.ROOT / "docs" / "scale.md"
PARITY = ((512, 512), (512, 1376), (768, 2048), (1024, 1024), (2048, 2048), (4096, 4096))
ROUNDS = {"1b": 1}
_STEPS = 10
Results = dict[str, Any]


def main() -> None:
    """Measure and write; or put the figures where they are quoted; or say that there is no GPU."""
    options = _options()
    if options.docs:
        sys.exit(_update_docs(options))
    if options.device != "cpu" and not torch.cuda.is_available():
        print("torch finds no CUDA device here: nothing was measured")
        return
    start, models = time.perf_counter(), options.models.split(",")
    results: Results = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": _name(options.device),
        "machine": machine(),
        "versions": versions(("specdiag", "torch", "numpy", "scipy")),
    }
    parts: dict[str, Callable[[], Any]] = {
        "tests": _tests,
        "parity": lambda: _parity(options.device, tiny=models == ["tiny"]),
        "peers": lambda: {name: _peers(name, options.device) for name in models},
        "training": lambda: _training(models[-1] if models == ["tiny"] else "135m", options.device),
    }
    for name, measure in parts.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        results[name] = measure()
    results["seconds"] = time.perf_counter() - start
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{_tables(results)}\nwritten: {options.out}, {results['seconds']:.0f} s")


def _name(device: str) -> str:
    return "cpu" if device == "cpu" else torch.cuda.get_device_name(device)


def _tests() -> str:
    """The closing line of the tests that are marked gpu."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-p", "no:randomly"]
    done = subprocess.run(command, cwd=measured_models.ROOT, capture_output=True, text=True, check=False)
    return re.sub(r" in [\d.]+s.*", "", done.stdout.strip().rpartition("\n")[2])


def _parity(device: str, *, tiny: bool) -> list[Results]:
    """By shape, storage type and arithmetic: the difference to the CPU in float64."""
    rows: list[Results] = []
    dtypes: tuple[ComputeType, ...] = ("float32", "float64")
    for shape in PARITY[:1] if tiny else PARITY:
        weight = np.random.default_rng(0).standard_normal((1, *shape)) * 0.02
        for name in ("F32", "BF16"):
            storage = FLOAT_TYPES[name]
            stack = storage.narrow(weight)
            for dtype in dtypes:
                (found,) = solve([stack], [storage], device, dtype)
                difference, tolerated = disagreement(found, stack, storage)
                row = {"shape": shape, "storage": name, "dtype": dtype, "difference": difference}
                rows.append({**row, "tolerated": tolerated})
    return rows


def _peers(name: str, device: str) -> Results:
    """Seconds of both, interleaved, and the largest difference of an exponent."""
    from contenders.alphadecay_loop import alpha
    from safetensors import safe_open

    folder = measured_models.fetch(name)
    peak = 0

    def peer() -> dict[str, float]:
        with safe_open(folder / "model.safetensors", framework="pt", device=device) as file:
            names = [key for key in file.keys() if ".layers." in key and len(file.get_slice(key).get_shape()) == 2]  # noqa: SIM118
            with torch.device(device):  # the loop's ranks are made there too
                return {key: alpha(file.get_tensor(key)) for key in names}

    def ours() -> dict[str, float]:
        nonlocal peak
        _reset(device)
        report = analyze(folder, include=("*.layers.*",), device=device)
        peak = max(peak, _peak(device))
        return {record.key: record.alpha for record in report if record.alpha is not None}

    seconds: dict[str, list[float]] = {"alphadecay": [], "specdiag": []}
    found: dict[str, dict[str, float]] = {}
    for _ in range(ROUNDS.get(name, 3)):
        for who, run in (("alphadecay", peer), ("specdiag", ours)):
            warm(folder)
            begin = time.perf_counter()
            found[who] = run()
            seconds[who].append(time.perf_counter() - begin)
    largest = max(abs(found["specdiag"][key] / value - 1) for key, value in found["alphadecay"].items())
    ratios = [a / b for a, b in zip(seconds["alphadecay"], seconds["specdiag"], strict=True)]
    return {"seconds": seconds, "times_better": median(ratios), "largest_difference": largest, "peak_bytes": peak}


def _training(name: str, device: str) -> Results:
    """Seconds of a step alone and with all matrices measured at every step, in turns."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = measured_models.SHAPES[name]
    config = LlamaConfig(
        hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size, vocab_size=shape.vocab_size,
        num_hidden_layers=shape.num_hidden_layers, num_attention_heads=shape.num_attention_heads,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
    decay = AlphaDecay(model, optimizer, every=1, mode="sweep", measure_first=True)
    tokens = torch.randint(0, shape.vocab_size, (8, 256), device=device)

    def step(number: int, *, measured: bool) -> float:
        begin = time.perf_counter()
        model(tokens, labels=tokens).loss.backward()
        if measured:
            decay.step(number)
        optimizer.step()
        optimizer.zero_grad()
        _wait(device)
        return time.perf_counter() - begin

    _reset(device)
    seconds: dict[str, list[float]] = {"plain": [], "measured": []}
    for number in range(2 * _STEPS):
        way = "measured" if number % 2 else "plain"
        seconds[way].append(step(number, measured=number % 2 == 1))
    return {
        "model": name,
        "seconds": {way: median(found[1:]) for way, found in seconds.items()},
        "peak_bytes": _peak(device),
    }


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def _reset(device: str) -> None:
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: str) -> int:
    return 0 if device == "cpu" else torch.cuda.max_memory_allocated(device)


def _tables(results: Results) -> str:
    """The figures in Markdown."""
    peers = [
        (
            measured_models.TITLES[name],
            f"{median(row['seconds']['specdiag']):.2f} s",
            f"{row['times_better']:.1f}x",
            f"{row['largest_difference']:.0e}",
            f"{row['peak_bytes'] / 2**30:.2f} GiB",
        )
        for name, row in results["peers"].items()
    ]
    worst = {d: max(r["difference"] for r in results["parity"] if r["dtype"] == d) for d in ("float32", "float64")}
    training = results["training"]
    plain, measured = training["seconds"]["plain"], training["seconds"]["measured"]
    head = ("blocks of", "specdiag", "against svdvals in a loop", "difference of alpha", "device memory")
    return (
        f"{table(head, peers)}\n\n{results['device']}, {results['date'][:10]}; `pytest -m gpu`: {results['tests']}. "
        f"Upper eigenvalues differ from the CPU's in float64 by {worst['float32']:.0e} at most in float32 and "
        f"{worst['float64']:.0e} in float64. A training step of {measured_models.TITLES[training['model']]} takes "
        f"{plain * 1e3:.0f} ms, and {measured * 1e3:.0f} ms where AlphaDecay measures all matrices in it."
    )


def _update_docs(options: argparse.Namespace) -> int:
    if not options.out.exists():
        print(f"{options.out} does not exist: no GPU was measured")
        return 0
    sections = {"gpu": _tables(json.loads(options.out.read_text()))}
    return update(options.docs_file, sections, options.out, "benchmarks/gpu.py --docs", check=options.check)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what needs a GPU.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", default="60m,135m,1b", help=f"of {','.join(measured_models.TITLES)}")
    parser.add_argument("--out", type=Path, default=OUT, help="where the JSON goes")
    add_options(parser, DOCS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
