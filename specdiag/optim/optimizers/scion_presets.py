"""LMO and radius for each kind of parameter: the configurations that were published for Scion."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from specdiag.decay import schedules
from specdiag.live.parameter_kinds import ParameterKind, TrainedParameter, trained_parameters
from specdiag.live.parameters import ParamGroup
from specdiag.optim.optimizers.lmo import Lmo
from specdiag.text import checks


@dataclass(frozen=True, slots=True)
class Ball:
    """Norm ball of a layer.

    Attributes:
        lmo: the norm, as in `lmo.LMOS`.
        radius: in that norm.
    """

    lmo: Lmo
    radius: float


@dataclass(frozen=True, slots=True)
class Preset:
    """A configuration of Scion.

    Attributes:
        balls: the ball of each kind of parameter.
        corrected: kinds that ScionC corrects; the others keep the decay 1/radius.
        lr: fraction of the radius that a step goes at the peak of the schedule.
        momentum: 1 - alpha.
        source: the publication, and what this project added.
    """

    balls: Mapping[ParameterKind, Ball]
    corrected: frozenset[ParameterKind]
    lr: float
    momentum: float
    source: str


PRESETS: dict[str, Preset] = {
    "nanogpt": Preset(
        balls={
            "input": Ball("sign", 3000.0),
            "hidden": Ball("spectral", 50.0),
            "output": Ball("sign", 3000.0),
            "bias": Ball("bias-rms", 50.0),
        },
        corrected=frozenset({"hidden", "bias"}),
        lr=2**-12,
        momentum=0.9,
        source="LIONS-EPFL/scion, modded-nanogpt (tied head, 124M); its model has neither biases nor position tables: "
        "their balls are ours",
    ),
    "vit": Preset(
        balls={
            "input": Ball("spectral-max", 25.0),
            "hidden": Ball("spectral", 25.0),
            "output": Ball("sign", 500.0),
            "bias": Ball("bias-rms", 25.0),
        },
        corrected=frozenset({"input", "hidden", "bias"}),
        lr=8e-5,
        momentum=0.9,
        source="LIONS-EPFL/scion, DeiT-B at batch 512 (lr in proportion to it); balls of biases and tables: ours",
    ),
}


def scion_groups(
    model: nn.Module,
    preset: str = "nanogpt",
    *,
    lr: float | None = None,
    momentum: float | None = None,
    corrected: bool = False,
    target_norm: float | None = None,
    overrides: Mapping[str, ParameterKind] | None = None,
) -> list[ParamGroup]:
    """Make groups for `Scion`, each with the LMO and radius of its kind of parameter.

    Convolutions take the spectral LMO of their kernels, and position tables of more than two axes the RMS one. Stacked
    experts are matrices each, fused tensors one together.

    Args:
        model: the live model.
        preset: a name of `PRESETS`.
        lr: at the peak of its schedule; None for the preset's.
        momentum: weight of the former average; None for the preset's.
        corrected: True for ScionC, in the kinds that the preset corrects.
        target_norm: C^2 of ScionC; None takes for each layer the C^2 at which the decay is 1/radius at the peak.
        overrides: kinds by globs on names; see `trained_parameters`.

    Returns:
        The groups; `place` in each is the kind of its parameters.

    Raises:
        UsageError: the preset is unknown, an override matches nothing or names no kind, or nothing is trained.
    """
    checks.one_of("preset", preset, PRESETS)
    lr = None if lr is None else checks.number("lr", lr, above=0)
    momentum = None if momentum is None else checks.number("momentum", momentum, least=0, below=1)
    target_norm = None if target_norm is None else checks.number("target_norm", target_norm, above=0)
    corrected = checks.flag("corrected", corrected)
    if overrides is not None:
        checks.instance("overrides", overrides, Mapping, "of globs to places")
    configuration = PRESETS[preset]
    peak = configuration.lr if lr is None else lr
    kept = configuration.momentum if momentum is None else momentum
    members: dict[tuple[ParameterKind, Lmo, bool], list[nn.Parameter]] = defaultdict(list)
    for each in trained_parameters(model, overrides):
        lmo = _lmo(each, configuration)
        # A table of its own steps as it would tied to the head: per entry 1/width, not 1/vocabulary.
        members[each.kind, lmo, each.transpose and lmo not in ("sign", "bias-rms")].append(each.parameter)
    groups: list[ParamGroup] = []
    for (kind, lmo, transpose), parameters in members.items():
        radius = configuration.balls[kind].radius
        target = target_norm or schedules.target_norm(peak * radius, 1 / radius, 1 - kept)
        groups.append(
            {
                "params": parameters,
                "place": kind,  # a key of saved optimizers
                "lr": peak,
                "momentum": kept,
                "lmo": lmo,
                "radius": radius,
                "transpose": transpose,
                "target_norm": target if corrected and kind in configuration.corrected else None,
            }
        )
    return groups


def _lmo(each: TrainedParameter, preset: Preset) -> Lmo:
    if each.kind == "bias" or (each.kind == "input" and each.parameter.ndim > 2 and not each.kernel):
        return "bias-rms"
    return "spectral-conv" if each.kernel else preset.balls[each.kind].lmo
