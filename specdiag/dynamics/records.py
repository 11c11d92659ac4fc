"""Record of a predicted weight norm: its settings, the course of the norm, the balance, and the assumptions."""

from __future__ import annotations

import os

import msgspec

from specdiag.decay.schedule_record import LrShape
from specdiag.dynamics.updates import Optimizer
from specdiag.files import json_decoder
from specdiag.records import Record
from specdiag.storage.kinds import SIMULATION, read_record
from specdiag.storage.result import Result, cell
from specdiag.text import checks
from specdiag.trajectories.metric_log import LogEntry, entry

_SHOWN = 10
"""Number of intervals between the points of the course that a notebook shows."""


class Setting(Record, frozen=True, kw_only=True):
    """Settings of a simulated run."""

    optimizer: Optimizer
    lr: float
    """Peak learning rate. For Scion that of the layer: its lr times the radius."""
    weight_decay: float
    """The optimizer's argument at the peak lr. For Scion that of the layer: one over the radius."""
    steps: int
    lr_shape: LrShape = "constant"
    warmup: int = 0
    final_lr: float = 0.0
    corrected: bool = False
    """True where the argument follows the lr, as in AdamC and ScionC: weight_decay x lr_t/lr."""
    momentum: float | None = None
    """Share of the buffer that a step keeps; Scion's alpha is 1 - momentum."""
    betas: tuple[float, float] | None = None
    shape: tuple[int, ...]
    initial_rms: float
    gradient_rms: float = 1.0
    batch_tokens: float | None = None


class Balance(Record, frozen=True, kw_only=True):
    """Quantities at the peak lr once the norm stands still. None where nothing decays."""

    rms: float | None
    """Root mean square of a weight."""
    frobenius_norm: float | None
    effective_decay: float
    """eta: fraction of the weights that a step removes."""
    inflation: float
    """R: growth of the squared norm by momentum, at this eta."""
    inflation_limit: float
    """R as eta goes to 0, the factor that papers give."""
    update_rms: float
    """Root mean square of the update u in a coordinate; a step is lr x u."""
    tuc: float
    """Total update contribution: distance that one gradient moves the tensor, over all steps, without decay."""
    rotation: float | None
    """Angle in radians by which one step turns the weights."""
    rotation_kosson: float | None
    """The same by Kosson et al.'s formula, where they give one."""
    rotation_tuc: float
    """Total contribution of one gradient over the norm, sqrt(2 eta)."""
    norm_time: float | None
    """1/(2 eta): steps over which a deviation of the squared norm falls to 1/e."""
    timescale: float | None
    """1/eta: steps over which weights forget, the effective timescale."""
    timescale_tokens: float | None
    steps_to_steady: int | None
    """Steps at the peak lr until the norm is within 1 % of its balance."""


class Point(Record, frozen=True, kw_only=True):
    """A step of the course."""

    step: int
    """Updates done; 0 is the start."""
    lr: float
    weight_decay: float
    rms: float
    """Root mean square of a weight, in expectation."""
    frobenius_norm: float
    steady_rms: float | None
    """The balance that belongs to this step's lr and decay; far from `rms` where the lr moves faster than 1/(2 eta)."""
    simulated_rms: float | None = None
    """Root mean square of a weight, where the optimizer itself was run on noise."""


class Simulation(Result, Record, frozen=True, kw_only=True):
    """A setting, and the course of the norm under it.

    Example:
        >>> prediction = specdiag.simulate("adamw", lr=1e-3, weight_decay=0.1, steps=20_000, lr_shape="cosine")
        >>> round(prediction.balance.rms, 4), round(prediction.course[-1].rms, 4)
        (0.0707, 0.0519)
    """

    schema: int = SIMULATION.schema
    setting: Setting
    balance: Balance
    course: tuple[Point, ...]
    simulated_shape: tuple[int, ...] | None = None
    """Shape of the tensor that the optimizer was run on; None without a stochastic simulation."""
    seed: int | None = None
    assumptions: tuple[str, ...]

    def at(self, step: int) -> Point:
        """Return the point of a noted step.

        Args:
            step: updates done; 0 is the start.

        Raises:
            KeyError: the step was not noted.
        """
        for point in self.course:
            if point.step == step:
                return point
        raise KeyError(step)

    def log_entries(self, module: str) -> list[LogEntry]:
        """Return the course as entries of a log, for `compare_norms`.

        Args:
            module: key of the module that the norms are compared with.

        Returns:
            One `frobenius_norm` for each noted step.
        """
        return [entry(point.step, module, "frobenius_norm", point.frobenius_norm) for point in self.course]

    def to_json(self) -> bytes:
        """Encode the prediction as one JSON object, the content of its file."""
        return msgspec.json.encode(self)

    def _title(self) -> str:
        setting, end = self.setting, self.course[-1] if self.course else None
        return (
            f"{setting.optimizer}, lr {setting.lr:g}, weight decay {setting.weight_decay:g}, {setting.steps} steps: "
            f"rms {setting.initial_rms:.4g} → {cell(end and end.rms)}, balance {cell(self.balance.rms) or 'none'}"
        )

    def _columns(self) -> tuple[str, ...]:
        return Point.__struct_fields__

    def _rows(self) -> tuple[Point, ...]:
        return self.course

    def _overview(self) -> tuple[tuple[str, ...], list[list[object]]]:
        names, last = self._columns(), len(self.course) - 1
        shown = sorted({round(i * last / _SHOWN) for i in range(_SHOWN + 1)}) if last >= 0 else []
        return names, [[getattr(self.course[i], name) for name in names] for i in shown]


def load_simulation(path: str | os.PathLike[str]) -> Simulation:
    """Read a saved prediction.

    Args:
        path: a file of `Simulation.save`.

    Returns:
        The prediction.

    Raises:
        SourceError: the file is missing, is no prediction, or is of another schema.
    """
    return read_record(checks.path("path", path), _decode, SIMULATION)


_decode = json_decoder(Simulation)
