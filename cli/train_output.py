"""Output of `specdiag train` on one run: settings and checks before the first step, progress, and the result."""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from statistics import fmean
from typing import TYPE_CHECKING, cast

from specdiag.errors import MissingExtraError
from specdiag.text.counts import percent

from . import output, tables

if TYPE_CHECKING:
    from torch import nn

    from specdiag.train.callbacks.run_log import Decays
    from specdiag.train.runs.run import Result, Run

_SHOWN = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "per_device_train_batch_size",
    "gradient_accumulation_steps", "max_grad_norm", "bf16", "fp16", "seed",
)  # fmt: skip
_PLAIN_UNITS = ("bytes", "uint16", "uint32")
_LINES = 10
"""Approximate number of lines of progress over a run."""


def quieten() -> None:
    """Silence the progress bars and warnings of transformers."""
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
    for origin, settings in by_origin.items():
        console.print(f"From {origin}: {', '.join(settings)}.", soft_wrap=True)
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
    files = ", ".join(file.name for file in data.fingerprint.held_out)
    origin = f" of {files}" if files else ""
    parts = f"{len(data.train)} to train on, {len(data.held_out)}{origin} {run.config.apart}"
    parts += " from now on; the source run may have trained on them." if run.config.kept_apart else "."
    if not data.n_tokens:
        return f"Data: {len(data.train) + len(data.held_out)} examples: {parts}"
    kind = units if units in _PLAIN_UNITS else "of the tokenizer"
    return f"Data: {data.n_tokens} tokens ({kind}) in blocks of {data.fingerprint.block_size}: {parts}"


def decays(run: Run, decay_of: Decays, *, all_rows: bool) -> None:
    """Print the decay of each role before the first step.

    Args:
        run: the run.
        decay_of: decay that the optimizer reads, by Parameter.
        all_rows: True to print the decay of each Parameter too.
    """
    from specdiag.architecture.roles import roles

    console = output.console()
    shapes = {name: tuple(p.shape) for name, p in run.trainer.model.named_parameters()}  # pyright: ignore
    roles_by_name = roles({name: shapes[name] for name in decay_of if name in shapes})
    members: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in decay_of:
        matches = roles_by_name.get(name) or []
        members[(matches[0].family, matches[0].role) if matches else ("other", "bias, norm")].append(name)
    rows = [(*role, [decay_of[name] for name in names]) for role, names in members.items()]
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
        parameter_columns: tuple[tables.Column[tuple[str, float]], ...] = (
            tables.Column("Parameter", lambda r: r[0], right=False),
            tables.Column("weight decay", lambda r: f"{r[1]:.6g}"),
        )
        title = f"{len(decay_of)} Parameters"
        console.print(tables.draw(title, parameter_columns, list(decay_of.items()), console.width))


@contextmanager
def progress(run: Run) -> Generator[Callable[[int, Mapping[str, float]], None]]:
    """Show progress on stderr: a bar in a terminal, else a line now and then.

    Args:
        run: the run.

    Yields:
        A function that takes a step and what the Trainer logs.
    """
    total, first = run.steps_total, run.step
    if not output.shows_progress():
        yield _lines(total, first, _apart(run))
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[logged]}", markup=False),
        TextColumn("elapsed"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(compact=True),
    )  # fmt: skip
    with Bar(*columns, console=output.console(stderr=True), transient=True) as bar:
        apart, evaluated = _apart(run), ""
        task = bar.add_task("", total=total, completed=first, logged="")
        started = time.perf_counter()

        def update(step: int, logs: Mapping[str, float]) -> None:
            nonlocal evaluated
            if "loss" not in logs:
                evaluated = f", {apart} loss {logs['eval_loss']:.4f} at step {step}"
                return
            rate = run.trainer.tokens / (time.perf_counter() - started)
            bar.update(
                task, completed=step, logged=f"{_logged(logs)}{evaluated}{f', {rate:.0f} tokens/s' if rate else ''}"
            )

        yield update


def _apart(run: Run) -> str:
    return run.config.apart.replace(" ", "-")


def _lines(total: int, first: int, apart: str) -> Callable[[int, Mapping[str, float]], None]:
    interval, last = -(-(total - first) // _LINES), first

    def line(step: int, logs: Mapping[str, float]) -> None:
        nonlocal last
        if "loss" not in logs:
            output.talk(f"step {step}/{total}: {apart} loss {logs['eval_loss']:.4f}", "dim")
            return
        if step - last >= interval or step == total or not math.isfinite(logs["loss"]):
            last = step
            output.talk(f"step {step}/{total}: {_logged(logs)}", "dim")

    return line


def _logged(logs: Mapping[str, float]) -> str:
    parts = [f"loss {logs['loss']:.4f}", f"lr {logs['learning_rate']:.3g}"]
    if "alpha" in logs:
        parts.append(f"mean alpha {logs['alpha']:.2f}")
    if "ratio_min" in logs:
        parts.append(f"ratios {logs['ratio_min']:.2f}-{logs['ratio_max']:.2f}")
    return ", ".join(parts)


def answer(run: Run, result: Result) -> None:
    """Print losses, time, and how to continue.

    Args:
        run: the run.
        result: its result.
    """
    console = output.console()
    tokens = f"{result.tokens} tokens in " if result.tokens else ""
    rate = f" ({result.tokens / result.seconds:.0f} a second)" if result.tokens and result.seconds else ""
    loss = "none logged" if result.train_loss is None else f"{result.train_loss:.4f}"
    console.print(f"Step {result.step}: {tokens}{result.seconds:.1f} s{rate}; train loss {loss}.", soft_wrap=True)
    if result.decay_seconds:
        share = result.decay_seconds / result.seconds
        console.print(f"Exponents and ratios took {result.decay_seconds:.2f} s of these, {percent(share, 2)}.")
    ratios = getattr(getattr(run.rule, "decay", None), "ratios", {})
    if run.config.recipe.decay == "alphadecay" and ratios and set(ratios.values()) == {1.0}:
        console.print("All ratios were 1 to the end: not every module has been measured (--every, --measure-first).")
    if result.spike_share is not None:
        console.print(
            "Loss spikes (7 standard deviations from the mean before): "
            f"{percent(result.spike_share, 2)} of those logged."
        )
    after, in_tokens = result.held_out_after or {}, run.data.n_tokens > 0
    for name, before in result.held_out_before.items():
        now = f", {_figure(name, after[name], in_tokens)} now" if name in after else ""
        console.print(f"{run.config.apart.capitalize()}: {_figure(name, before, in_tokens)} before{now}.")
    if result.interrupted:
        output.talk(
            f"stopped at step {result.step}, saved: go on with 'specdiag train --resume {result.run}'", "yellow"
        )
    elif result.diverged is None:
        output.talk(f"run: {result.run}", "green")


def _figure(name: str, value: float, in_tokens: bool) -> str:
    from specdiag.train.runs.run import perplexity

    return f"{name} {value:.4f}" + (f" (perplexity {perplexity(value):.2f})" if name == "loss" and in_tokens else "")


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
