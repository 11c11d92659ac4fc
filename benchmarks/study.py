"""Does weight decay by exponents train better models? A study on the CPU; docs/study.md says what it asks, and found.

Every run is kept in --out when it ends, and continues from build/study/ if it is stopped. Start the command twice to
use two cores: no run is made twice.

    python benchmarks/study.py --compile --budget 2h             # continues for two hours, headline first
    python benchmarks/study.py --estimate                        # runs that are left, and their hours here
    python benchmarks/study.py --size 135m --data allenai/c4:en  # the same on a GPU, with the preset llama-135m
    python benchmarks/study.py --docs                            # puts tables and figure into docs/study.md
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from platform import python_version
from typing import Any

import pages
import study_tables
import torch
from report import processor
from study_design import HEADLINE_SIZES, TUNING_SEEDS
from study_order import Cell, due
from study_run import Stopped, Task, Training, outline, prepare, run

from specdiag.system.distributions import version

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "study.json"
DOCS = ROOT / "docs" / "study.md"
STATES = ROOT / "build" / "study"
_TIMED_STEPS, _TIMED_SECONDS = 5, 10.0

Runs = dict[str, dict[str, Any]]


def main() -> None:
    """Continue the study, estimate it, or put the figures into the documentation."""
    options = _options()
    if options.docs:
        sys.exit(study_tables.update_docs(options.docs_file, load(options.out), options.out, check=options.check))
    torch.set_num_threads(options.threads)
    ends = math.inf if options.budget is None else time.monotonic() + options.budget
    sizes = (options.size,) if options.size else HEADLINE_SIZES
    device = torch.device(options.device)
    for name in sizes:
        print(cost(outline(name, device), load(options.out)), file=sys.stderr, flush=True)
    if not options.estimate:
        data = tuple(options.data or ())
        tasks = {name: prepare(name, data, options.states, device, compiled=options.compile) for name in sizes}
        check_data(load(options.out), tasks)
        go_on(tasks, options.out, options.states, ends)
    print(study_tables.summary(load(options.out), sizes))


def go_on(tasks: Mapping[str, Task], out: Path, states: Path, ends: float) -> None:
    """Make runs until none is left or time is up: the headline of all sizes, then what is exploratory.

    Args:
        tasks: sizes in their order.
        out: JSON of the results.
        states: folder of unfinished runs.
        ends: reading of the monotonic clock at which to stop.
    """
    for explore in (False, True):
        for task in tasks.values():
            while cells := due(task.name, losses(load(out)), explore=explore):
                if not _make_one(cells, task, out, states, ends):
                    return


def _make_one(cells: list[Cell], task: Task, out: Path, states: Path, ends: float) -> bool:
    """Make the first of these runs that no other process makes. Returns False if time is up or all are taken."""
    for cell in cells:
        state = states / (re.sub(r"[^\w.-]+", "_", cell.key) + ".pt")
        with _lock(state.with_suffix(".lock")) as mine:
            if not mine or cell.key in load(out):
                continue
            try:
                found = run(cell, task, state, lambda: time.monotonic() >= ends)
            except Stopped:
                return False
            _add(out, states, cell, found, task)
            print(f"{cell.key}: loss {found['loss']}, {found['seconds']:.0f} s", file=sys.stderr, flush=True)
            return True
    print("every run that can be made now is being made by another process", file=sys.stderr)
    return False


def load(out: Path) -> Runs:
    """Read the finished runs by key."""
    return json.loads(out.read_text())["runs"] if out.exists() else {}


def losses(runs: Runs) -> dict[str, float]:
    """Return the held-out loss of each run; infinite if it diverged."""
    return {key: math.inf if each["loss"] is None else each["loss"] for key, each in runs.items()}


def check_data(runs: Runs, tasks: Mapping[str, Task]) -> None:
    """Refuse to go on with other data than that of the results: seeds could not be paired."""
    for name, task in tasks.items():
        other = {each["data"] for each in runs.values() if each["cell"]["size"] == name} - {task.digest}
        if other:
            raise SystemExit(
                f"results of size {name} are of data {other.pop()}, here it is {task.digest}: name another --out"
            )


def cost(task: Task, runs: Runs) -> str:
    """Say how many runs are left and how long they take here, by the time of a few forward and backward passes."""
    cell = Cell(task.name, "alphadecay", task.size.lrs[0], 1.0, TUNING_SEEDS[0])
    size = task.size
    training = Training(cell, replace(task, size=replace(size, batch=size.micro)))
    training.step()
    clock = time.process_time if task.device.type == "cpu" else time.monotonic
    started, timed = clock(), 0
    while timed < _TIMED_STEPS and clock() - started < _TIMED_SECONDS:
        training.step()
        timed += 1
    hours = (clock() - started) / timed * size.batch / size.micro * task.steps / 3600
    headline, everything = (_left(task.name, losses(runs), explore=explore) for explore in (False, True))
    return (
        f"{task.name}: {task.n_parameters:,} weights, {task.steps:,} steps, {hours:.2f} h a run; "
        f"left: {headline} runs of the headline ({headline * hours:.1f} h), {everything - headline} others "
        f"({(everything - headline) * hours:.1f} h), if no grid must be extended"
    )


def _left(size: str, known: Mapping[str, float], *, explore: bool) -> int:
    """Count the missing runs, as if the middle of each grid were the best."""
    filled = dict(known)
    while cells := due(size, filled, explore=explore):
        lrs, totals = (sorted(set(values)) for values in zip(*((cell.lr, cell.total) for cell in cells), strict=True))
        middle = (lrs[len(lrs) // 2], totals[len(totals) // 2])
        filled |= {cell.key: 0.0 if (cell.lr, cell.total) == middle else 1.0 for cell in cells}
    return len(filled) - len(known)


def _add(out: Path, states: Path, cell: Cell, found: dict[str, Any], task: Task) -> None:
    """Add a run to the results, which other processes write too. Each run is a line."""
    entry = found | {
        "cell": asdict(cell), "data": task.digest, "parameters": task.n_parameters, "device": str(task.device),
        "machine": processor(), "threads": torch.get_num_threads(), "compiled": task.compiled,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {p: version(p) for p in ("specdiag", "torch", "transformers")} | {"python": python_version()},
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    with _lock(states / "results.lock", wait=True):
        lines = (f" {json.dumps(key)}: {json.dumps(each)}" for key, each in (load(out) | {cell.key: entry}).items())
        unfinished = out.with_suffix(".part")
        unfinished.write_text('{"runs": {\n' + ",\n".join(lines) + "\n}}\n")
        unfinished.replace(out)


@contextmanager
def _lock(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a file's lock, which ends with the process. Yields False if another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([hms])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"'{text}' is no time such as 2h, 30m or 90s")
    return float(match[1]) * {"h": 3600, "m": 60, "s": 1}[match[2]]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Continue the study of decay by exponents.")
    parser.add_argument("--budget", type=_seconds, help="stop after this time: 2h, 30m, 90s")
    parser.add_argument("--estimate", action="store_true", help="only print the runs that are left and their hours")
    parser.add_argument("--size", help="0.3m, 1m, or a preset llama-SIZE; default 0.3m, then 1m")
    parser.add_argument("--data", action="append", help="paths or datasets of the hub instead of the size's own")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch; results of one seed need the same")
    parser.add_argument("--compile", action="store_true", help="train with torch.compile, which needs a C++ compiler")
    parser.add_argument("--states", type=Path, default=STATES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=OUT, help="where the results are, and go")
    pages.add_options(parser, DOCS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
