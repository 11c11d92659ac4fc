"""What `specdiag train` prints: what it found before the first step, losses on the way, and what came of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import TYPE_CHECKING

from . import output, tables

if TYPE_CHECKING:
    from specdiag.train.following import Decays
    from specdiag.train.resume import Result, Run

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
    start, config = run.start, run.config
    console = output.console()
    where = "with a fresh optimizer" if start.fresh else f"at step {start.step}"
    console.print(f"{start.checkpoint} goes on {where}, to step {config.steps_total}, in {run.folder}", soft_wrap=True)
    by_origin: dict[str, list[str]] = defaultdict(list)
    for name in _SHOWN:
        if name in run.settings.values:
            by_origin[run.settings.origin[name]].append(f"{name} {_short(run.settings.values[name])}")
    for origin, held in by_origin.items():
        console.print(f"From {origin}: {', '.join(held)}.", soft_wrap=True)
    data, units = run.data, run.data.fingerprint.tokens
    console.print(
        f"Data: {data.n_tokens} tokens ({units if units in _PLAIN_UNITS else 'of the tokenizer'}) in blocks of "
        f"{data.fingerprint.block_size}: {len(data.train)} to train on, {len(data.held_out)} held out.",
        soft_wrap=True,
    )
    for sentence in run.said:
        console.print(sentence, soft_wrap=True)
    if run.plan is not None and start.in_place is None:
        from specdiag.views import plan_sentences

        for sentence in plan_sentences.findings(run.plan):
            console.print(sentence, soft_wrap=True)


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
    title = f"Weight decay ({run.config.decay}) at step {run.start.step}, as the optimizer reads it"
    console.print(tables.draw(title, columns, rows, console.width))
    if all_rows:
        one = (
            tables.Column("Parameter", lambda r: r[0], right=False),
            tables.Column("weight decay", lambda r: f"{r[1]:.6g}"),
        )
        console.print(tables.draw(f"{len(found)} Parameters", one, list(found.items()), console.width))


def progress(run: Run) -> Callable[[int, Mapping[str, float]], None]:
    """A line on stderr now and then."""
    total, first = run.config.steps_total, run.start.step
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
    from specdiag.train.resume import perplexity

    console = output.console()
    rate = result.tokens / result.seconds if result.seconds else 0.0
    loss = "none logged" if result.train_loss is None else f"{result.train_loss:.4f}"
    console.print(
        f"Step {result.step}: {result.tokens} tokens in {result.seconds:.1f} s ({rate:.0f} a second); "
        f"train loss {loss}.",
        soft_wrap=True,
    )
    before, after = result.held_out_before, result.held_out_after
    now = "" if after is None else f", {after:.4f} (perplexity {perplexity(after):.2f}) now"
    console.print(
        f"Held out, mean over tokens: loss {before:.4f} (perplexity {perplexity(before):.2f}) before{now}.",
        soft_wrap=True,
    )
    if result.interrupted:
        output.talk(
            f"stopped at step {result.step}, saved: go on with 'specdiag train --resume {result.run}'", "yellow"
        )
    else:
        output.talk(f"run: {result.run}", "green")


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
