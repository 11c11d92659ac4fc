"""`specdiag train`: begins or continues a run with a weight decay for each module."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from specdiag.errors import UsageError

from . import output
from .options import OUTPUT, SOURCE

_DECAY, _RUN = "Decay", "Run"
_RULE = ("s1", "s2", "every", "mode", "basis", "slope", "measure_first")
_SETTINGS = {"lr": "learning_rate", "weight_decay": "weight_decay"}
_FIELDS = ("decay", "optimizer", "task", "columns", "tokenizer", "block_size", "max_tokens", "steps_total",
           "eval_every")  # fmt: skip


@output.guarded
def train(
    ctx: typer.Context,
    source: Annotated[str | None, typer.Argument(
        metavar="SOURCE",
        help="To begin a run: CONFIG.toml or the name of a preset. With --resume: a run, a checkpoint or a folder of "
        "weights.",
        show_default="with --resume, the newest complete run in this directory")] = None,
    resume: Annotated[bool, typer.Option(
        "--resume", help="Continue the run or checkpoint SOURCE.", rich_help_panel=SOURCE)] = False,
    data: Annotated[list[str] | None, typer.Option(
        "--data", metavar="PATH", rich_help_panel=SOURCE,
        help="Training data: text, jsonl, parquet, a folder of them, a .bin file, or a hub id; repeatable.")] = None,
    eval_data: Annotated[list[str] | None, typer.Option(
        "--eval-data", metavar="PATH", rich_help_panel=SOURCE,
        help="Held-out data of the same kind; repeatable.",
        show_default="blocks of the training data")] = None,
    task: Annotated[str | None, typer.Option(
        "--task", help="causal-lm, masked-lm, glue/NAME, classification or images.", rich_help_panel=SOURCE,
        show_default="by the model")] = None,
    columns: Annotated[list[str] | None, typer.Option(
        "--columns", metavar="NAME", rich_help_panel=SOURCE,
        help="Columns of a classification data set: one or two with text, then the label; repeatable.")] = None,
    tokenizer: Annotated[str | None, typer.Option(
        "--tokenizer", help="Folder, tokenizer.json, hub id, or bytes.", rich_help_panel=SOURCE,
        show_default="the one next to the weights")] = None,
    block_size: Annotated[int | None, typer.Option(
        "--block-size", min=2, help="Tokens per block.", rich_help_panel=SOURCE,
        show_default="the model's, at most 1024")] = None,
    max_tokens: Annotated[int | None, typer.Option(
        "--max-tokens", min=1, help="Use only the first tokens of the data.", rich_help_panel=SOURCE,
        show_default="all")] = None,
    model_config: Annotated[str | None, typer.Option(
        "--config", help="config.json, folder or hub id of the model, for a checkpoint without one.",
        rich_help_panel=SOURCE)] = None,
    layout: Annotated[str | None, typer.Option(
        "--optimizer-layout", rich_help_panel=SOURCE,
        help="Parameter order of another program's optimizer: flat, trainer, nanogpt or alphadecay.")] = None,
    fresh_optimizer: Annotated[bool, typer.Option(
        "--fresh-optimizer", help="Take only the weights and start at step 0.", rich_help_panel=SOURCE)] = False,
    allow_data_shift: Annotated[bool, typer.Option(
        "--allow-data-shift", help="Continue even if data, batch size or number of processes changed.",
        rich_help_panel=SOURCE)] = False,
    decay: Annotated[str | None, typer.Option(
        "--decay", rich_help_panel=_DECAY,
        help="plan:FILE, alphadecay (follows the spectra), alphalr (learning rates that follow them; untested), awd, "
        "adadecay, module-adadecay, uniform or none.",
        show_default="plan.json next to the checkpoint, else a new plan")] = None,
    s1: Annotated[float | None, typer.Option(
        "--s1", help="Ratio of the module with the heaviest tail.", rich_help_panel=_DECAY,
        show_default="0.67; alphalr: 1")] = None,
    s2: Annotated[float | None, typer.Option(
        "--s2", help="Ratio of the module with the lightest tail.", rich_help_panel=_DECAY,
        show_default="3.0; alphalr: 5")] = None,
    basis: Annotated[str | None, typer.Option(
        "--basis", help="alpha, or square (independent of the shape).", rich_help_panel=_DECAY,
        show_default="alpha")] = None,
    every: Annotated[int | None, typer.Option(
        "--every", min=1, help="alphadecay, alphalr: steps between measurements.", rich_help_panel=_DECAY,
        show_default="500; alphalr: 100")] = None,
    mode: Annotated[str | None, typer.Option(
        "--mode", help="alphadecay, alphalr: round-robin, sweep or background.", rich_help_panel=_DECAY,
        show_default="round-robin; alphalr: sweep")] = None,
    measure_first: Annotated[bool | None, typer.Option(
        "--measure-first/--no-measure-first", rich_help_panel=_DECAY,
        help="alphadecay, alphalr: measure before the first step, or keep ratio 1 until every module was measured.",
        show_default="measure first if the weights are trained; alphalr: always")] = None,
    slope: Annotated[float | None, typer.Option(
        "--slope", min=0, help="adadecay: slope of its sigmoid.", rich_help_panel=_DECAY,
        show_default="4.0")] = None,
    weight_decay: Annotated[float | None, typer.Option(
        "--weight-decay", min=0, help="Base weight decay of a new run.", rich_help_panel=_DECAY)] = None,
    compare: Annotated[str | None, typer.Option(
        "--compare", metavar="RULE", help="Train a second run with this decay from the same start.",
        rich_help_panel=_DECAY)] = None,
    optimizer: Annotated[str | None, typer.Option(
        "--optimizer", help="Optimizer of a new run; docs/optimizers.md lists them.", rich_help_panel=_RUN,
        show_default="adamw")] = None,
    lr: Annotated[float | None, typer.Option(
        "--lr", min=0, help="Peak learning rate of a new run.", rich_help_panel=_RUN)] = None,
    steps_total: Annotated[int | None, typer.Option(
        "--steps-total", min=1, help="Length of the whole run in steps.", rich_help_panel=_RUN,
        show_default="as planned")] = None,
    extend: Annotated[int | None, typer.Option(
        "--extend", min=1, help="Add this many steps to the planned ones.", rich_help_panel=_RUN)] = None,
    eval_every: Annotated[int | None, typer.Option(
        "--eval-every", min=0, help="Steps between evaluations.", rich_help_panel=_RUN,
        show_default="before the first step and after the last")] = None,
    assign: Annotated[list[str] | None, typer.Option(
        "--set", metavar="NAME=VALUE", rich_help_panel=_RUN,
        help="Set a field of TrainingArguments (seed=1, save_steps=100, bf16=true). New runs also take "
        "model.NAME and optimizer_options.NAME. Repeatable.")] = None,
    stop_on_nan: Annotated[bool, typer.Option(
        "--stop-on-nan/--no-stop-on-nan", help="Stop at the last good checkpoint if the loss is not finite.",
        rich_help_panel=_RUN)] = True,
    sweep: Annotated[str | None, typer.Option(
        "--sweep", metavar="GRID", rich_help_panel=_RUN,
        help="Train one run per combination, such as 'weight_decay=0.1,0.01 seed=0,1'.",
        )] = None,
    out: Annotated[Path | None, typer.Option(
        "--out", "-o", metavar="DIR", help="Folder of the run.", rich_help_panel=OUTPUT,
        show_default="NAME, or NAME-continued with --resume")] = None,
    dry_run: Annotated[bool, typer.Option(
        "--dry-run", help="Check everything and try one step; write nothing.", rich_help_panel=OUTPUT)] = False,
    sample: Annotated[str | None, typer.Option(
        "--sample", metavar="TEXT", help="Let the trained model continue this text.", rich_help_panel=OUTPUT)] = None,
    all_rows: Annotated[bool, typer.Option(
        "--all", help="Print the decay of every Parameter.", rich_help_panel=OUTPUT)] = False,
) -> None:  # fmt: skip
    """Train with a weight decay for each attention and MLP matrix. Begin a run, or continue one with --resume.

    A run of specdiag continues in its own folder; other sources are never written to. Exit codes: 0 done, 2 usage,
    3 source, 4 the loss is not finite or a checkpoint could not be saved, 130 stopped by Ctrl-C with a checkpoint.
    """
    from . import train_output as show
    from . import train_runs as runs

    show.quieten()
    from specdiag.train.runs.changes import parse_assignments
    from specdiag.train.runs.request import Request

    rule_options = {name: ctx.params[name] for name in _RULE if ctx.params[name] is not None}
    settings = {theirs: ctx.params[ours] for ours, theirs in _SETTINGS.items() if ctx.params[ours] is not None}
    fields = {name: ctx.params[name] for name in _FIELDS if ctx.params[name] is not None}
    assignments = parse_assignments(assign or [])
    after = runs.After(sample=sample, all_rows=all_rows, stop_on_nan=stop_on_nan, dry_run=dry_run)
    if resume:
        wrong = [name for name in ("optimizer",) if name in fields]
        if wrong or sweep is not None:
            name = "sweep" if sweep is not None else wrong[0].replace("_", "-")
            raise UsageError(f"--{name} is for a run that begins: name a CONFIG.toml or a preset without --resume")
        request = Request(
            source=Path(), layout=layout, config=model_config, data=tuple(data or ()),
            eval_data=tuple(eval_data or ()), out=out, decay=decay,
            alphadecay=rule_options, steps_total=steps_total, extend=extend,
            block_size=block_size, max_tokens=max_tokens, task=task, columns=tuple(columns or ()),
            tokenizer=tokenizer, settings=settings | assignments, fresh_optimizer=fresh_optimizer,
            allow_data_shift=allow_data_shift, eval_every=eval_every,
        )  # fmt: skip
        runs.go_on(source, request, compare=compare, after=after)
        return
    for name in ("extend", "layout", "model_config"):
        if ctx.params[name] is not None:
            option = {"layout": "optimizer-layout", "model_config": "config"}.get(name, name)
            raise UsageError(f"--{option} is for a run that goes on: say --resume")
    changes: dict[str, object] = (
        fields | settings | {f"alphadecay.{name}": value for name, value in rule_options.items()}
    )
    if data:
        changes["data"] = _absolute(data)
    if eval_data:
        changes["eval_data"] = _absolute(eval_data)
    runs.start(source, changes | assignments, out=out, compare=compare, sweep=sweep, after=after)


def _absolute(paths: list[str]) -> list[str]:
    """Paths that do not depend on the working directory; names of datasets on the hub stay."""
    return [str(Path(path).resolve()) if Path(path).exists() else path for path in paths]
