"""What `specdiag train` prints: what it found before the first step, losses on the way, and what came of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import TYPE_CHECKING

from . import output, tables

if TYPE_CHECKING:
    from specdiag.train.following import Decays
    from specdiag.train.run import Result, Run

_SHOWN = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "per_device_train_batch_size",
    "gradient_accumulation_steps", "max_grad_norm", "bf16", "fp16", "seed",
)  # fmt: skip
_PLAIN_UNITS = ("bytes", "uint16", "uint32")
_LINES = 10
"""Lines of progress over a whole run, about."""


def quieten() -> None:
    """Leave the talking to this program: transformers has progress bars and warnings of its own."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def ready(run: Run) -> None:
    """What was found, taken over and checked."""
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
    console.print(_data(run), soft_wrap=True)
    for sentence in run.said:
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
    columns = (
        tables.Column("family", lambda r: r[0], right=False),
        tables.Column("role", lambda r: r[1], right=False),
        tables.Column("n", lambda r: str(len(r[2]))),
        tables.Column("weight decay", lambda r: f"{fmean(r[2]):.4g}"),
        tables.Column("min-max", lambda r: f"{min(r[2]):.4g}-{max(r[2]):.4g}"),
    )
    title = f"Weight decay ({run.config.recipe.decay}) at step {run.step}, as the optimizer reads it"
    console.print(tables.draw(title, columns, rows, console.width))
    if all_rows:
        one = (
            tables.Column("Parameter", lambda r: r[0], right=False),
            tables.Column("weight decay", lambda r: f"{r[1]:.6g}"),
        )
        console.print(tables.draw(f"{len(found)} Parameters", one, list(found.items()), console.width))


def progress(run: Run) -> Callable[[int, Mapping[str, float]], None]:
    """A line on stderr now and then."""
    total, first = run.steps_total, run.step
    apart = -(-(total - first) // _LINES)
    last = first

    def line(step: int, logs: Mapping[str, float]) -> None:
        nonlocal last
        if step - last >= apart or step == total:
            last = step
            output.talk(f"step {step}/{total}: loss {logs['loss']:.4f}, lr {logs['learning_rate']:.3g}", "dim")

    return line


def answer(result: Result) -> None:
    """Losses, time, and how to go on."""
    console = output.console()
    rate = result.tokens / result.seconds if result.seconds else 0.0
    loss = "none logged" if result.train_loss is None else f"{result.train_loss:.4f}"
    console.print(
        f"Step {result.step}: {result.tokens} tokens in {result.seconds:.1f} s ({rate:.0f} a second); "
        f"train loss {loss}.",
        soft_wrap=True,
    )
    for name, before in result.held_out_before.items():
        after = None if result.held_out_after is None else result.held_out_after[name]
        console.print(
            f"Held out: {_figure(name, before)} before{'' if after is None else f', {_figure(name, after)} now'}."
        )
    if result.interrupted:
        output.talk(
            f"stopped at step {result.step}, saved: go on with 'specdiag train --resume {result.run}'", "yellow"
        )
    else:
        output.talk(f"run: {result.run}", "green")


def _figure(name: str, value: float) -> str:
    from specdiag.train.run import perplexity

    return f"{name} {value:.4f}" + (f" (perplexity {perplexity(value):.2f})" if name == "loss" else "")


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
