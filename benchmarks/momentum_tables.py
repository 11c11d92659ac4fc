"""Results of benchmarks/momentum.py in Markdown and as a figure for docs/methods.md."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from methods_tables import interval
from pages import table, update

from specdiag import plot
from specdiag.decay.schedules import effective_lr
from specdiag.views.figures.palette import palette
from specdiag.views.figures.style import ReportFigure, legend, new_figure, styled

Results = dict[str, Any]


def transfer_table(results: Results) -> str:
    """Losses over the grid, the best lr of each momentum, and the effective lr that it is."""
    part, runs = results["setting"]["transfer"], results["runs"]
    rows = [("alpha (momentum)", *(f"lr 2^{math.log2(lr):g}" for lr in part["lrs"]), "best lr", "best effective lr")]
    best: dict[float, float] = {}
    for alpha in part["alphas"]:
        losses = [fmean(runs[f"transfer/{alpha:g}/{lr:g}/{s}"]["loss"] for s in part["seeds"]) for lr in part["lrs"]]
        best[alpha] = _valley(part["lrs"], losses)
        told = f"2^{math.log2(best[alpha]):.2f}"
        effective = f"2^{math.log2(effective_lr(best[alpha], alpha)):.2f}"
        rows.append((f"{alpha:g} ({1 - alpha:g})", *(f"{loss:.3f}" for loss in losses), told, effective))
    plain, effective = (
        max(values) - min(values)
        for values in (
            [math.log2(lr) for lr in best.values()],
            [math.log2(effective_lr(lr, alpha)) for alpha, lr in best.items()],
        )
    )
    caption = (
        f"Constrained Scion, {results['setting']['model']}, {part['steps']} steps, cosine lr. Held-out loss in nats "
        f"per byte, mean of {len(part['seeds'])} seeds. Best: lowest point of the parabola in log lr through the "
        f"lowest loss of a row and its neighbours. Over the rows the best lr varies by a factor of {2**plain:.2f}. The "
        f"best effective lr, lr sqrt((2 - alpha)/alpha), varies by {2**effective:.2f}. "
        f"{results['date'][:10]}."
    )
    return f"{table(rows[0], rows[1:])}\n\n{caption}"


def schedules_table(results: Results) -> str:
    """The four ways to end a run."""
    part, runs = results["setting"]["schedules"], results["runs"]
    rows: list[tuple[str, ...]] = [("", "held-out loss", "minus the first row", "RMS at step 60", "RMS at the end")]
    base = [runs[f"schedules/{part['runs'][0]}/{seed}"]["loss"] for seed in part["seeds"]]
    for name in part["runs"]:
        held = [runs[f"schedules/{name}/{seed}"] for seed in part["seeds"]]
        losses = [run["loss"] for run in held]
        mean, half = interval([a - b for a, b in zip(losses, base, strict=True)]) if losses != base else (0.0, 0.0)
        rms = [[run["course"][str(step)]["rms"] for run in held] for step in (60, part["steps"])]
        rows.append(
            (
                name,
                f"{fmean(losses):.3f} ± {stdev(losses):.3f}",
                f"{mean:+.3f} ± {half:.3f}" if losses != base else "",
                *(f"{fmean(values):.4f}" for values in rms),
            )
        )
    balance = math.sqrt(part["target_norm"] / 128)
    caption = (
        f"The same model, {part['steps']} steps, {part['warmup']} of warm-up, lr {part['lr']:g}, first alpha "
        f"{part['alpha']:g}. The target norm C^2 is {part['target_norm']:g}: an RMS of {balance:.4f} in a square "
        f"matrix. Mean and standard deviation of {len(part['seeds'])} seeds. Differences are on equal seeds, with half "
        "their 95 % interval. RMS is over all hidden matrices."
    )
    return f"{table(rows[0], rows[1:])}\n\n{caption}"


SECTIONS: dict[str, Callable[[Results], str]] = {"transfer": transfer_table, "schedules": schedules_table}


def update_docs(path: Path, source: Path, check: bool) -> int:
    """Put the figures between the markers, or with `check` say whether they stand there; an exit code."""
    results = json.loads(source.read_text())
    sections = {name: make(results) for name, make in SECTIONS.items()}
    return update(path, sections, source, "benchmarks/momentum.py --docs", check=check)


def figure(results: Results, path: Path) -> None:
    """Lr and alpha, norms, losses of the four, means over the seeds."""
    plot.save(_draw(results), path)


@styled
def _draw(results: Results) -> ReportFigure:
    part, runs = results["setting"]["schedules"], results["runs"]
    caption = (
        f"ScionC, {results['setting']['model']}, {len(part['seeds'])} seeds; C^2 {part['target_norm']:g}; not "
        f"corrected: the decay that is right for alpha {part['alpha']:g} stays"
    )
    drawn = new_figure(12.4, 3.8, "Momentum in place of lr decay", caption, legend=True)
    panels = drawn.subplots(1, 4)
    named = {"lr": "lr", "alpha": "alpha = 1 - momentum", "rms": "RMS of hidden weights", "loss": "held-out loss"}
    for name, colour, line in zip(part["runs"], palette().checkpoints, ("-", "--", "-", "-."), strict=False):
        held = [runs[f"schedules/{name}/{seed}"]["course"] for seed in part["seeds"]]
        steps = [int(step) for step in held[0]]
        for axes, (key, title) in zip(panels, named.items(), strict=True):
            values = [fmean(run[str(step)][key] for run in held) for step in steps]
            axes.plot(steps, values, line, color=colour, label=name.replace(", ", ",\n").replace(" in its", "\nin its"))
            axes.set_title(title)
            axes.set_xlabel("step")
    panels[-1].set_ylim(1.8, 3.2)
    legend(drawn)
    return drawn


def _valley(lrs: list[float], losses: list[float]) -> float:
    """The lowest point of the parabola, in log lr, through the best three; the best itself at an end."""
    best = int(np.argmin(losses))
    if best in (0, len(losses) - 1):
        return lrs[best]
    here = slice(best - 1, best + 2)
    a, b, _ = np.polyfit(np.log(lrs[here]), losses[here], 2)
    return math.exp(-b / (2 * a))
