"""Results of benchmarks/study.py in sentences, tables and a figure, for the terminal and docs/study.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pages
from study_design import (
    ARMS,
    BEST_UNIFORM,
    COMPARISONS,
    EXPLORATORY,
    HEADLINE,
    HEADLINE_SIZES,
    TEST_SEEDS,
    TUNING_SEEDS,
    TUNING_TOTAL,
)
from study_order import chosen_lr, chosen_total, tested
from study_statistics import N_INTERVALS, Difference, difference, merged, share_of_shape

from specdiag.text.counts import counted

FIGURE = Path(__file__).resolve().parents[1] / "docs" / "figures" / "study.png"
_COMMAND = "python benchmarks/study.py --docs"
_ENOUGH = 3
"""Seeds from which an interval is shown."""
Runs = Mapping[str, Mapping[str, Any]]


def update_docs(page: Path, runs: Runs, source: Path, *, check: bool) -> int:
    """Put the results into docs/study.md. Returns an exit code."""
    sizes = [size for size in HEADLINE_SIZES if any(each["cell"]["size"] == size for each in runs.values())]
    sections = {"study": summary(runs, sizes) if sizes else "No run has been made yet."}
    code = pages.update(page, sections, source, _COMMAND, check=check)
    if not check and any(differences(runs, size) for size in sizes):
        draw(runs, sizes)
    return code


def summary(runs: Runs, sizes: Sequence[str]) -> str:
    """Everything that is known so far."""
    return "\n\n".join(part for size in sizes for part in _size(runs, size) if part) or "No run has been made yet."


def _losses(runs: Runs) -> dict[str, float]:
    return {key: math.inf if each["loss"] is None else each["loss"] for key, each in runs.items()}


def _size(runs: Runs, size: str) -> list[str]:
    own = [each for each in runs.values() if each["cell"]["size"] == size]
    if not own:
        return []
    hours = sum(each["seconds"] for each in own) / 3600
    head = (
        f"### {size}: {own[0]['parameters']:,} weights, {own[0]['steps']:,} steps, {counted(len(own), 'run')} so far, "
        f"{hours:.1f} hours"
    )
    return [
        head,
        _rates(runs, size),
        answers(runs, size),
        _tuning(runs, size),
        _arms(runs, size),
        _spectra(runs, size),
        _shape(runs, size),
        _roles(runs, size),
    ]


def answers(runs: Runs, size: str) -> str:
    """Give a row for each hypothesis that has enough seeds."""
    rows = []
    for name, arm, rival, question in COMPARISONS:
        found = difference(_losses(runs), size, arm, rival, intervals=N_INTERVALS)
        if found is None or len(found.values) < _ENOUGH:
            continue
        rows.append([name, question, _told(found), str(len(found.values)), f"{found.seen:.4f}", f"**{found.verdict}**"])
    if not rows:
        return ""
    head = ["", "question", "nats a token (95 % together)", "seeds", "found with probability 0.8", "answer"]
    return pages.table(head, rows)


def differences(runs: Runs, size: str) -> dict[str, Difference]:
    """Difference of each arm to the best uniform decay: simultaneous intervals for the headline, single for others."""
    losses = _losses(runs)
    found = {
        name: difference(losses, size, name, BEST_UNIFORM, intervals=N_INTERVALS if name in HEADLINE else 1)
        for name in ARMS
        if name != BEST_UNIFORM
    }
    return {name: each for name, each in found.items() if each is not None and len(each.values) >= 2}


def _told(found: Difference) -> str:
    return f"{found.mean:+.4f} ± {found.half:.4f}"


def _rates(runs: Runs, size: str) -> str:
    losses = _losses(runs)
    grid = {
        each["cell"]["lr"]: losses[key]
        for key, each in runs.items()
        if (each["cell"]["size"], each["cell"]["arm"], each["cell"]["seed"]) == (size, BEST_UNIFORM, TUNING_SEEDS[0])
        and each["cell"]["total"] == TUNING_TOTAL
    }
    best = chosen_lr(size, losses).value
    told = ", ".join(
        f"{'**' if lr == best else ''}{lr:g}: {grid[lr]:.4f}{'**' if lr == best else ''}" for lr in sorted(grid)
    )
    return f"Held-out loss by peak lr, uniform decay, seed {TUNING_SEEDS[0]}: {told}." if grid else ""


def _tuning(runs: Runs, size: str) -> str:
    losses = _losses(runs)
    lr = chosen_lr(size, losses).value
    rows = []
    for name in dict.fromkeys(arm.tuned_as for arm in ARMS.values()):
        cells: dict[float, list[float]] = {}
        for each in runs.values():
            cell = each["cell"]
            if cell["size"] == size and cell["arm"] == name and cell["lr"] == lr and cell["seed"] in TUNING_SEEDS:
                cells.setdefault(cell["total"], []).append(math.inf if each["loss"] is None else each["loss"])
        if not cells or lr is None:
            continue
        best = chosen_total(size, losses, name, lr).value
        told = ", ".join(
            f"{'**' if total == best else ''}{total:g}: {fmean(cells[total]):.4f}{'**' if total == best else ''}"
            for total in sorted(cells)
        )
        rows.append([ARMS[name].title, told])
    if not rows:
        return ""
    return f"Chosen on seeds {' and '.join(map(str, TUNING_SEEDS))}, lr {lr:g}:\n\n" + pages.table(
        ["arm", "held-out loss by the sum of lr x decay"], rows
    )


def _arms(runs: Runs, size: str) -> str:
    losses, found, rows = _losses(runs), differences(runs, size), []
    for name, arm in ARMS.items():
        cells = [tested(size, losses, name, seed) for seed in TEST_SEEDS]
        ended = [losses[cell.key] for cell in cells if cell is not None and cell.key in losses]
        if not ended:
            continue
        spread = f" ± {stdev(ended):.4f}" if len(ended) > 1 else ""
        apart = _told(found[name]) if name in found else ""
        label = f"{arm.title} (exploratory)" if name in EXPLORATORY else arm.title
        rows.append([label, f"{fmean(ended):.4f}{spread}", str(len(ended)), apart])
    return pages.table(["arm", "held-out loss", "seeds", "against the best uniform decay"], rows) if rows else ""


def _spectra(runs: Runs, size: str) -> str:
    """Exponents and norm at the end by uniform decay, mean over matrices and tuning seeds."""
    losses = _losses(runs)
    lr = chosen_lr(size, losses).value
    by_total: dict[float, list[list[float]]] = {}
    for each in runs.values():
        cell = each["cell"]
        if (cell["size"], cell["arm"], cell["lr"]) == (size, BEST_UNIFORM, lr) and cell["seed"] in TUNING_SEEDS:
            by_total.setdefault(cell["total"], []).extend(
                values for name, values in each["matrices"].items() if _shape_of(name) is not None
            )
    if len(by_total) < 2:
        return ""
    rows = [
        [f"{total:g}", *(f"{fmean(values[i] for values in by_total[total]):.4f}" for i in range(3))]
        for total in sorted(by_total)
    ]
    head = ["sum of lr x decay", "alpha", "square_alpha", "root mean square of the weights"]
    return "Projections of attention and MLP at the end of uniform runs:\n\n" + pages.table(head, rows)


def _shape_of(name: str) -> str | None:
    """Return which shape a matrix of these models has; None outside of blocks."""
    return None if ".layers." not in name else "mlp" if ".mlp." in name else "attention"


def _shape(runs: Runs, size: str) -> str:
    cells = [tested(size, _losses(runs), "alphadecay", seed) for seed in TEST_SEEDS]
    ended = [runs[cell.key]["matrices"] for cell in cells if cell is not None and cell.key in runs]
    if not ended:
        return ""
    shapes = {name: shape for name in ended[0] if (shape := _shape_of(name)) is not None}
    share = fmean(share_of_shape(each, shapes) for each in ended)
    return (
        f"Shape alone (attention or MLP) explains {share:.0%} of the variance of alpha between modules at the end of "
        f"the AlphaDecay runs ({len(ended)} seeds), and so of its ratios."
    )


def _roles(runs: Runs, size: str) -> str:
    """How much three times the decay of one role costs, beside its exponents."""
    found = differences(runs, size)
    cell = tested(size, _losses(runs), BEST_UNIFORM, TEST_SEEDS[0])
    named = [name for name in found if name.endswith(" x 3")]
    if not named or cell is None or cell.key not in runs:
        return ""
    seeds = [tested(size, _losses(runs), BEST_UNIFORM, seed) for seed in TEST_SEEDS]
    matrices = merged([runs[each.key]["matrices"] for each in seeds if each is not None and each.key in runs])
    rows = []
    for name in named:
        role = name.partition(" ")[0]
        own = [values for key, values in matrices.items() if f".{role}_proj." in key]
        rows.append([role, f"{fmean(v[0] for v in own):.3f}", f"{fmean(v[1] for v in own):.3f}", _told(found[name])])
    head = ["role", "alpha", "square_alpha", "loss with three times its decay, less that without"]
    return "Does an exponent tell which module bears more decay? (exploratory)\n\n" + pages.table(head, rows)


def draw(runs: Runs, sizes: Sequence[str]) -> None:
    """Draw the difference of each arm to the best uniform decay, with its interval."""
    from matplotlib.figure import Figure
    from study_design import MARGIN

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots(1, len(sizes), squeeze=False, sharey=False)[0]
    for axis, size in zip(axes, sizes, strict=True):
        found = differences(runs, size)
        names = list(found)[::-1]
        axis.axvspan(-MARGIN, MARGIN, color="0.9", zorder=0)
        axis.axvline(0, color="0.4", linewidth=1)
        for y, name in enumerate(names):
            each = found[name]
            colour, marker = ("C0", "o") if name in HEADLINE else ("0.5", "s")
            axis.errorbar(each.mean, y, xerr=each.half, fmt=marker, color=colour, capsize=3)
        axis.set_yticks(range(len(names)), [ARMS[name].title for name in names], fontsize=8)
        axis.set_title(f"{size} weights", loc="left", fontsize=10)
        axis.set_xlabel("held-out loss less that of the best uniform decay, nats a token")
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=120)
