"""How long and how large: matrices of 256 to 8192, models to 1B and a layer of 7B, start-up, saved reports.

Random weights of LLaMA shapes. A cost model is fitted to single matrices of models up to 350M, on one core; what it
says of whole models, of a 1B model and of a 7B layer, which it has not seen, stands beside what they took.

    python benchmarks/scale.py               # all parts, ten minutes on a quiet machine; writes results/scale.json
    python benchmarks/scale.py --only sizes  # one of them anew
    python benchmarks/scale.py --device cuda # the same on a GPU, where there is one
    python benchmarks/scale.py --docs        # puts the figures of that file into docs/scale.md
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import measured_models
import report
from measure import HERE, Others, environment, warm
from pages import add_options

if TYPE_CHECKING:
    from specdiag.records import Settings

OUT = measured_models.ROOT / "benchmarks" / "results" / "scale.json"
DOCS = measured_models.ROOT / "docs" / "scale.md"
SQUARES = (256, 384, 512, 768, 1024)
CALIBRATION = (
    *((n, n) for n in SQUARES), (512, 1376), (768, 2048), (1024, 2736), (256, 2048), (512, 32000), (768, 32000),
)  # fmt: skip
"""Sides of matrices in models up to 350M."""
SIZES = (256, 512, 1024, 2048, 4096, 8192)
MODELS = ("60m", "135m", "350m", "1b", "1b-bf16", "7b-layer")
WAYS = {"default": (), "float32": ("--dtype", "float32")}
_QUICK = 0.5
"""Seconds: what takes less is timed three times, and the best counts."""

Results = dict[str, Any]


def main() -> None:
    """Measure and write; or put the figures where they are quoted."""
    options = _options()
    if options.docs:
        import scale_tables

        sys.exit(scale_tables.update_docs(options.docs_file, options.out, check=options.check))
    names = options.only.split(",") if options.only else list(PARTS)
    if len(names) > 1:  # each in a process of its own: what one has imported would count in the peaks of the next
        for name in names:
            command = [__file__, "--only", name, "--device", options.device, "--out", str(options.out)]
            subprocess.run([sys.executable, *command], check=True)
        return
    others = Others()
    results: Results = json.loads(options.out.read_text()) if options.out.exists() else {"parts": {}}
    results |= {key: value for key, value in report.header({}, 1, 1).items() if key not in ("models", "left_out")}
    (name,) = names
    print(f"{name} ...", file=sys.stderr, flush=True)
    start = time.perf_counter()
    results["parts"][name] = PARTS[name](options.device)
    results["cores_used_by_others"] = {**results.get("cores_used_by_others", {}), name: others.cores()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


def calibration(device: str) -> list[Results]:
    """Seconds of single matrices on one core."""
    found: list[Results] = []
    for dtype in ("float64", "float32"):
        for n, m in CALIBRATION:
            seconds = matrix_seconds(n, m, dtype, device=device)
            found.append({"n": n, "m": m, "dtype": dtype, "seconds": seconds})
    return found


def sizes(device: str) -> Results:
    """Seconds of square matrices on one core, beside the operations at the rate of its BLAS."""
    import numpy as np
    from contenders import syrk_rate

    rates = {name: syrk_rate.rate(np.dtype(name)) / len(os.sched_getaffinity(0)) for name in ("float32", "float64")}
    rows = [
        {"n": n, "dtype": dtype, "seconds": matrix_seconds(n, n, dtype, device=device)}
        for dtype in ("float64", "float32")
        for n in SIZES
    ]
    return {"syrk_gflops": rates, "rows": rows}


def matrix_seconds(n: int, m: int, dtype: str, *, device: str) -> float:
    """From values in memory to the finished row of one matrix, one worker; small ones are measured four at a time."""
    import numpy as np
    import torch

    from specdiag.analysis.batches import units
    from specdiag.analysis.selection import select
    from specdiag.analysis.source import open_source
    from specdiag.analysis.workers import on_accelerator, on_cpu

    weight = torch.from_numpy(measured_models.random_weight((n, m), np.random.default_rng(0)))
    copies = 4 if n * m < 1 << 22 else 1
    checkpoint = open_source({f"model.layers.{i}.self_attn.q_proj.weight": weight.clone() for i in range(copies)})
    settings = _settings(dtype, device=device)
    selected, _ = select(checkpoint, settings)

    def once() -> float:
        start = time.perf_counter()
        rows = list(
            on_cpu(units(selected), settings, 1)
            if device == "cpu"
            else on_accelerator(units(selected), settings, 1, {})
        )
        assert len(rows) == copies
        assert rows[0][1].alpha is not None
        return (time.perf_counter() - start) / copies

    if n <= 1024:
        once()  # imports, nulls of the shape
    first = once()
    return min(first, once(), once()) if first < _QUICK else first


def _settings(dtype: str, *, device: str) -> Settings:
    from specdiag.analysis.settings import make_settings

    return make_settings(
        device=device, dtype=dtype, tail_fraction=0.5, include=(), exclude=(), roles=(), role_map=None, method="gram",
        tail="hill", randomize=False, seed=0, experts=None,
    )  # fmt: skip


def whole_models(device: str) -> list[Results]:
    """Whole processes of the command line: seconds of the analysis, of the process, and its peak."""
    found: list[Results] = []
    for name in MODELS:
        folder = measured_models.fetch(name)
        warm(folder)
        for way, arguments in WAYS.items():
            command = ["analyze", str(folder), "--include", "*layers*", "--device", device, *arguments, "-f", "json"]
            found.append({"model": name, "way": way, **_run(command)})
    return found


def memory(device: str) -> list[Results]:
    """Peaks on one worker: of a 13.5 GB checkpoint by its largest matrices and a layer, of 70B's largest."""
    base = _peak(["-c", "import torch, specdiag.analysis.analyze, specdiag.checkpoint.reader, specdiag_cli.main"])
    with ProcessPoolExecutor(1, get_context("spawn")) as writer:  # a child's peak begins at that of its parent
        seven = writer.submit(measured_models.write_7b).result()
        mlp = writer.submit(_single, "model.layers.0.mlp.up_proj.weight", (28672, 8192)).result()
        head = writer.submit(_single, "lm_head.weight", (128256, 8192)).result()
    parts = [f"--include={name}" for name in ("*layers.0.*", "*embed*", "lm_head*")]
    jobs = {
        "7B, 13.5 GB in bfloat16: embedding, head and one layer": [str(seven), *parts],
        "70B: MLP, 28672 x 8192": [str(mlp)],
        "70B: head, 128256 x 8192": [str(head)],
    }
    rows: list[Results] = [{"what": "after imports, torch's too", "peak_bytes": base}]
    for what, arguments in jobs.items():
        ways = {"float64": ["--dtype", "float64"], "float32": ["--dtype", "float32"]}
        for dtype, way in ways.items() if what.startswith("7B") else [("float32", ways["float32"])]:
            command = ["analyze", *arguments, "--jobs", "1", "--device", device, *way, "-f", "json"]
            rows.append({"what": what, "dtype": dtype, **_run(command)})
    return rows


