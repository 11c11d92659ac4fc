"""specdiag against what else gives these exponents, interleaved in one run, for equal work.

Every contender analyses all two-dimensional matrices of the transformer blocks, no embeddings and no head. Three
things are measured:

* compute: from files on disk (in the page cache) to exponents in memory, in a process that has imported everything;
* process: a whole process from start to exit, for specdiag its command line, and that process's peak resident size;
* floor: the operations that the spectra need, n^2 m + 4/3 n^3 a matrix, at the rate of this machine's BLAS.

Exponents are compared in the run: float32 SVD and specdiag to 1e-3, WeightWatcher and specdiag's default to 1e-6 (2e-4
in bfloat16), diffract to 1e-3. The whole checkpoint, embeddings and head too, is timed in a row of its own. Children
inherit no variable that chooses threads or kernels for a BLAS.

    python benchmarks/peers.py                 # all models, 7 rounds, 8 minutes; writes benchmarks/results/peers.json
    python benchmarks/peers.py --docs          # puts the figures of that file into docs/comparison.md
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import measured_models
import pages
import report
from measure import Contender, Others, Worker, serve, whole_process

OUT = measured_models.ROOT / "benchmarks" / "results" / "peers.json"
RATE = "syrk rate"


WHOLE = "specdiag, embeddings too"


def _specdiag(*options: str, **arguments: Any) -> Contender:
    command = ("-m", "specdiag", "analyze", "FOLDER", "--no-cache", *options, "-f", "json")
    return Contender("specdiag_analyze", arguments, command)


def _peer(module: str) -> Contender:
    return Contender(module, {}, (f"contenders/{module}.py", "FOLDER"))


PEERS = {
    "alphadecay": _peer("alphadecay_loop"),
    "weightwatcher": _peer("weightwatcher_analyze"),
    "diffract": _peer("diffract_session"),  # pip install diffract-core, on Python 3.12 or later
}
OURS = {
    "specdiag float32": _specdiag("--include", "*layer*", "--dtype", "float32", dtype="float32"),
    "specdiag default": _specdiag("--include", "*layer*"),
}
CONTENDERS = {**PEERS, **OURS, WHOLE: _specdiag(include=())}

ALPHA_TOLERANCE = {"specdiag float32": 1e-3, "specdiag default": 1e-3}
PL_ALPHA_TOLERANCE = {"specdiag default": 1e-6}
COARSE_TOLERANCE = 2e-4
"""Largest difference of pl_alpha where the default computes in float32: bfloat16 storage."""
DIFFRACT_TOLERANCE = {"specdiag default": 1e-3}
"""Its singular values are float32 where the weights are."""


def main() -> None:
    """Measure, print, write; or one of the other jobs that the options name."""
    options = _options()
    if options.worker:
        serve(Contender("syrk_rate", {}, ()) if options.worker == RATE else CONTENDERS[options.worker])
    elif options.docs:
        sys.exit(report.update_docs(options.docs_file, options.out, check=options.check))
    else:
        _bench(options)


def _bench(options: argparse.Namespace) -> None:
    others = Others()
    folders = {name: measured_models.fetch(name) for name in options.models.split(",")}
    workers, missing = _start()
    rate = Worker(RATE)
    rate.ready()
    results = report.header(missing, options.rounds, options.process_rounds)
    for peer, reason in missing.items():
        print(f"{peer} is left out: {reason}", file=sys.stderr)
    warm_up = measured_models.fetch("tiny")
    for worker in [*workers.values(), rate]:
        worker.run(warm_up)
    for name, folder in folders.items():
        print(f"{measured_models.TITLES[name]} ...", file=sys.stderr)
        compute = _compute(workers, rate, folder, options.rounds, coarse=name.endswith(measured_models.COARSE))
        process = _processes(workers, folder, options.process_rounds)
        results["models"][name] = report.figures(measured_models.TITLES[name], folder, compute, process, PEERS, OURS)
    for worker in [*workers.values(), rate]:
        worker.close()
    results["cores_used_by_others"] = others.cores()
    print(report.table(results))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written: {options.out}", file=sys.stderr)


def _start() -> tuple[dict[str, Worker], dict[str, str]]:
    """The workers of everybody who is installed, and why the others are not there."""
    workers = {name: Worker(name) for name in CONTENDERS}
    missing = {name: reason for name, worker in workers.items() if (reason := worker.ready()) is not None}
    if not missing.keys() <= PEERS.keys() - {"alphadecay"}:
        raise SystemExit(f"cannot run: {missing}")
    return {name: worker for name, worker in workers.items() if name not in missing}, missing


def _compute(workers: Mapping[str, Worker], rate: Worker, folder: Path, rounds: int, *, coarse: bool) -> dict[str, Any]:
    """All rounds of all workers, A B C D A B C D, and how far their exponents lie apart at most."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in (RATE, *workers)}
    for _ in range(rounds):
        for name, worker in {RATE: rate, **workers}.items():
            answers[name].append(worker.run(folder))
    return {
        "rates": answers.pop(RATE),
        "seconds": {name: [a["seconds"] for a in found] for name, found in answers.items()},
        "arithmetic": [a["arithmetic_seconds"] for a in answers["alphadecay"]],
        "agreement": _agreement({name: found[-1] for name, found in answers.items()}, coarse=coarse),
    }


def _processes(names: Mapping[str, Worker], folder: Path, rounds: int) -> dict[str, list[tuple[float, int]]]:
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            found[name].append(whole_process(CONTENDERS[name], folder))
    return found


def _agreement(answers: Mapping[str, dict[str, Any]], *, coarse: bool) -> list[dict[str, Any]]:
    """Equal work is checked: the same matrices, and the same exponents.

    Raises:
        SystemExit: if they are not.
    """
    checks: list[dict[str, Any]] = []
    for peer, column, tolerances in (
        ("alphadecay", "alpha", ALPHA_TOLERANCE),
        ("weightwatcher", "pl_alpha", PL_ALPHA_TOLERANCE),
        ("diffract", "pl_alpha", DIFFRACT_TOLERANCE),
    ):
        for ours, tolerance in tolerances.items() if peer in answers else ():
            expected, found = answers[peer][column], answers[ours][column]
            allowed = max(tolerance, COARSE_TOLERANCE) if coarse else tolerance
            if expected.keys() != found.keys():
                raise SystemExit(f"{ours} and {peer} differ in {sorted(expected.keys() ^ found.keys())[:5]}")
            largest = max(abs(found[name] / expected[name] - 1) for name in expected)
            if not largest <= allowed:
                raise SystemExit(f"{column} of {ours} and {peer} differ by {largest:.1e}, more than {allowed:.0e}")
            checks.append(
                {"peer": peer, "specdiag": ours, "column": column, "matrices": len(found), "largest": largest,
                 "tolerance": allowed}
            )  # fmt: skip
    return checks


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare specdiag with its peers.")
    parser.add_argument("--rounds", type=int, default=7, help="of compute; default 7")
    parser.add_argument("--process-rounds", type=int, default=2, help="of whole processes; default 2")
    parser.add_argument("--models", default="minilm,135m-bf16,135m", help=f"of {','.join(measured_models.TITLES)}")
    parser.add_argument("--out", type=Path, default=OUT, help="where the JSON goes")
    pages.add_options(parser, measured_models.ROOT / "docs" / "comparison.md")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    start = time.perf_counter()
    main()
    if "--worker" not in sys.argv:
        print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
