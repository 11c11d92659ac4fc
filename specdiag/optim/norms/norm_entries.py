"""Entries of a norm watch's log: norms of the weights before a step, and the changes that the step made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from specdiag.dynamics.norm_log import NormedModule
from specdiag.live.matrices import LiveMatrix
from specdiag.live.parameters import ParamGroup
from specdiag.optim.decay_semantics import decay_semantics, removed
from specdiag.optim.norms.power_iteration import PowerIteration
from specdiag.optim.norms.step_parts import StepParts, inner_products, split_step, to_numbers
from specdiag.trajectories.metric_log import RUN, LogEntry, entry

_HIDDEN = ("attention", "mlp")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A Parameter and its settings, as they are before a step."""

    weights: torch.Tensor
    """Copy of the Parameter."""
    gradients: dict[str, torch.Tensor]
    """Norm of each matrix's gradient, by key; empty without a gradient."""
    lr: float
    weight_decay: float
    """The argument in force during the step, ratios and schedules included."""
    removed: float
    """Fraction of the weights that decay removes; 0 without a gradient, for then the optimizer skips the Parameter."""


def snapshot(
    optimizer: Optimizer,
    group: ParamGroup,
    weights: torch.Tensor,
    gradient: torch.Tensor | None,
    matrices: Sequence[LiveMatrix],
) -> Snapshot:
    """Read a Parameter's gradient, lr and decay before a step.

    Args:
        optimizer: within its step.
        group: with the Parameter, as the step will read it.
        weights: copy of the Parameter.
        gradient: of its shape; None without one.
        matrices: that are cut from it.
    """
    fraction, lr = 0.0 if gradient is None else removed(optimizer, group), float(group["lr"])
    lengths: dict[str, torch.Tensor] = {}
    if gradient is not None:
        dense = gradient.detach().to_dense() if gradient.is_sparse else gradient.detach()
        lengths = {m.key: _length(m.cut(dense)) for m in matrices}
    argument = fraction / lr if fraction and lr else float(group.get("weight_decay", 0.0))
    return Snapshot(weights, lengths, lr, argument, fraction)


def weight_rows(
    step: int, matrices: Sequence[LiveMatrix], weights: Mapping[nn.Parameter, torch.Tensor], powers: PowerIteration
) -> dict[str, list[LogEntry]]:
    """Measure weights that no step follows.

    Args:
        step: optimizer steps done.
        matrices: to measure.
        weights: whole Parameters.
        powers: of the spectral norms.

    Returns:
        The entries of each matrix, by key.
    """
    cuts = {m.key: m.cut(weights[m.parameter]) for m in matrices}
    spectral = powers.norms(cuts)
    squares = to_numbers([inner_products(cut, cut) for cut in cuts.values()])
    return {
        m.key: list(weight_entries(step, m, cuts[m.key], math.sqrt(square), spectral[m.key]))
        for m, (square, *_) in zip(matrices, squares, strict=True)
    }


def step_rows(
    step: int,
    own: Sequence[tuple[LiveMatrix, Snapshot]],
    products: Mapping[str, torch.Tensor],
    powers: PowerIteration,
) -> dict[str, list[LogEntry]]:
    """Measure weights and the step that followed.

    Args:
        step: optimizer steps done before that one.
        own: matrices, each with its Parameter before the step.
        products: `inner_products` of each matrix before and after the step, by key.
        powers: of the spectral norms.

    Returns:
        The entries of each matrix, by key.
    """
    lengths = {m.key: before.gradients[m.key].reshape(1) for m, before in own if m.key in before.gradients}
    gradients = dict(zip(lengths, to_numbers(list(lengths.values())), strict=True))
    totals = to_numbers([products[m.key] for m, _ in own])
    cuts = {m.key: m.cut(before.weights) for m, before in own}
    spectral = powers.norms(cuts)
    rows: dict[str, list[LogEntry]] = {}
    for (m, before), total in zip(own, totals, strict=True):
        parts = split_step(*total, removed=before.removed, rounding=torch.finfo(before.weights.dtype).eps)
        rows[m.key] = [
            *weight_entries(step, m, cuts[m.key], parts.norm, spectral[m.key]),
            *step_entries(step, m, parts, before, *gradients.get(m.key, [None])),
        ]
    return rows


