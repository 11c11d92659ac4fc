"""`specdiag train --resume`: a training run goes on, with a decay for each module."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from specdiag.errors import UsageError

from . import output

_ALPHADECAY = ("s1", "s2", "every", "mode", "basis")
_SETTINGS = {
    "lr": "learning_rate",
    "weight_decay": "weight_decay",
    "batch_size": "per_device_train_batch_size",
    "seed": "seed",
    "save_every": "save_steps",
    "log_every": "logging_steps",
    "keep": "save_total_limit",
}


@output.guarded
def train(
    ctx: typer.Context,
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[SOURCE]",
            help="Run, checkpoint-N of a Trainer, or folder of weights.",
            show_default="with --resume, the newest complete run in this directory",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where SOURCE stopped.")] = False,
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", metavar="PATH", help="Text, jsonl, parquet, a folder of them, or one .bin; repeatable."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder of the run.", show_default="NAME-continued here"),
    ] = None,
    decay: Annotated[
        str | None,
        typer.Option(
            "--decay",
            help="plan:FILE, alphadecay (follows the weights), uniform (the run's own) or none.",
            show_default="plan.json beside the checkpoint, else recommended now",
        ),
    ] = None,
    s1: Annotated[float | None, typer.Option("--s1", help="Ratio of the heaviest tail.", show_default="0.67")] = None,
    s2: Annotated[float | None, typer.Option("--s2", help="Ratio of the lightest tail.", show_default="3.0")] = None,
    every: Annotated[
        int | None, typer.Option("--every", min=1, help="alphadecay: steps between measurements.", show_default="500")
    ] = None,
    mode: Annotated[
        str | None, typer.Option("--mode", help="alphadecay: round-robin or sweep.", show_default="round-robin")
    ] = None,
    basis: Annotated[
        str | None, typer.Option("--basis", help="alpha, or square (shape-free).", show_default="alpha")
    ] = None,
    steps_total: Annotated[
        int | None, typer.Option("--steps-total", min=1, help="Steps of the whole run.", show_default="as planned")
    ] = None,
    extend: Annotated[int | None, typer.Option("--extend", min=1, help="Steps beyond those planned.")] = None,
    fresh_optimizer: Annotated[
        bool, typer.Option("--fresh-optimizer", help="Start from the weights alone, at step 0.")
    ] = False,
    lr: Annotated[float | None, typer.Option("--lr", min=0, help="With --fresh-optimizer.")] = None,
    weight_decay: Annotated[
        float | None, typer.Option("--weight-decay", min=0, help="With --fresh-optimizer: the base.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="Blocks a step.")] = None,
    block_size: Annotated[
        int | None, typer.Option("--block-size", min=2, help="Tokens a block.", show_default="of the model, to 1024")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="With --fresh-optimizer.")] = None,
    save_every: Annotated[int | None, typer.Option("--save-every", min=1, help="Steps between checkpoints.")] = None,
    log_every: Annotated[int | None, typer.Option("--log-every", min=1, help="Steps between logged losses.")] = None,
    keep: Annotated[
        int | None, typer.Option("--keep", min=1, help="Checkpoints to keep.", show_default="as the run did")
    ] = None,
    allow_data_shift: Annotated[
        bool, typer.Option("--allow-data-shift", help="Go on although data, batch size or processes changed.")
    ] = False,
    all_rows: Annotated[bool, typer.Option("--all", help="The decay of every Parameter.")] = False,
) -> None:
    """Go on with a training run, each attention and MLP matrix with its own weight decay.

    SOURCE is never written to, unless it is a run of ours, which goes on in its folder. Exit codes: 0 done, 2 usage,
    3 source, 4 a checkpoint could not be saved, 130 stopped by Ctrl-C with a checkpoint.
    """
    if not resume:
        raise UsageError("say 'specdiag train --resume': starting a run from nothing is not there yet")
    from specdiag.train.resume import Request, prepare
    from specdiag.train.start import newest_run

    from . import train_output as show

    show.quieten()
    if source is None:
        source = newest_run(Path())
        output.talk(f"taking the newest run here, {source}", "dim")
    given: dict[str, Any] = {name: ctx.params[name] for name in _ALPHADECAY if ctx.params[name] is not None}
    settings = {theirs: ctx.params[ours] for ours, theirs in _SETTINGS.items() if ctx.params[ours] is not None}
    run = prepare(
        Request(
            source=source, data=data or (), out=out, decay=decay, alphadecay=given, steps_total=steps_total,
            extend=extend, block_size=block_size, settings=settings, fresh_optimizer=fresh_optimizer,
            allow_data_shift=allow_data_shift,
        )
    )  # fmt: skip
    show.ready(run)
    result = run.train(lambda decays: show.decays(run, decays, all_rows=all_rows), show.progress(run))
    show.answer(result)
    if result.interrupted:
        raise typer.Exit(output.INTERRUPTED)