def _single(name: str, shape: tuple[int, int]) -> Path:
    return measured_models.write_bfloat16(
        measured_models.BUILD / f"{shape[0]}x{shape[1]}" / "model.safetensors", {name: shape}
    )


def _peak(arguments: Sequence[str]) -> int:
    child = subprocess.Popen([sys.executable, *arguments], env=environment(), cwd=HERE)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def ranks(device: str) -> dict[str, list[float]]:
    """Seconds of the analysis of 135M shapes by one and by two processes of one thread each, in turn."""
    folder = measured_models.fetch("135m")
    command = ["analyze", str(folder), "--include", "*layers*", "--jobs", "1", "--device", device, "-f", "json"]
    found: dict[str, list[float]] = {"1": [], "2": []}
    for _ in range(3):
        for count, seconds in found.items():
            warm(folder)
            launcher = [] if count == "1" else ["-m", "torch.distributed.run", "--nproc-per-node", count]
            seconds.append(_run(command, launcher)["seconds"])
    return found


def share(device: str) -> list[Results]:
    """The shares of an analysis of 135M shapes, on one worker, that BLAS and LAPACK take, and hashing the values."""
    if device != "cpu":
        return []
    import specdiag.spectra.eigenvalues as engine
    import specdiag.spectra.scan as scan
    from specdiag.analysis.batches import units
    from specdiag.analysis.selection import select
    from specdiag.analysis.source import open_source
    from specdiag.analysis.workers import on_cpu

    spent: dict[str, float] = {}

    def timed(what: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            found = call(*arguments, **options)
            spent[what] += time.perf_counter() - start
            return found

        return run

    engine.syrk, engine.eigvalsh = timed("blas", engine.syrk), timed("blas", engine.eigvalsh)
    scan.hashlib = SimpleNamespace(sha256=timed("hash", hashlib.sha256))
    found: list[Results] = []
    ways = (("default", "135m", "auto"), ("float32", "135m", "float32"), ("bfloat16 storage", "135m-bf16", "auto"))
    for way, model, dtype in ways:
        settings = _settings(dtype, device=device)
        selected, _ = select(open_source(measured_models.fetch(model)), settings)
        blocks = units(matrix for matrix in selected if ".layers." in matrix.name)
        spent |= {"blas": 0.0, "hash": 0.0}
        start = time.perf_counter()
        list(on_cpu(blocks, settings, 1))
        seconds = time.perf_counter() - start
        found.append({"way": way, "seconds": seconds, "blas_seconds": spent["blas"], "hash_seconds": spent["hash"]})
    return found


def start_up(device: str) -> dict[str, float]:
    """Seconds of small commands, the median of five."""
    tiny = str(measured_models.fetch("tiny"))
    commands = {
        "specdiag --help": ["-m", "specdiag", "--help"],
        "specdiag analyze, 14 matrices of 64 and 172": [
            "-m",
            "specdiag",
            "analyze",
            tiny,
            "--device",
            device,
            "-f",
            "json",
        ],
        "import specdiag": ["-c", "import specdiag"],
    }
    return {name: median(_timed(arguments) for _ in range(5)) for name, arguments in commands.items()}


def saved(device: str) -> dict[str, Any]:
    """`recommend` and `report` from a saved report of a 70B mixture of experts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.specdiag.json"
        count = _large_report(path)
        commands = {
            "specdiag recommend": ["-m", "specdiag", "recommend", str(path), "--weight-decay", "0.1"],
            "specdiag report": ["-m", "specdiag", "report", str(path), "-o", str(Path(folder) / "page.html")],
        }
        found = {name: median(_timed(arguments) for _ in range(3)) for name, arguments in commands.items()}
        return {"modules": count, "seconds": found, "bytes": sum(f.stat().st_size for f in Path(folder).glob("large*"))}


def _large_report(path: Path) -> int:
    """80 layers of 4 attention matrices and 8 experts of 3, with 1024 eigenvalues each."""
    import dataclasses

    import msgspec
    import torch

    from specdiag.analysis.analyze import analyze
    from specdiag.analysis.summary import summarise
    from specdiag.report import spectrum_key

    rng = torch.Generator().manual_seed(0)
    shapes = {f"self_attn.{name}_proj": (1024, 1024) for name in "qkvo"}
    shapes |= {f"mlp.experts.{i}.{name}_proj": (1024, 3584) for i in range(8) for name in ("gate", "up", "down")}
    layer = {f"model.layers.0.{key}.weight": torch.randn(*shape, generator=rng) for key, shape in shapes.items()}
    one = analyze(layer, dtype="float32")
    pairs = [
        (msgspec.structs.replace(record, name=record.name.replace("layers.0.", f"layers.{i}."), layer=i), record)
        for i in range(80)
        for record in one.records
    ]
    records = tuple(new for new, _ in pairs)
    summary = summarise(records, [], n_tensors=len(records), n_parameters=sum(r.rows * r.cols for r in records))
    spectra = {spectrum_key(new.key): one.eigenvalues(old.name) for new, old in pairs}
    dataclasses.replace(one, records=records, summary=summary, _spectra=spectra).save(path)
    return len(records)


def _run(command: Sequence[str], launcher: Sequence[str] = ()) -> Results:
    with tempfile.NamedTemporaryFile("w+", suffix=".json") as out:
        start = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, *launcher, "-m", "specdiag", *command, "--no-spectra", "-o", out.name], env=environment(),
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"specdiag {' '.join(command)} exited with {child.returncode}")
        seconds = time.perf_counter() - start
        provenance = json.loads(Path(out.name).read_text())["provenance"]
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "seconds": provenance["seconds"],
        "process_seconds": seconds,
        "peak_bytes": peak,
        "jobs": provenance["jobs"],
    }


def _timed(arguments: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=HERE, env=environment())
    return time.perf_counter() - start


PARTS: dict[str, Callable[[str], Any]] = {
    "calibration": calibration,
    "sizes": sizes,
    "models": whole_models,
    "share": share,
    "ranks": ranks,
    "memory": memory,
    "start": start_up,
    "saved": saved,
}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time and memory of specdiag by size.")
    parser.add_argument("--only", help=f"parts, separated by commas: {', '.join(PARTS)}")
    parser.add_argument("--device", default="cpu", help="cpu, cuda")
    parser.add_argument("--out", type=Path, default=OUT, help="where the JSON goes")
    add_options(parser, DOCS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
