"""Changes of exponents by quantisation: MiniLM's block matrices in each format, against the original.

Each format is written to a temporary folder by the quantisers of tests/quantisers.py (round to nearest) or by the gguf
package, and analysed as any checkpoint. fracast ships float32 and int8 of the same weights and is compared as it is.

    python benchmarks/quantisation.py          # all formats, a minute; writes benchmarks/results/quantisation.json
    python benchmarks/quantisation.py --docs   # puts the figures of that file into docs/quantisation.md
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median
from typing import Any

import measured_models
import numpy as np
import pages
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

import specdiag
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.system.distributions import version

sys.path.append(str(measured_models.ROOT / "tests"))
import assets
from quantisers import FORMATS, Format, Quantised

OUT = measured_models.ROOT / "benchmarks" / "results" / "quantisation.json"
DOCS = measured_models.ROOT / "docs" / "quantisation.md"
GGUF = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")

Weights = dict[str, np.ndarray]


def main() -> None:
    """Measure, print, write; or put the figures into the documentation."""
    options = _options()
    if options.docs:
        sys.exit(update_docs(options.docs_file, options.out, options.check))
    results = measure(options.formats.split(",") if options.formats else None)
    print(table(results))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written: {options.out}", file=sys.stderr)


def measure(only: list[str] | None = None) -> dict[str, Any]:
    """Every format, or those named, and fracast."""
    weights = _block_matrices(assets.fetch("minilm"))
    writers: dict[str, tuple[str, Callable[[Path, Weights], None]]] = {
        "f16": ("float16", _cast(torch.float16)),
        "bf16": ("bfloat16", _cast(torch.bfloat16)),
        **{key: (form.title, _quantised(form)) for key, form in FORMATS.items()},
        **{kind.lower(): (f"GGUF {kind}", _gguf(kind)) for kind in GGUF},
    }
    with _folder() as folder:
        save_file({name: torch.from_numpy(w) for name, w in weights.items()}, folder / "model.safetensors")
        before = _exponents(folder)
    formats: dict[str, Any] = {}
    for key, (title, write) in writers.items():
        if only is not None and key not in only:
            continue
        print(f"{title} ...", file=sys.stderr)
        with _folder() as folder:
            write(folder, weights)
            formats[key] = {"title": title, **_rounding(folder, weights), **_compared(before, _exponents(folder))}
    fracast = assets.fetch("fracast")
    original, codes = (_exponents(fracast / f"model{kind}.safetensors") for kind in ("", ".int8"))
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {package: version(package) for package in ("specdiag", "numpy", "torch", "gguf")},
        "matrices": len(weights),
        "formats": formats,
        "fracast": _compared(original, codes),
    }


def _block_matrices(folder: Path) -> Weights:
    stored = load_file(folder / "model.safetensors")
    return {name: w for name, w in stored.items() if w.ndim == 2 and "layer" in name}


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="specdiag-quantisation-") as folder:
        yield Path(folder)


def _cast(kind: torch.dtype) -> Callable[[Path, Weights], None]:
    def write(folder: Path, weights: Weights) -> None:
        save_file({name: torch.from_numpy(w).to(kind) for name, w in weights.items()}, folder / "model.safetensors")

    return write


def _quantised(form: Format) -> Callable[[Path, Weights], None]:
    def write(folder: Path, weights: Weights) -> None:
        tensors: dict[str, torch.Tensor] = {}
        for name, w in weights.items():
            found: Quantised = form.quantise(name.removesuffix(".weight"), w)
            tensors |= found.tensors
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(form.config))

    return write


def _gguf(kind: str) -> Callable[[Path, Weights], None]:
    def write(folder: Path, weights: Weights) -> None:
        from gguf import GGMLQuantizationType, GGUFWriter
        from gguf.quants import quantize

        number = GGMLQuantizationType[kind]
        writer = GGUFWriter(folder / "model.gguf", "bert")
        for name, w in weights.items():
            writer.add_tensor(name, quantize(w, number), raw_dtype=number)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return write


def _exponents(source: Path) -> dict[str, specdiag.ModuleRecord]:
    return {record.name if record.part is None else record.key: record for record in specdiag.analyze(source)}


def _rounding(folder: Path, weights: Weights) -> dict[str, Any]:
    """Bits a weight, the true error of rounding (rms over rms), and what specdiag takes it for."""
    bits, errors, ratios = 0, list[float](), list[float]()
    for matrix in open_checkpoint(folder).matrices:
        values, w = matrix.load(dtype=torch.float32).numpy(), weights[matrix.name]
        bits += 8 * matrix.tensor.nbytes
        errors.append(float(np.sqrt(np.mean((values - w) ** 2) / np.mean(values**2))))
        if matrix.tensor.rounding is not None:
            ratios.append(matrix.tensor.rounding.error(values) / errors[-1])
    return {
        "bits": bits / sum(w.size for w in weights.values()),
        "error": median(errors),
        "estimated": {"median": median(ratios), "low": min(ratios), "high": max(ratios)} if ratios else None,
    }


def _compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Relative changes of the exponents that both have, and how many were lost."""
    if before.keys() != after.keys():
        raise SystemExit(f"matrices differ: {sorted(before.keys() ^ after.keys())[:5]}")
    changes: dict[str, list[float]] = {"alpha": [], "square_alpha": []}
    for name, record in before.items():
        for column, found in changes.items():
            old, new = getattr(record, column), getattr(after[name], column)
            if old is not None and new is not None:
                found.append(new / old - 1)
    return {
        **{column: _summary(found) for column, found in changes.items()},
        "low_rank": sum(after[name].status == "low_rank" != record.status for name, record in before.items()),
    }


