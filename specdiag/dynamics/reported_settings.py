"""Norms of a run's checkpoints as a log of norms, with lr, decay and optimizer as the user reports them."""

from __future__ import annotations

from typing import TypedDict, Unpack

from msgspec.structs import asdict

from specdiag.decay.schedule_record import LrShape
from specdiag.dynamics.norm_log import NormedModule, NormLog
from specdiag.dynamics.simulate import simulate
from specdiag.dynamics.updates import Optimizer
from specdiag.errors import UsageError
from specdiag.trajectories.metric_log import LogEntry, entry
from specdiag.trajectories.records import TrackedModule, Trajectory

_POINTS = 1000


class ScheduleArguments(TypedDict, total=False):
    """Optional arguments of `simulate` that describe a run."""

    lr_shape: LrShape
    warmup: int
    final_lr: float
    corrected: bool
    momentum: float | None
    betas: tuple[float, float] | None


def with_settings(
    trajectory: Trajectory,
    optimizer: str = "adamw",
    *,
    lr: float,
    weight_decay: float,
    steps: int,
    **options: Unpack[ScheduleArguments],
) -> NormLog:
    """Add the reported lr and decay of every step to a trajectory's norms, the same for all modules.

    Convolutions are left out: a trajectory does not say how many values they have.

    Args:
        trajectory: norms of a run's checkpoints.
        optimizer: as for `simulate`.
        lr: peak learning rate.
        weight_decay: the optimizer's argument at the peak.
        steps: of the whole run, the length of its schedule.
        options: lr_shape, warmup, final_lr, corrected, momentum, betas, as for `simulate`.

    Returns:
        The trajectory's norms, and lr and decay of up to 1001 evenly spaced steps.

    Raises:
        UsageError: a setting makes no sense, the trajectory goes on beyond the run, or the optimizer is SGD.
    """
    if optimizer in ("sgdm", "sgdw"):
        raise UsageError(f"{optimizer}'s norms follow its gradients, which checkpoints lack: log with NormWatch")
    last = trajectory.steps[-1].step
    if last > steps:
        raise UsageError(f"steps={steps} is less than the run's last checkpoint, step {last}")
    at = sorted({1, *(round(i * steps / _POINTS) for i in range(1, _POINTS + 1))})
    simulated = simulate(optimizer, lr=lr, weight_decay=weight_decay, steps=steps, at=[s for s in at if s], **options)
    modules = [m for m in trajectory.modules if m.role != "conv" and m.form == "stored"]
    rows: list[LogEntry] = [row for row in trajectory.rows if row.metric != "lr"]
    for m in modules:
        for point in simulated.course:
            rows.append(entry(point.step - 1, m.key, "lr", point.lr))
            rows.append(entry(point.step - 1, m.key, "weight_decay", point.weight_decay))
    setting = simulated.setting
    described = (_describe(m, setting.optimizer, setting.momentum, setting.betas) for m in modules)
    return NormLog(run=trajectory.run, every=0, modules=tuple(described), rows=tuple(rows))


def _describe(
    m: TrackedModule, optimizer: Optimizer, momentum: float | None, betas: tuple[float, float] | None
) -> NormedModule:
    return NormedModule(
        **asdict(m),
        n_values=m.rows * m.cols,
        decay="decoupled",
        optimizer="adamw" if optimizer == "adamc" else optimizer,
        momentum=momentum,
        betas=betas,
    )
