"""Results of benchmarks/methods.py in Markdown for docs/methods.md."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from methods_setting import BASE, BETAS, EVERY, STRONG_ROWS, WIDTH, Results
from pages import table, update
from scipy.stats import t as student

import specdiag
from specdiag.decay.schedules import cosine
from specdiag.dynamics.records import Simulation
from specdiag.optim import METHODS


def chosen_lr(results: Results, name: str) -> float:
    """The lr with the lowest loss on the grid's seed."""
    grid = results["setting"]["contenders"][name]["lrs"]
    losses = {lr: results["runs"][f"grid/{name}/{lr:g}"]["loss"] for lr in grid}
    finite = {lr: loss for lr, loss in losses.items() if loss is not None}
    if not finite:
        raise SystemExit(f"{name}: no lr of {grid} gave a finite loss")
    return min(finite, key=finite.__getitem__)


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval by Student's t."""
    count = len(differences)
    return fmean(differences), float(student.ppf(0.975, count - 1)) * stdev(differences) / math.sqrt(count)


def compared(results: Results, part: str, name: str, base: str = BASE) -> tuple[float, float] | None:
    """`interval` of the losses less the base's of the same seed; None if a run has no loss."""
    losses, others = (_losses(results, part, each) for each in (name, base))
    if None in losses or None in others:
        return None
    return interval([a - b for a, b in zip(losses, others, strict=True)])


