"""Results of benchmarks/study.py in sentences, tables and a figure, for the terminal and docs/study.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pages
from study_answer import ENOUGH, answer, hypotheses, told
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
_FIGURE_TEXT = "![Held-out loss of each arm less that of the best uniform decay, with intervals]"
_COMMAND = "python benchmarks/study.py --docs"
Runs = Mapping[str, Mapping[str, Any]]


def update_docs(page: Path, runs: Runs, source: Path, *, check: bool) -> int:
    """Put the results into docs/study.md. Returns an exit code."""
    drawn = [size for size in HEADLINE_SIZES if differences(runs, size)]
    text = summary(runs, HEADLINE_SIZES, f"{_FIGURE_TEXT}(figures/{FIGURE.name})" if drawn else "")
    code = pages.update(page, {"study": text}, source, _COMMAND, check=check)
    if drawn and not check:
        draw(runs, drawn)
    return code


def summary(runs: Runs, sizes: Sequence[str], figure: str = "") -> str:
    """Give the answer, a figure, then what is known of each size."""
    parts = [part for size in sizes for part in _size(runs, size)]
    return "\n\n".join(part for part in (answer(_losses(runs), sizes), figure, *parts) if part)


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
    found = hypotheses(_losses(runs), size)
    for name, _, _, question in COMPARISONS:
        if name in found:
            each = found[name]
            rows.append([name, question, told(each), str(len(each.values)), f"{each.seen:.4f}", f"**{each.verdict}**"])
    if not rows:
        return ""
    head = ["", "question", "nats a token (95 % together)", "seeds", "found with probability 0.8", "answer"]
    return pages.table(head, rows)


def differences(runs: Runs, size: str) -> dict[str, Difference]:
    """Difference of each arm to the best uniform decay: simultaneous intervals for the headline, single for others.

    Arms of too few seeds for an interval are left out.
    """
    losses = _losses(runs)
    found = {
        name: difference(losses, size, name, BEST_UNIFORM, intervals=N_INTERVALS if name in HEADLINE else 1)
        for name in ARMS
        if name != BEST_UNIFORM
    }
    return {
        name: each
        for name, each in found.items()
        if each is not None and len(each.values) >= min(ENOUGH, len(ARMS[name].seeds))
    }


def _rates(runs: Runs, size: str) -> str:
    losses = _losses(runs)
    grid = {
        each["cell"]["lr"]: losses[key]
        for key, each in runs.items()
        if (each["cell"]["size"], each["cell"]["arm"], each["cell"]["seed"]) == (size, BEST_UNIFORM, TUNING_SEEDS[0])
        and each["cell"]["total"] == TUNING_TOTAL
    }
    best = chosen_lr(size, losses).value
    listed = ", ".join(
        f"{'**' if lr == best else ''}{lr:g}: {grid[lr]:.4f}{'**' if lr == best else ''}" for lr in sorted(grid)
    )
    return f"Held-out loss by peak lr, uniform decay, seed {TUNING_SEEDS[0]}: {listed}." if grid else ""


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
        listed = ", ".join(_mean_loss(total, cells[total], bold=total == best) for total in sorted(cells))
        rows.append([ARMS[name].title, listed])
    if not rows:
        return ""
    seeds = " and ".join(map(str, TUNING_SEEDS))
    head = ["arm", "held-out loss by the sum of lr x decay"]
    return f"By the base decay, seeds {seeds}, lr {lr:g} (bold: chosen):\n\n" + pages.table(head, rows)


def _mean_loss(total: float, losses: Sequence[float], *, bold: bool) -> str:
    missing = "" if len(losses) == len(TUNING_SEEDS) else f" ({len(losses)} of {len(TUNING_SEEDS)} seeds)"
    text = f"{total:g}: {fmean(losses):.4f}{missing}"
    return f"**{text}**" if bold else text


def _arms(runs: Runs, size: str) -> str:
    losses, found, rows = _losses(runs), differences(runs, size), []
    for name, arm in ARMS.items():
        cells = [tested(size, losses, name, seed) for seed in TEST_SEEDS]
        ended = [losses[cell.key] for cell in cells if cell is not None and cell.key in losses]
        if not ended:
            continue
        spread = f" ± {stdev(ended):.4f}" if len(ended) > 1 else ""
        apart = told(found[name]) if name in found else ""
        label = f"{arm.title} (exploratory)" if name in EXPLORATORY else arm.title
        rows.append([label, f"{fmean(ended):.4f}{spread}", str(len(ended)), apart])
    return pages.table(["arm", "held-out loss", "seeds", "against the best uniform decay"], rows) if rows else ""


def _spectra(runs: Runs, size: str) -> str:
    """Exponents and norm at the end by uniform decay, mean over matrices and tuning seeds."""
    losses = _losses(runs)
    lr = chosen_lr(size, losses).value
    found: dict[float, list[list[list[float]]]] = {}
    for each in runs.values():
        cell = each["cell"]
        if (cell["size"], cell["arm"], cell["lr"]) == (size, BEST_UNIFORM, lr) and cell["seed"] in TUNING_SEEDS:
            found.setdefault(cell["total"], []).append(
                [values for name, values in each["matrices"].items() if _shape_of(name) is not None]
            )
    by_total = {
        total: list(chain.from_iterable(of_seeds))
        for total, of_seeds in found.items()
        if len(of_seeds) == len(TUNING_SEEDS)
    }
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
        rows.append([role, f"{fmean(v[0] for v in own):.3f}", f"{fmean(v[1] for v in own):.3f}", told(found[name])])
    head = ["role", "alpha", "square_alpha", "loss with three times its decay, less that without"]
    return "Does an exponent tell which module bears more decay? (exploratory)\n\n" + pages.table(head, rows)


def draw(runs: Runs, sizes: Sequence[str]) -> None:
    """Draw the difference of each arm to the best uniform decay, with its interval."""
    from matplotlib.figure import Figure
    from study_design import MARGIN

    found = {size: differences(runs, size) for size in sizes}
    names = [name for name in ARMS if any(name in each for each in found.values())][::-1]
    figure = Figure(figsize=(9, 1.6 + 0.23 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0]
    for axis, size in zip(axes, sizes, strict=True):
        axis.axvspan(-MARGIN, MARGIN, color="0.9", zorder=0)
        axis.axvline(0, color="0.4", linewidth=1)
        reach = 2 * MARGIN
        for name, each in found[size].items():
            decides = name in HEADLINE
            reach = max(reach, abs(each.mean) + (each.half if decides else MARGIN))
            colour, marker = ("C0", "o") if decides else ("0.5", "s")
            axis.errorbar(each.mean, names.index(name), xerr=each.half, fmt=marker, color=colour, capsize=3)
        axis.set_xlim(-1.05 * reach, 1.05 * reach)
        axis.set_title(f"{size} weights", loc="left", fontsize=10)
    axes[0].set_yticks(range(len(names)), [ARMS[name].title for name in names], fontsize=8)
    figure.supxlabel(
        "held-out loss less that of the best uniform decay, nats a token (left is better)\n"
        f"blue: headline, 95 % together; grey: exploratory, 95 % each; band: ±{MARGIN:g}",
        fontsize=9,
    )
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=120)
