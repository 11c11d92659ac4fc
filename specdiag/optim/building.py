"""Makers of the registry's optimizers: groups with and without decay, and the options that each class takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import nn, optim
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from specdiag.errors import UsageError
from specdiag.live.parameter_kinds import TrainedParameter, trained_parameters
from specdiag.live.parameters import ParamGroup
from specdiag.optim.method import Options
from specdiag.optim.optimizers.orthogonal import Method as Orthogonalization
from specdiag.optim.optimizers.scion import Scion
from specdiag.optim.optimizers.scion_presets import scion_groups
from specdiag.optim.rules.corrected_decay import CorrectedDecay

Build = Callable[[nn.Module, Options], list[Optimizer]]
"""(model, a value for every option of the method) -> the optimizers of a method."""


def _groups(model: nn.Module, weight_decay: float) -> list[ParamGroup]:
    """Split the trained parameters into those with decay and those without."""
    return _split(trained_parameters(model), weight_decay)


def _split(parameters: list[TrainedParameter], weight_decay: float) -> list[ParamGroup]:
    groups = [
        {"params": [each.parameter for each in parameters if each.decayed], "weight_decay": weight_decay},
        {"params": [each.parameter for each in parameters if not each.decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adam_like(kind: Callable[..., Optimizer]) -> Build:
    """Return a maker of optimizers of a class that takes AdamW's arguments.

    Args:
        kind: the class. Options other than weight_decay, beta1 and beta2 are passed on to it by name.
    """

    def build(model: nn.Module, options: Options) -> list[Optimizer]:
        groups = _groups(model, _number(options, "weight_decay"))
        rest = {key: value for key, value in options.items() if key not in ("weight_decay", "beta1", "beta2")}
        return [kind(groups, betas=_betas(options), **rest)]

    return build


def sgd_like(kind: Callable[..., Optimizer]) -> Build:
    """Return a maker of optimizers of a class that takes SGD's arguments.

    Args:
        kind: the class. Options other than weight_decay are passed on to it by name.
    """

    def build(model: nn.Module, options: Options) -> list[Optimizer]:
        rest = {key: value for key, value in options.items() if key != "weight_decay"}
        return [kind(_groups(model, _number(options, "weight_decay")), **rest)]

    return build


def corrected(build: Build) -> Build:
    """Return a maker of the same optimizers with CorrectedDecay attached.

    Args:
        build: maker of the optimizers, whose option `lr` is the peak of the schedule.
    """

    def build_corrected(model: nn.Module, options: Options) -> list[Optimizer]:
        optimizers = build(model, options)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["max_lr"] = options["lr"]  # saved with the optimizer: a resumed run keeps the peak of its schedule
        CorrectedDecay(optimizers, model)
        return optimizers

    return build_corrected


def scion(*, corrected: bool) -> Build:
    """Return a maker of Scion over the groups of a preset.

    Args:
        corrected: True for ScionC.
    """

    def build(model: nn.Module, options: Options) -> list[Optimizer]:
        groups = scion_groups(
            model,
            cast("str", options["preset"]),
            lr=cast("float | None", options["lr"]),
            momentum=cast("float | None", options["momentum"]),
            corrected=corrected,
            target_norm=cast("float | None", options["target_norm"]) if corrected else None,
        )
        return [
            Scion(
                groups,
                weight_decay=_number(options, "weight_decay"),
                orthogonalization=cast("Orthogonalization", options["orthogonalization"]),
                process_group=cast("ProcessGroup | None", options["process_group"]),
            )
        ]

    return build


def muon(model: nn.Module, options: Options) -> list[Optimizer]:
    """Make Muon for the hidden matrices, and AdamW for all other parameters.

    Args:
        model: after it was moved and wrapped.
        options: a value for every option of the method.

    Returns:
        Muon, and AdamW where there are other parameters.

    Raises:
        UsageError: this torch has no Muon, or the model no hidden matrix.
    """
    if not hasattr(optim, "Muon"):
        raise UsageError("this torch has no torch.optim.Muon: install torch 2.9 or newer")
    hidden: list[TrainedParameter] = []
    rest: list[TrainedParameter] = []
    for each in trained_parameters(model):
        (hidden if each.kind == "hidden" and each.parameter.ndim == 2 else rest).append(each)
    if not hidden:
        raise UsageError(f"this {type(model).__name__} has no hidden matrix for Muon: choose adamw")
    lr, weight_decay = _number(options, "lr"), _number(options, "weight_decay")
    muon = optim.Muon(
        [each.parameter for each in hidden],
        lr=lr,
        weight_decay=weight_decay,
        momentum=_number(options, "momentum"),
        adjust_lr_fn=cast("str", options["adjust_lr_fn"]),
    )
    others = [optim.AdamW(_split(rest, weight_decay), lr=lr, betas=_betas(options))] if rest else []
    return [muon, *others]


def _number(options: Options, name: str) -> float:
    return cast("float", options[name])


def _betas(options: Options) -> tuple[float, float]:
    return _number(options, "beta1"), _number(options, "beta2")
