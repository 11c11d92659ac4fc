"""`specdiag simulate`: the weight norms that an lr, a decay and an optimizer lead to."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from specdiag.errors import UsageError
from specdiag.text.counts import parse_count

from . import answer_output, options, output


class Format(StrEnum):
    """Formats of a prediction."""

    table = "table"
    json = "json"
    csv = "csv"


_OPTIMIZER, _WEIGHTS, _EXPERIMENT = "Optimizer", "Weights and gradients", "Experiment"
_NOT_OF_APPENDIX_A = (
    "optimizer", "momentum", "betas", "warmup", "final_lr", "corrected", "initial_norm", "gradient_rms", "batch_tokens",
)  # fmt: skip


@output.guarded
def simulate(
    ctx: typer.Context,
    optimizer: Annotated[
        list[str] | None,
        typer.Option(
            "--optimizer",
            help="adamw, adamc, adamw-renormalized, sgdm (torch's), sgdw, lion, muon, scion-l2, scion-sign, "
            "scion-spectral or random-walk; repeatable.",
            show_default="adamw",
            rich_help_panel=_OPTIMIZER,
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            "--lr", help="Peak learning rate; for Scion the layer's, lr x radius.", rich_help_panel=options.RUN
        ),
    ] = None,
    weight_decay: Annotated[
        list[float] | None,
        typer.Option(
            "--weight-decay",
            help="The optimizer's weight_decay at the peak lr (Scion: 1/radius); repeatable.",
            rich_help_panel=options.RUN,
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Optimizer steps of the run.", rich_help_panel=options.RUN)
    ] = None,
    lr_shape: Annotated[
        options.LrShape, typer.Option("--lr-shape", help="Course of the lr.", rich_help_panel=options.RUN)
    ] = options.LrShape.constant,
    warmup: Annotated[
        int, typer.Option("--warmup", min=0, help="Steps from 0 to the peak lr.", rich_help_panel=options.RUN)
    ] = 0,
    final_lr: Annotated[
        float, typer.Option("--final-lr", help="Last lr of linear and cosine.", rich_help_panel=options.RUN)
    ] = 0.0,
    corrected: Annotated[
        bool,
        typer.Option(
            "--corrected", help="Let the decay follow the lr, as AdamC and ScionC do.", rich_help_panel=_OPTIMIZER
        ),
    ] = False,
    momentum: Annotated[
        float | None,
        typer.Option(
            "--momentum",
            help="Share of the buffer that each step keeps; Scion's alpha is 1 - momentum.",
            show_default="0.9; muon 0.95",
            rich_help_panel=_OPTIMIZER,
        ),
    ] = None,
    betas: Annotated[
        tuple[float, float] | None,
        typer.Option(
            "--betas",
            help="Betas of adamw, adamc and lion.",
            show_default="0.9 0.999; lion 0.9 0.99",
            rich_help_panel=_OPTIMIZER,
        ),
    ] = None,
    shape: Annotated[
        str,
        typer.Option(
            "--shape",
            "--dim",
            metavar="ROWSxCOLS",
            help="Shape of the weights, or the length of a vector.",
            rich_help_panel=_WEIGHTS,
        ),
    ] = "1024x1024",
    initial_rms: Annotated[
        float | None,
        typer.Option(
            "--initial-rms",
            "--init-rms",
            help="RMS of the first weights.",
            show_default="0.02",
            rich_help_panel=_WEIGHTS,
        ),
    ] = None,
    initial_norm: Annotated[
        float | None,
        typer.Option("--initial-norm", help="Frobenius norm of the first weights instead.", rich_help_panel=_WEIGHTS),
    ] = None,
    gradient_rms: Annotated[
        float,
        typer.Option(
            "--gradient-rms",
            help="RMS of a gradient's coordinates; only SGD's norms depend on it.",
            rich_help_panel=_WEIGHTS,
        ),
    ] = 1.0,
    batch_tokens: Annotated[
        float | None,
        typer.Option(
            "--batch-tokens",
            parser=parse_count,
            metavar="N",
            help="Tokens of one step, as 512k: times in tokens too.",
            rich_help_panel=options.RUN,
        ),
    ] = None,
    stochastic: Annotated[
        bool,
        typer.Option("--stochastic", help="Run the optimizer itself on seeded noise too.", rich_help_panel=_EXPERIMENT),
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of --stochastic.", rich_help_panel=_EXPERIMENT)] = 0,
    appendix_a: Annotated[
        bool,
        typer.Option(
            "--appendix-a",
            help="The paper's experiment (reconstructed), uncorrected and corrected.",
            rich_help_panel=_EXPERIMENT,
        ),
    ] = False,
    check: Annotated[
        str | None,
        typer.Option(
            "--check",
            metavar="RUN",
            help="Compare with the norms of this run: those of NormWatch, or of 'specdiag trajectory' with --lr, "
            "--weight-decay and --steps.",
            rich_help_panel=_EXPERIMENT,
        ),
    ] = None,
    format: Annotated[
        Format, typer.Option("--format", "-f", help="Format of what is printed.", rich_help_panel=options.OUTPUT)
    ] = Format.table,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="File: a .png, .svg or .pdf figure, else JSON, or csv with -f csv.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
) -> None:
    """Predict weight norms: where they settle, when, and their course under any lr and decay schedule.

    Reads no checkpoint; gradients are assumed to be noise. Exit codes: 0 done, 2 usage, 3 RUN of --check.
    """
    from . import simulate_output as show

    several = check is None and (appendix_a or len(optimizer or "1") * len(weight_decay or "1") > 1)
    show.check_target(out, format.value, several=several)
    if check is not None:
        from . import simulate_check

        simulate_check.run(check, _told(ctx), format.value, out)
        return
    if options.is_given(ctx, "seed") and not stochastic:
        raise UsageError("--seed belongs to --stochastic: add it, or leave the seed out")
    common: dict[str, Any] = {"lr_shape": lr_shape.value, "shape": parse_shape(shape), "initial_rms": initial_rms}
    common |= {"stochastic": stochastic, "seed": seed}
    if appendix_a:
        found = _appendix_a(ctx, weight_decay or [], common, lr=lr, steps=steps)
    else:
        from specdiag.dynamics.simulate import simulate as run

        if lr is None or steps is None or not weight_decay:
            values = (("lr", lr), ("weight_decay", weight_decay), ("steps", steps))
            raise UsageError(f"a prediction needs {options.listed(n for n, v in values if not v and v != 0)} too")
        common |= {
            "lr": lr, "steps": steps, "warmup": warmup, "final_lr": final_lr, "corrected": corrected,
            "momentum": momentum, "betas": betas, "initial_norm": initial_norm, "gradient_rms": gradient_rms,
            "batch_tokens": batch_tokens,
        }  # fmt: skip
        found = [run(name, weight_decay=decay, **common) for name in optimizer or ["adamw"] for decay in weight_decay]
    show.answer(found, format.value, out)
    if format is Format.table:
        answer_output.show_next(
            {
                "specdiag simulate --check RUN": "the norms that a run logged beside the prediction",
                "specdiag explain steady_rms": "what a number means",
            }
        )


def _told(ctx: typer.Context) -> dict[str, Any]:
    """Options that were given on the command line, as the library names them."""
    return options.given(ctx, [name for name in ctx.params if name not in ("check", "format", "out")])


def parse_shape(text: str) -> tuple[int, ...]:
    """`768x3072`, or the length of a vector.

    Raises:
        UsageError: it is neither.
    """
    if re.fullmatch(r"[1-9]\d{0,8}([xX][1-9]\d{0,8})?", text.strip(), re.ASCII) is None:
        raise UsageError(f"--shape '{text}' is no shape: write 768x3072, or 4096 for a vector")
    return tuple(int(side) for side in text.lower().split("x"))


def _appendix_a(
    ctx: typer.Context, weight_decay: list[float], common: dict[str, Any], *, lr: float | None, steps: int | None
) -> list[Any]:
    from specdiag.dynamics.appendix_a import appendix_a

    if refused := options.listed(options.given(ctx, _NOT_OF_APPENDIX_A)):
        raise UsageError(f"--appendix-a is a random walk under two decays: leave out {refused}")
    if len(weight_decay) > 1:
        raise UsageError("--appendix-a takes one --weight-decay: it shows it uncorrected and corrected")
    given: dict[str, Any] = {
        name: value
        for name, value in common.items()
        if name not in ("lr_shape", "shape") or options.is_given(ctx, name)
    }
    chosen: dict[str, Any] = {"lr": lr, "steps": steps, "weight_decay": weight_decay[0] if weight_decay else None}
    return list(appendix_a(**given, **{name: value for name, value in chosen.items() if value is not None}))