def verdicts(results: Results, part: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Which are below the base, above, or not told apart from it.

    Told apart is what differs by more than half the interval and by more than the base's own standard deviation.
    """
    own = stdev(_or_inf(_losses(results, part, BASE)))
    found: dict[str, list[str]] = {"below": [], "above": [], "same": []}
    for name in names:
        difference = compared(results, part, name)
        if name == BASE:
            continue
        if difference is None:
            found["above"].append(name)
            continue
        mean, half = difference
        found["same" if abs(mean) <= max(half, own) else "below" if mean < 0 else "above"].append(name)
    return found


def methods_table(results: Results) -> str:
    """Every contender, best first."""
    setting = results["setting"]
    names = list(setting["contenders"])
    rows = [("method", "lr of grid", "lr x decay x steps", "held-out loss", "minus AdamW", "CPU per step")]
    for name in sorted(names, key=lambda name: fmean(_or_inf(_losses(results, "seeds", name)))):
        each = setting["contenders"][name]
        lr, grid = chosen_lr(results, name), each["lrs"]
        diverged = sum(results["runs"][f"grid/{name}/{other:g}"]["loss"] is None for other in grid)
        edge = " (lowest)" if lr == grid[0] else " (highest)" if lr == grid[-1] else ""
        rows.append(
            (
                name,
                f"{lr:.3g}{edge}" + (f", {diverged} diverged" if diverged else ""),
                f"{lr * _decay(each) * setting['steps']:.2g}",
                _spread(_losses(results, "seeds", name)),
                _difference(results, "seeds", name),
                f"{median(results['step_costs'][name]):.2f}",
            )
        )
    counted = results["bytes_alone"]
    caption = (
        f"{setting['model']}, {setting['steps']} steps of {setting['batch'][0]} blocks of {setting['batch'][1]} bytes, "
        f"{setting['warmup']} of warm-up, cosine to 0. The loss is in nats per byte on "
        f"{results['text']['held_out']:,} bytes of files that no run saw: mean and standard deviation of "
        f"{len(setting['seeds'])} seeds. Predicting from the frequencies of single bytes gives {counted['one']:.2f}, "
        f"of pairs {counted['two']:.2f}. The lr is the best of a grid of four, each twice the last, chosen on another "
        f"seed; (lowest) and (highest) mark an end of the grid. Minus AdamW: mean difference on equal seeds (same "
        "first weights and batches), with half its 95 % interval. CPU per step: processor time over AdamW's on one "
        "thread, median of three rounds in turn; the two AdamW rows do equal work and show its error. "
        f"{results['date'][:10]}."
    )
    return f"{table(rows[0], rows[1:])}\n\n{caption}\n\n{_told(results, 'seeds', names)}"


def strong_table(results: Results) -> str:
    """Methods that differ from AdamW in decay alone, where decay acts."""
    decay = results["setting"]["decay"]
    change = f"change from step {decay['settled']}"
    rows = [("method", "held-out loss", "minus AdamW", "RMS at the end", change)]
    for name in STRONG_ROWS:
        runs = [results["runs"][f"strong/{name}/{seed}"] for seed in results["setting"]["seeds"]]
        rms = [run["rms"][str(decay["steps"])] for run in runs]
        changes = [run["rms"][str(decay["steps"])] / run["rms"][str(decay["settled"])] for run in runs]
        rows.append(
            (
                name,
                _spread([run["loss"] for run in runs]),
                _difference(results, "strong", name),
                _spread(rms, 4),
                f"x {_spread(changes)}",
            )
        )
    ratios = [results["runs"][f"strong/adamw + AlphaDecay/{seed}"]["ratio"] for seed in results["setting"]["seeds"]]
    caption = (
        f"Every run has lr {decay['lr']:g}, which was not tuned, and decay {decay['strong']:g}: lr x decay x steps = "
        f"{decay['lr'] * decay['strong'] * decay['steps']:.1f}. Mean and standard deviation of the same seeds. RMS is "
        f"over all hidden matrices. AlphaDecay's mean ratio was {fmean(ratios):.2f}."
    )
    return f"{table(rows[0], rows[1:])}\n\n{caption}\n\n{_told(results, 'strong', STRONG_ROWS)}"


def norms_table(results: Results) -> str:
    """RMS over the steps: run, prediction."""
    decay, runs, seed = results["setting"]["decay"], results["runs"], results["setting"]["seeds"][0]
    columns = [(part, name) for part in ("strong", "usual") for name in ("adamw", "adamc")]
    measured = [runs[f"{part}/{name}/{seed}"] for part, name in columns]
    predicted = [
        predict(results, name, decay[part], run["rms"]["0"])
        for (part, name), run in zip(columns, measured, strict=True)
    ]
    rows = [("step", "lr", *(f"{name}, {decay[part]:g}" for part, name in columns))]
    lr = cosine(decay["lr"], decay["steps"], decay["warmup"])
    for step in (each for each in measured[0]["rms"] if int(each) % 60 == 0 or int(each) == decay["settled"]):
        cells = (
            f"{run['rms'][step]:.4f} ({found.at(int(step)).rms:.4f}, {found.at(int(step)).simulated_rms:.4f})"
            for run, found in zip(measured, predicted, strict=True)
        )
        rows.append((step, f"{lr(int(step)):.2g}", *cells))
    ranges = (f"x {min(run['change']):.2f} to {max(run['change']):.2f}" for run in measured)
    rows.append(("change of each matrix", "", *ranges))
    caption = (
        f"RMS of the hidden matrices, seed {seed}. Column heads give the decay: lr x decay x steps is "
        f"{decay['lr'] * decay['strong'] * decay['steps']:.1f} and "
        f"{decay['lr'] * decay['usual'] * decay['steps']:.2g}. Parentheses: the prediction of `specdiag.simulate` for "
        "the same start and schedule, then its result from running the optimizer on noise. Last row: change from step "
        f"{decay['settled']} to the end, smallest and largest of {len(measured[0]['change'])} matrices."
    )
    return f"{table(rows[0], rows[1:])}\n\n{caption}"


def betas_table(results: Results) -> str:
    """AdamC's norms for several betas."""
    decay, runs, seeds = results["setting"]["decay"], results["runs"], results["setting"]["seeds"]
    rows = [("betas", f"RMS, mean from step {decay['settled']}", "predicted", "on noise", "RMS at the end", "loss")]
    first = runs[f"strong/adamc/{seeds[0]}"]
    for betas in decay["betas"]:
        run = runs.get(f"betas/{betas[0]:g},{betas[1]:g}/{seeds[0]}", first)
        found = predict(results, "adamc", decay["strong"], run["rms"]["0"], tuple(betas))
        late = [step for step in run["rms"] if int(step) >= decay["settled"]]
        rows.append(
            (
                f"{betas[0]:g}, {betas[1]:g}",
                f"{fmean(run['rms'][step] for step in late):.4f}",
                f"{fmean(found.at(int(step)).rms for step in late):.4f}",
                f"{fmean(found.at(int(step)).simulated_rms for step in late):.4f}",
                f"{run['rms'][str(decay['steps'])]:.4f}",
                told_loss(run),
            )
        )
    late = [step for step in first["rms"] if int(step) >= decay["settled"]]
    spread = _spread([fmean(runs[f"strong/adamc/{s}"]["rms"][step] for step in late) for s in seeds], 4)
    caption = (
        f"AdamC, decay {decay['strong']:g}, seed {seeds[0]}. The first row's mean over {len(seeds)} seeds: {spread}."
    )
    return f"{table(rows[0], rows[1:])}\n\n{caption}"


SECTIONS: dict[str, Callable[[Results], str]] = {
    "methods": methods_table,
    "strong": strong_table,
    "norms": norms_table,
    "betas": betas_table,
}


def predict(
    results: Results, name: str, weight_decay: float, start: float, betas: tuple[float, float] = BETAS[0]
) -> Simulation:
    """The norms of a hidden matrix in a run of the second part."""
    decay = results["setting"]["decay"]
    return specdiag.simulate(
        name, lr=decay["lr"], weight_decay=weight_decay, steps=decay["steps"], lr_shape="cosine",
        warmup=decay["warmup"], betas=betas, shape=(WIDTH, WIDTH), initial_rms=start, stochastic=True,
        at=range(0, decay["steps"] + 1, EVERY),
    )  # fmt: skip


def _told(results: Results, part: str, names: Sequence[str]) -> str:
    found = verdicts(results, part, names)
    said = [
        f"{some}: {', '.join(found[key])}." if found[key] else f"{none}."
        for key, some, none in (
            ("below", "Lower loss than AdamW", "No method has a lower loss than AdamW"),
            ("above", "Higher loss than AdamW", "No method has a higher loss than AdamW"),
            ("same", "No clear difference from AdamW", "All differ clearly"),
        )
    ]
    count = sum(map(len, found.values()))
    return (
        f"{' '.join(said)} A clear difference exceeds half its interval and AdamW's standard deviation. "
        f"By chance about {0.05 * count:.1f} of {count} equal methods would show one."
    )


def _losses(results: Results, part: str, name: str) -> list[float | None]:
    return [results["runs"][f"{part}/{name}/{seed}"]["loss"] for seed in results["setting"]["seeds"]]


def _or_inf(losses: Sequence[float | None]) -> list[float]:
    return [math.inf if loss is None else loss for loss in losses]


def _decay(contender: Mapping[str, Any]) -> float:
    return float({**METHODS[contender["method"]].defaults, **contender["options"]}["weight_decay"])


def _difference(results: Results, part: str, name: str) -> str:
    found = compared(results, part, name)
    return "" if name == BASE else "diverged" if found is None else f"{found[0]:+.3f} ± {found[1]:.3f}"


def _spread(values: Sequence[float | None], digits: int = 3) -> str:
    held = [value for value in values if value is not None]
    if len(held) < len(values):
        return f"{len(values) - len(held)} of {len(values)} diverged"
    return f"{fmean(held):.{digits}f} ± {stdev(held):.{digits}f}"


def told_loss(run: Mapping[str, Any]) -> str:
    """The held-out loss of a run, or that it diverged."""
    return "diverged" if run["loss"] is None else f"{run['loss']:.3f}"


def update_docs(path: Path, source: Path, check: bool) -> int:
    """Put the figures between the markers, or with `check` say whether they stand there; an exit code."""
    results = json.loads(source.read_text())
    sections = {name: make(results) for name, make in SECTIONS.items()}
    return update(path, sections, source, "benchmarks/methods.py --docs", check=check)
