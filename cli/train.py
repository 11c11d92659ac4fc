"""`specdiag train`: a run goes on, or begins, with a weight decay for each module."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from specdiag.errors import UsageError

from . import output

_RULE = ("s1", "s2", "every", "mode", "basis", "slope", "measure_first")
_SETTINGS = {
    "lr": "learning_rate",
    "weight_decay": "weight_decay",
    "batch_size": "per_device_train_batch_size",
    "seed": "seed",
    "save_every": "save_steps",
    "log_every": "logging_steps",
    "keep": "save_total_limit",
    "report_to": "report_to",
}
_FIELDS = ("decay", "optimizer", "task", "columns", "tokenizer", "block_size", "max_tokens", "steps_total")


@output.guarded
def train(
    ctx: typer.Context,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[SOURCE]",
            help="With --resume: run, checkpoint-N of a Trainer, checkpoint of another program, or folder of weights. "
            "Without: CONFIG.toml, or a preset's name.",
            show_default="with --resume, the newest complete run in this directory",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where SOURCE stopped.")] = False,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", metavar="PATH", help="Text, jsonl, parquet, a folder of them, one .bin, or a hub id; repeatable."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder of the run.", show_default="NAME-continued, or NAME"),
    ] = None,
    decay: Annotated[
        str | None,
        typer.Option(
            "--decay",
            help="plan:FILE, alphadecay (follows the weights), awd, adadecay, module-adadecay, uniform (the run's own) "
            "or none.",
            show_default="plan.json beside the checkpoint, else recommended now",
        ),
    ] = None,
    s1: Annotated[float | None, typer.Option("--s1", help="Ratio of the heaviest tail.", show_default="0.67")] = None,
    s2: Annotated[float | None, typer.Option("--s2", help="Ratio of the lightest tail.", show_default="3.0")] = None,
    every: Annotated[
        int | None, typer.Option("--every", min=1, help="alphadecay: steps between measurements.", show_default="500")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option("--mode", help="round-robin, sweep or background.", show_default="round-robin"),
    ] = None,
    basis: Annotated[
        str | None, typer.Option("--basis", help="alpha, or square (shape-free).", show_default="alpha")
    ] = None,
    measure_first: Annotated[
        bool | None,
        typer.Option(
            "--measure-first/--no-measure-first",
            help="alphadecay: measure before the first step, or keep ratio 1 until every module has been measured.",
            show_default="measure first where the weights are trained",
        ),
    ] = None,
    slope: Annotated[
        float | None, typer.Option("--slope", min=0, help="adadecay: slope of its sigmoid.", show_default="4.0")
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option("--optimizer", help="A name of docs/optimizers.md, for a run that begins.", show_default="adamw"),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task", help="causal-lm, masked-lm, glue/NAME, classification, images.", show_default="by the model"
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--columns", metavar="NAME", help="Of labelled texts: one or two texts, then the label; repeatable."
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer", help="Folder, tokenizer.json, hub id or bytes.", show_default="the one beside the weights"
        ),
    ] = None,
    steps_total: Annotated[
        int | None, typer.Option("--steps-total", min=1, help="Steps of the whole run.", show_default="as planned")
    ] = None,
    extend: Annotated[int | None, typer.Option("--extend", min=1, help="Steps beyond those planned.")] = None,
    fresh_optimizer: Annotated[
        bool, typer.Option("--fresh-optimizer", help="Start from the weights alone, at step 0.")
    ] = False,
    lr: Annotated[float | None, typer.Option("--lr", min=0, help="Peak, of a run that begins.")] = None,
    weight_decay: Annotated[
        float | None, typer.Option("--weight-decay", min=0, help="The base, of a run that begins.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="Blocks a step and process.")] = None,
    block_size: Annotated[
        int | None, typer.Option("--block-size", min=2, help="Tokens a block.", show_default="of the model, to 1024")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Tokens to take of the data.", show_default="all")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of a run that begins.")] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="An argument of the Trainer (bf16=true), or model.NAME, optimizer_options.NAME of a run that begins; "
            "repeatable.",
        ),
    ] = None,
    save_every: Annotated[int | None, typer.Option("--save-every", min=1, help="Steps between checkpoints.")] = None,
    log_every: Annotated[int | None, typer.Option("--log-every", min=1, help="Steps between logged losses.")] = None,
    keep: Annotated[
        int | None, typer.Option("--keep", min=1, help="Checkpoints to keep.", show_default="as the run did")
    ] = None,
    report_to: Annotated[
        str | None, typer.Option("--report-to", help="tensorboard, trackio, wandb.", show_default="none")
    ] = None,
    compare: Annotated[
        str | None, typer.Option("--compare", metavar="RULE", help="Also train with this decay, from the same start.")
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            "--sweep", metavar="GRID", help="Runs over 'decay=uniform,alphadecay weight_decay=0.1,0.01 seed=0,1'."
        ),
    ] = None,
    sample: Annotated[
        str | None, typer.Option("--sample", metavar="TEXT", help="Continue this text at the end.")
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option("--optimizer-layout", help="Of another program's optimizer: flat, trainer, nanogpt, alphadecay."),
    ] = None,
    model_config: Annotated[
        str | None, typer.Option("--config", help="config.json, folder or hub id, where the checkpoint has none.")
    ] = None,
    allow_data_shift: Annotated[
        bool, typer.Option("--allow-data-shift", help="Go on although data, batch size or processes changed.")
    ] = False,
    stop_on_nan: Annotated[
        bool,
        typer.Option(
            "--stop-on-nan/--no-stop-on-nan", help="End at the last good checkpoint if the loss is not finite."
        ),
    ] = True,
    all_rows: Annotated[bool, typer.Option("--all", help="The decay of every Parameter.")] = False,
) -> None:
    """Train with a weight decay for each attention and MLP matrix: go on with a run, or begin one.

    A source is never written to, unless it is a run of ours, which goes on in its folder. Exit codes: 0 done, 2 usage,
    3 source, 4 the loss is not finite or a checkpoint could not be saved, 130 stopped by Ctrl-C with a checkpoint.
    """
    from . import train_output as show
    from . import train_runs as runs

    show.quieten()
    from specdiag.train.runs.changes import parse_assignments

    given = {name: ctx.params[name] for name in _RULE if ctx.params[name] is not None}
    settings = {theirs: ctx.params[ours] for ours, theirs in _SETTINGS.items() if ctx.params[ours] is not None}
    fields = {name: ctx.params[name] for name in _FIELDS if ctx.params[name] is not None}
    assignments = parse_assignments(assign or [])
    after = runs.After(sample=sample, all_rows=all_rows, stop_on_nan=stop_on_nan)
    if resume:
        wrong = [name for name in ("optimizer",) if name in fields]
        if wrong or sweep is not None:
            name = "sweep" if sweep is not None else wrong[0].replace("_", "-")
            raise UsageError(f"--{name} is for a run that begins: name a CONFIG.toml or a preset without --resume")
        runs.go_on(
            source, compare=compare, after=after, layout=layout, config=model_config,
            data=tuple(data or ()), out=out, decay=decay, alphadecay=given, steps_total=steps_total, extend=extend,
            block_size=block_size, max_tokens=max_tokens, task=task, columns=tuple(columns or ()),
            tokenizer=tokenizer, settings=settings | assignments, fresh_optimizer=fresh_optimizer,
            allow_data_shift=allow_data_shift,
        )  # fmt: skip
        return
    for name in ("extend", "layout", "model_config"):
        if ctx.params[name] is not None:
            option = {"layout": "optimizer-layout", "model_config": "config"}.get(name, name)
            raise UsageError(f"--{option} is for a run that goes on: say --resume")
    changes: dict[str, Any] = fields | settings | {f"alphadecay.{name}": value for name, value in given.items()}
    if data:
        changes["data"] = [str(Path(path).resolve()) if Path(path).exists() else path for path in data]
    runs.start(source, changes | assignments, out=out, compare=compare, sweep=sweep, after=after)
