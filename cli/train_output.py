"""Output of `specdiag train`: settings and checks before the first step, losses, and the outcome."""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, cast

from specdiag.errors import MissingExtraError

from . import output, tables

if TYPE_CHECKING:
    from torch import nn

    from specdiag.train.callbacks.run_log import Decays
    from specdiag.train.runs.leaderboard import Ranked
    from specdiag.train.runs.run import Result, Run
    from specdiag.train.runs.sweep import Grid

_SHOWN = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "per_device_train_batch_size",
    "gradient_accumulation_steps", "max_grad_norm", "bf16", "fp16", "seed",
)  # fmt: skip
_PLAIN_UNITS = ("bytes", "uint16", "uint32")
_LINES = 10
"""Lines of progress over a whole run, about."""


def quieten() -> None:
    """Leave the talking to this program: transformers has progress bars and warnings of its own."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    try:
        from transformers.utils import logging
    except ImportError as error:
        raise MissingExtraError(
            "training needs transformers and accelerate: pip install transformers accelerate"
        ) from error

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def ready(run: Run) -> None:
    """Print the settings, data, model and checks of a run."""
    console = output.console()
    recipe = run.config.recipe
    if run.source is None:
        console.print(f"{recipe.title or 'A new run'}, {recipe.steps_total} steps, in {run.folder}", soft_wrap=True)
        for sentence in (f"From {recipe.source}." if recipe.source else "", *recipe.notes):
            if sentence:
                console.print(sentence, soft_wrap=True)
    else:
        where = "with a fresh optimizer" if run.fresh else f"at step {run.step}"
        console.print(f"{run.source} goes on {where}, to step {recipe.steps_total}, in {run.folder}", soft_wrap=True)
    by_origin: dict[str, list[str]] = defaultdict(list)
    for name in _SHOWN:
        if name in run.settings.values:
            by_origin[run.settings.origin[name]].append(f"{name} {_short(run.settings.values[name])}")
    for origin, held in by_origin.items():
        console.print(f"From {origin}: {', '.join(held)}.", soft_wrap=True)
    model = cast("nn.Module", run.trainer.model)
    n = sum(p.numel() for p in model.parameters())
    console.print(f"Model: {type(model).__name__} with {n / 1e6:.2f} M parameters.", soft_wrap=True)
    console.print(_data(run), soft_wrap=True)
    if recipe.optimizer:
        from specdiag.optim.layout import layout

        options = ", ".join(f"{name} {_short(value)}" for name, value in recipe.optimizer_options.items())
        console.print(f"Optimizer: {recipe.optimizer}{f' ({options})' if options else ''}.", soft_wrap=True)
        for line in layout(model, run.trainer.optimizer).split("\n"):
            console.print(line, soft_wrap=True)
    for sentence in run.notes:
        console.print(sentence, soft_wrap=True)
    if run.plan is not None and not run.in_place:
        from specdiag.views import plan_sentences

        for sentence in plan_sentences.findings(run.plan):
            console.print(sentence, soft_wrap=True)


def _data(run: Run) -> str:
    data, units = run.data, run.data.fingerprint.tokens
    parts = f"{len(data.train)} to train on, {len(data.held_out)} held out."
    if not data.n_tokens:
        return f"Data: {len(data.train) + len(data.held_out)} examples: {parts}"
    kind = units if units in _PLAIN_UNITS else "of the tokenizer"
    return f"Data: {data.n_tokens} tokens ({kind}) in blocks of {data.fingerprint.block_size}: {parts}"


def decays(run: Run, found: Decays, *, all_rows: bool) -> None:
    """The decay of every role, as the optimizer reads it in its first step."""
    from specdiag.architecture.roles import roles

    console = output.console()
    shapes = {name: tuple(p.shape) for name, p in run.trainer.model.named_parameters()}  # pyright: ignore
    named = roles({name: shapes[name] for name in found if name in shapes})
    members: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in found:
        parts = named.get(name) or []
        members[(parts[0].family, parts[0].role) if parts else ("other", "bias, norm")].append(name)
    rows = [(*role, [found[name] for name in names]) for role, names in members.items()]
    columns: tuple[tables.Column[tuple[str, str, list[float]]], ...] = (
        tables.Column("family", lambda r: r[0], right=False),
        tables.Column("role", lambda r: r[1], right=False),
        tables.Column("n", lambda r: str(len(r[2]))),
        tables.Column("weight decay", lambda r: f"{fmean(r[2]):.4g}"),
        tables.Column("min-max", lambda r: f"{min(r[2]):.4g}-{max(r[2]):.4g}"),
    )
    title = f"Weight decay ({run.config.recipe.decay}) at step {run.step}, as the optimizer reads it"
    console.print(tables.draw(title, columns, rows, console.width))
    if all_rows:
        one: tuple[tables.Column[tuple[str, float]], ...] = (
            tables.Column("Parameter", lambda r: r[0], right=False),
            tables.Column("weight decay", lambda r: f"{r[1]:.6g}"),
        )
        console.print(tables.draw(f"{len(found)} Parameters", one, list(found.items()), console.width))


@contextmanager
def progress(run: Run) -> Generator[Callable[[int, Mapping[str, float]], None]]:
    """A bar on stderr where somebody watches, else a line now and then."""
    total, first = run.steps_total, run.step
    if not output.shows_progress():
        yield _lines(total, first)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[held]}", markup=False),
        TextColumn("elapsed"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(compact=True),
    )  # fmt: skip
    with Bar(*columns, console=output.console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, completed=first, held="")
        started = time.perf_counter()

        def update(step: int, logs: Mapping[str, float]) -> None:
            rate = run.trainer.tokens / (time.perf_counter() - started)
            bar.update(task, completed=step, held=f"{_logged(logs)}{f', {rate:.0f} tokens/s' if rate else ''}")

        yield update


def _lines(total: int, first: int) -> Callable[[int, Mapping[str, float]], None]:
    apart, last = -(-(total - first) // _LINES), first

    def line(step: int, logs: Mapping[str, float]) -> None:
        nonlocal last
        if step - last >= apart or step == total or not math.isfinite(logs["loss"]):
            last = step
            output.talk(f"step {step}/{total}: {_logged(logs)}", "dim")

    return line


def _logged(logs: Mapping[str, float]) -> str:
    said = [f"loss {logs['loss']:.4f}", f"lr {logs['learning_rate']:.3g}"]
    if "alpha" in logs:
        said.append(f"mean alpha {logs['alpha']:.2f}")
    if "ratio_min" in logs:
        said.append(f"ratios {logs['ratio_min']:.2f}-{logs['ratio_max']:.2f}")
    return ", ".join(said)


def answer(run: Run, result: Result) -> None:
    """Losses, time, and how to go on."""
    console = output.console()
    counted = f"{result.tokens} tokens in " if result.tokens else ""
    rate = f" ({result.tokens / result.seconds:.0f} a second)" if result.tokens and result.seconds else ""
    loss = "none logged" if result.train_loss is None else f"{result.train_loss:.4f}"
    console.print(f"Step {result.step}: {counted}{result.seconds:.1f} s{rate}; train loss {loss}.", soft_wrap=True)
    if result.decay_seconds:
        share = result.decay_seconds / result.seconds
        console.print(f"Exponents and ratios took {result.decay_seconds:.2f} s of these, {share:.2%}.")
    ratios = getattr(getattr(run.rule, "decay", None), "ratios", {})
    if run.config.recipe.decay == "alphadecay" and ratios and set(ratios.values()) == {1.0}:
        console.print("All ratios were 1 to the end: not every module has been measured (--every, --measure-first).")
    if result.spike_share is not None:
        console.print(
            f"Loss spikes (7 standard deviations from the mean before): {result.spike_share:.2%} of those logged."
        )
    after, in_tokens = result.held_out_after or {}, run.data.n_tokens > 0
    for name, before in result.held_out_before.items():
        now = f", {_figure(name, after[name], in_tokens)} now" if name in after else ""
        console.print(f"Held out: {_figure(name, before, in_tokens)} before{now}.")
    if result.interrupted:
        output.talk(
            f"stopped at step {result.step}, saved: go on with 'specdiag train --resume {result.run}'", "yellow"
        )
    elif result.diverged is None:
        output.talk(f"run: {result.run}", "green")


def ranking(rows: Sequence[Ranked], notes: Sequence[str]) -> None:
    """Runs, the best first, and what makes them hard to compare."""
    columns: tuple[tables.Column[Ranked], ...] = (
        tables.Column("run", lambda r: r.run, right=False),
        tables.Column("decay", lambda r: r.decay, right=False),
        tables.Column("base", lambda r: tables.number(r.weight_decay, 6).rstrip("0").rstrip(".")),
        tables.Column("seed", lambda r: str(r.seed), 2),
        tables.Column("held-out loss", lambda r: f"{r.loss:.4f}"),
        tables.Column("better by", lambda r: f"{r.improvement:+.4f}"),
        tables.Column("figures of merit", lambda r: ", ".join(f"{n} {v:.4f}" for n, v in r.merits.items()) or "·"),
        tables.Column("hours", lambda r: f"{r.hours:.2f}", 3),
        tables.Column("of these ratios", lambda r: f"{r.decay_share:.2%}", 4),
    )
    console = output.console()
    console.print(tables.draw("Runs, the best first", columns, rows, console.width))
    diverged(rows)
    for sentence in notes:
        console.print(f"Hard to compare: {sentence}", soft_wrap=True)
    if len({row.seed for row in rows}) == 1:
        console.print(
            "One seed: a difference says something only where it is larger than "
            "that between seeds (--sweep 'seed=0,1,2').",
            soft_wrap=True,
        )


def diverged(rows: Sequence[Ranked]) -> None:
    """A sentence for each run whose loss is not finite."""
    from specdiag.train.runs.leaderboard import divergences

    for sentence in divergences(rows):
        output.console().print(sentence, soft_wrap=True)


def locked(runs: Sequence[Path]) -> None:
    """A sentence for each run of a grid that another process writes to."""
    for run in runs:
        output.console().print(
            f"'{run.name}' is locked: another process writes to it; the same command takes it up when that has ended.",
            soft_wrap=True,
        )


def ranking_data(rows: Sequence[Ranked], format: str) -> bytes:
    """The same as json, csv or md; each figure of merit is a column."""
    import msgspec

    from specdiag.views.export import export

    flat = [{**msgspec.structs.asdict(row), **row.merits} for row in rows]
    columns = dict.fromkeys(name for row in flat for name in row if name != "merits")
    return export(flat, list(columns), format)


def grid(found: Grid) -> None:
    """Methods down; base decays across, or tasks, as the papers print it."""

    def cell(method: str, column: str) -> str:
        held = found.cells[method].get(column)
        if held is None:
            return "·"
        if not held.scores:
            return "locked"
        if held.n_locked:
            return f"{held.mean:.3f} ({held.n_locked} of {len(held.scores) + held.n_locked} locked)"
        if held.n_diverged and len(held.scores) > 1:
            return f"nan ({held.n_diverged} of {len(held.scores)} diverged)"
        return f"{held.mean:.3f}" + ("" if held.spread is None else f" ± {held.spread:.3f}")

    columns: list[tables.Column[str]] = [tables.Column(found.measure, str, right=False)]
    columns.extend(tables.Column(c, lambda m, c=c: cell(m, c)) for c in found.columns)
    if found.averages:
        columns.append(tables.Column("average", lambda m: tables.number(found.averages.get(m), 3)))
    columns.append(tables.Column("balance", lambda m: tables.number(found.best(m)[1].balance, 3)))
    columns.append(tables.Column("hours", lambda m: f"{found.best(m)[1].hours:.2f}"))
    console = output.console()
    n = max(len(held.scores) for row in found.cells.values() for held in row.values())
    title = f"Held out, mean{' and standard deviation' if n > 1 else ''} of {n} seed{'s' if n > 1 else ''}"
    console.print(tables.draw(title, columns, found.methods, console.width))
    console.print(
        "balance: standard deviation of square_alpha over attention and MLP matrices at the end, in each method's best "
        "column, as the hours.",
        soft_wrap=True,
    )
    base, *others = found.methods
    column, best = found.best(base)
    for method in others:
        own, held = found.best(method)
        if not best.mean or not math.isfinite(held.mean / best.mean):
            continue
        console.print(
            f"Best against best: {method} ({own}) {held.mean:.3f}, {base} ({column}) {best.mean:.3f}: "
            f"{held.mean / best.mean - 1:+.1%}.",
            soft_wrap=True,
        )


def _figure(name: str, value: float, in_tokens: bool) -> str:
    from specdiag.train.runs.run import perplexity

    return f"{name} {value:.4f}" + (f" (perplexity {perplexity(value):.2f})" if name == "loss" and in_tokens else "")


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
