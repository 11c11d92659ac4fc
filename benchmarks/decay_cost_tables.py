"""Results of benchmarks/decay_cost.py in Markdown for docs/optim.md."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from pages import table, update
from report import QUIET

from specdiag.optim import NormWatch
from specdiag.text.counts import percent

INTERVALS = (500, 250, 100, 50, 1)
_SHOWN = (1, 10, 100, 500)
_WATCHED = inspect.signature(NormWatch).parameters["every"].default
_MODES = ("sweep", "round-robin", "background")

Results = dict[str, Any]


def share(results: Results, mode: str, every: int) -> float:
    """Share of a step's time: measured at that interval, else a pass over all matrices divided by it."""
    measured = results["cost"]["measured"]
    held = measured.get(f"{mode} {every}")
    if held is not None:
        return median(held["shares"])
    whole = measured[f"{mode} pass"]
    return median(whole["shares"]) * whole["every"] / every


def cost_table(results: Results) -> str:
    """Time that each mode adds to a step."""
    cost, setting = results["cost"], results["setting"]
    head = ["`every`", *(f"{every}" for every in _SHOWN)]
    rows = [[f"`{mode}`", *(percent(share(results, mode, every), 2) for every in _SHOWN)] for mode in _MODES]
    step = median(cost["measured"]["sweep 1"]["step_seconds"])
    waited = median(cost["measured"]["background 1"]["waited_seconds"]) / step
    tokens = setting["batch"][0] * setting["batch"][1]
    machine = results["machine"]
    return (
        f"{table(head, rows)}\n\n"
        f"Time added to a step (wall time). LLaMA of {setting['layers']} layers and width {setting['width']} "
        f"({cost['matrices']} matrices), {tokens} tokens and {step:.2f} s per step on one thread, {machine['cores']} "
        f"cores ({machine['cpu']}), {results['date'][:10]}. Median of {len(cost['measured']['sweep 1']['shares'])} "
        "pairs of blocks with and without it. 1 and 10 are measured; 100 and 500 are the measured cost of one pass "
        f"over all matrices, divided. In `background` at every step training waits for {percent(waited, 1)} of a step; "
        f"the rest comes from sharing memory and caches.{_noise(cost)}"
    )


def loss_table(results: Results) -> str:
    """Loss at each interval, and its time over that of uniform decay."""
    setting, runs = results["setting"], results["loss"]["runs"]
    rows: list[list[str]] = []
    for name in ("uniform", *map(str, INTERVALS)):
        found = [runs[f"{name}/{seed}"] for seed in setting["seeds"]]
        less = [loss - runs[f"uniform/{seed}"] for seed, loss in zip(setting["seeds"], found, strict=True)]
        cells = ["", "1.000", "1.000"]
        if name != "uniform":
            times = [f"{1 + share(results, mode, int(name)):.3f}" for mode in ("round-robin", "background")]
            cells = [f"{fmean(less):+.4f} ± {stdev(less):.4f}", *times]
        rows.append([name if name == "uniform" else f"every {name}", f"{fmean(found):.4f}", *cells])
    head = ["", "held-out loss", "against uniform", "time, `round-robin`", "time, `background`"]
    return (
        f"{table(head, rows)}\n\n"
        f"{setting['steps']} steps of that model on bytes, lr {setting['lr']:g}, decay {setting['weight_decay']:g}; "
        f"alpha is measured before the first step too. Loss in nats per byte: mean of {len(setting['seeds'])} seeds, "
        "and standard deviation of the differences. Both modes give the same run bit for bit. Times are those of the "
        "table above, over a step without measurement."
    )


def norms_text(results: Results) -> str:
    """Cost of NormWatch at its default interval."""
    held, setting = results["norms"], results["setting"]
    share = median(held["shares"])
    tokens = setting["batch"][0] * setting["batch"][1]
    return (
        f"A logged step takes {percent(share)} more time with {held['weights'] / 1e6:.1f} M float32 weights, {tokens} "
        f"tokens per step and one CPU core. At the default interval of {_WATCHED} the whole run takes "
        f"{percent(share / _WATCHED, 2)} more "
        f"({results['date'][:10]}, `python benchmarks/decay_cost.py --parts norms`)."
    )


SECTIONS = {"decay cost": cost_table, "decay interval": loss_table, "norms": norms_text}


def update_docs(path: Path, source: Path, *, check: bool) -> int:
    """Put the figures between the markers, or with `check` say whether they stand there; an exit code."""
    results = json.loads(source.read_text())
    sections = {name: make(results) for name, make in SECTIONS.items()}
    return update(path, sections, source, "benchmarks/decay_cost.py --docs", check=check)


def _noise(cost: Results) -> str:
    busy = max(each["cores_used_by_others"] or 0.0 for each in cost["measured"].values())
    return "" if busy <= QUIET else f" NOT TO BE QUOTED: others kept up to {busy:.2f} cores busy."