def _summary(changes: list[float]) -> dict[str, Any]:
    if not changes:
        return {"mean": None, "mean_absolute": None, "largest": None, "matrices": 0}
    return {
        "mean": mean(changes),
        "mean_absolute": mean(map(abs, changes)),
        "largest": max(changes, key=abs),
        "matrices": len(changes),
    }


COLUMNS = ("format", "bits", "error", "alpha", "size", "largest", "square_alpha", "size", "lost")


def table(results: Mapping[str, Any]) -> str:
    """The figures in Markdown."""
    lines = [_line(entry) for entry in results["formats"].values()]
    shipped = results["fracast"]
    lines.append(_line({"title": f"fracast's own int8, {shipped['alpha']['matrices']} matrices", **shipped}))
    caption = (
        f"The {results['matrices']} attention and MLP matrices of MiniLM. bits: per weight, scales included. error: "
        "RMS of the rounding over RMS of the weights, median over matrices, in %. alpha: mean change in % of the "
        "original; size: mean absolute change; largest: the largest change. The columns of square_alpha read likewise. "
        "lost: matrices without an exponent, because rounding noise covers the tail (`low_rank`). "
        f"{results['date'][:10]}."
    )
    return f"{pages.table(COLUMNS, lines)}\n\n{caption}"


def _line(entry: Mapping[str, Any]) -> tuple[str, ...]:
    full, square = entry["alpha"], entry["square_alpha"]
    return (
        entry["title"],
        f"{entry['bits']:.2f}" if "bits" in entry else "",
        f"{100 * entry['error']:.2g}" if "error" in entry else "",
        _percent(full["mean"]),
        _percent(full["mean_absolute"], ""),
        _percent(full["largest"]),
        _percent(square["mean"]),
        _percent(square["mean_absolute"], ""),
        str(entry["low_rank"]),
    )


def _percent(value: float | None, sign: str = "+") -> str:
    return "" if value is None else f"{100 * value:{sign}.2f}"


def update_docs(path: Path, source: Path, check: bool) -> int:
    """Put the figures between the markers, or with `check` say whether they stand there; an exit code."""
    sections = {"quantisation": table(json.loads(source.read_text()))}
    return pages.update(path, sections, source, "benchmarks/quantisation.py --docs", check=check)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare the exponents of quantised weights with the original's.")
    parser.add_argument("--formats", help=f"some of f16,bf16,{','.join((*FORMATS, *map(str.lower, GGUF)))}")
    parser.add_argument("--out", type=Path, default=OUT, help="where the JSON goes")
    pages.add_options(parser, DOCS)
    return parser.parse_args()


if __name__ == "__main__":
    start = time.perf_counter()
    main()
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