def weight_entries(
    step: int, matrix: LiveMatrix, cut: torch.Tensor, norm: float, spectral_norm: float
) -> Iterator[LogEntry]:
    """Yield the norms of a matrix; for one that gives the logits also Scion's Sign norm, d_in max |W|.

    Args:
        step: optimizer steps done.
        matrix: whose norms are logged.
        cut: its values, shape [s, rows, cols].
        norm: Frobenius norm, of all slices together.
        spectral_norm: largest singular value of all slices.
    """
    yield entry(step, matrix.key, "frobenius_norm", norm)
    yield entry(step, matrix.key, "weight_rms", norm / math.sqrt(_count(matrix)))
    yield entry(step, matrix.key, "spectral_norm", spectral_norm)
    if matrix.slicer.shape[0] == 1 and spectral_norm > 0:
        yield entry(step, matrix.key, "stable_rank", (norm / spectral_norm) ** 2)
    if matrix.is_output:
        yield entry(step, matrix.key, "sign_norm", matrix.slicer.shape[2] * float(cut.abs().max()))


def step_entries(
    step: int, matrix: LiveMatrix, parts: StepParts, before: Snapshot, gradient: float | None
) -> Iterator[LogEntry]:
    """Yield the changes that a step made to a matrix.

    Args:
        step: optimizer steps done before this one.
        matrix: whose changes are logged.
        parts: of the step.
        before: the Parameter of the matrix before the step.
        gradient: norm of the matrix's gradient; None without a gradient.
    """
    moved = before.lr > 0 and parts.update_norm > 0
    values: dict[str, float | None] = {
        "gradient_norm": gradient,
        "lr": before.lr,
        "weight_decay": before.weight_decay,
        "decay_per_step": before.removed,
        "update_norm": parts.update_norm,
        "update_rms": parts.update_norm / before.lr / math.sqrt(_count(matrix)) if moved else None,
        "update_ratio": parts.update_norm / parts.norm if parts.norm else None,
        "angle": parts.angle,
        "cos_update": parts.cosine,
        "norm_change": parts.norm_change,
        "norm_change_decay": parts.decay,
        "norm_change_parallel": parts.parallel,
        "norm_change_perpendicular": parts.perpendicular,
    }
    return (entry(step, matrix.key, name, value) for name, value in values.items() if value is not None)


def layer_means(step: int, matrices: Sequence[LiveMatrix], rows: Sequence[LogEntry]) -> Iterator[LogEntry]:
    """Yield geometric means over attention and MLP: of |W|_F, and of sqrt(d_in/d_out) sigma_max, Scion's spectral norm.

    Args:
        step: optimizer steps done.
        matrices: that are watched.
        rows: entries of this step, with the norms of each matrix.
    """
    hidden = {m.key: m for m in matrices if m.module.family in _HIDDEN}
    for metric in ("frobenius_norm", "spectral_norm"):
        logs: list[float] = []
        for row in rows:
            if row.metric == metric and row.module in hidden and row.value:
                _, d_out, d_in = hidden[row.module].slicer.shape
                logs.append(math.log(row.value * (math.sqrt(d_in / d_out) if metric == "spectral_norm" else 1.0)))
        if logs:
            yield entry(step, RUN, f"{metric}_geomean", math.exp(sum(logs) / len(logs)))


def describe(matrix: LiveMatrix, optimizer: Optimizer, group: ParamGroup) -> NormedModule:
    """Describe a matrix and its optimizer, for the file next to the log.

    Args:
        matrix: that is watched.
        optimizer: of its Parameter.
        group: with the Parameter.
    """
    semantics = decay_semantics(optimizer, group, matrix.parameter.shape)
    _, rows, cols = matrix.slicer.shape
    return NormedModule(
        key=matrix.key, role=matrix.role, family=matrix.module.family, layer=matrix.module.layer,
        component=matrix.module.component,
        rows=rows, cols=cols, n_values=_count(matrix), decay=semantics.decay, optimizer=semantics.optimizer,
        momentum=semantics.momentum, betas=semantics.betas, lr_scale=semantics.lr_scale,
    )  # fmt: skip


def _count(matrix: LiveMatrix) -> int:
    return math.prod(matrix.slicer.shape)


def _length(cut: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(cut, dtype=torch.promote_types(cut.dtype, torch.float32))
