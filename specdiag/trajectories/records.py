"""Records of a trajectory: its steps, its matrices, and one row for each value."""

from __future__ import annotations

from statistics import median

import msgspec

from specdiag.records import FAMILIES, FUNCTION_ROLES, ROLES, AnyRole, Family, Form, Record, Source
from specdiag.storage.kinds import TRAJECTORY
from specdiag.storage.result import Result
from specdiag.text import checks
from specdiag.trajectories.metric_log import RUN, LogEntry

OUT_NAME = "specdiag_trajectory"
"""Name of the output folder in a run."""

TRACKED: tuple[str, ...] = (
    "alpha", "rho", "square_alpha", "square_rho", "pl_alpha", "frobenius_norm", "spectral_norm", "stable_rank",
    "effective_rank",
)  # fmt: skip
"""Metrics of a matrix that are followed over the steps."""

RUN_METRICS: tuple[str, ...] = ("loss", "eval_loss", "balance_sd", "balance_range")
"""Metrics of the whole network."""


class TrackedModule(Record, frozen=True, kw_only=True):
    """A matrix of the run."""

    key: str
    role: AnyRole
    family: Family
    layer: int | None = None
    component: str | None = None
    form: Form = "stored"
    rows: int
    cols: int


class StepResult(Record, frozen=True, kw_only=True):
    """A checkpoint that was analysed."""

    step: int
    source: Source
    report: str
    """File name of its report in the output folder."""
    n_matrices: int
    statuses: dict[str, int]
    loss: float | None = None
    """Training loss: the last one logged at or before the step."""
    loss_step: int | None = None
    """Step at which `loss` was logged."""
    eval_loss: float | None = None
    balance_sd: float | None = None
    balance_range: float | None = None
    resumed: bool = False
    """True if the report had been saved before."""


class DroppedStep(Record, frozen=True, kw_only=True):
    """A checkpoint that could not be analysed, because it is being written, incomplete or damaged."""

    step: int | None
    """None for a file that is written again and again, where its step cannot be read."""
    location: str
    reason: str

    def __str__(self) -> str:
        return self.location if self.step is None else f"step {self.step}"


class Trajectory(Result, Record, frozen=True, kw_only=True):
    """The result of `trajectory`.

    Example:
        >>> found = specdiag.trajectory("runs/mine")
        >>> [(step, round(value)) for step, value in found.series("square_alpha", "q")]
        [(1000, 2), (2000, 2)]
    """

    schema: int = TRAJECTORY.schema
    run: str
    """Run as it was given: a run directory, a glob, a hub repository."""
    out: str
    """The folder with the log and the reports."""
    steps: tuple[StepResult, ...]
    dropped: tuple[DroppedStep, ...] = ()
    modules: tuple[TrackedModule, ...] = ()
    rows: tuple[LogEntry, ...] = ()
    """Every value by step, then by module in stored order. Those of the whole network have the module ''."""
    notes: tuple[str, ...] = ()

    def series(
        self,
        metric: str,
        role: str | None = None,
        *,
        family: str | None = None,
        layer: int | None = None,
        module: str | None = None,
        form: Form | None = None,
    ) -> list[tuple[int, float]]:
        """Follow a metric over the steps, as the median over the chosen matrices.

        Args:
            metric: one of `TRACKED`, or of `RUN_METRICS` for the whole network.
            role: only matrices of this role.
            family: only of this family.
            layer: only of this layer.
            module: only this matrix, by its key.
            form: `stored` or `function`. None for that of the module, for the function where the role is one of its
                products (qk, ov, du), and for stored matrices elsewhere.

        Returns:
            (step, median), only for steps at which a chosen matrix has a value.
        """
        checks.text("metric", metric)
        layer = None if layer is None else checks.whole("layer", layer)
        own_form = form or ("function" if role in FUNCTION_ROLES else "stored")
        keys = {
            m.key
            for m in self.modules
            if (m.form == own_form or (form is None and module is not None))
            and (role is None or m.role == role)
            and (family is None or m.family == family)
            and (layer is None or m.layer == layer)
            and (module is None or m.key == module)
        }
        if metric in RUN_METRICS:
            keys = {RUN}
        values: dict[int, list[float]] = {}
        for row in self.rows:
            if row.metric == metric and row.module in keys and row.value is not None:
                values.setdefault(row.step, []).append(row.value)
        return [(step, median(group)) for step, group in values.items()]

    def roles(self, form: Form = "stored") -> list[tuple[Family, AnyRole]]:
        """List family and role of the matrices, each once, in the order of every table.

        Args:
            form: `stored` for stored matrices, `function` for those of the function.
        """
        order = (*FUNCTION_ROLES, *ROLES)
        roles: set[tuple[Family, AnyRole]] = {(m.family, m.role) for m in self.modules if m.form == form}
        return sorted(roles, key=lambda r: (FAMILIES.index(r[0]), order.index(r[1])))

    def to_json(self) -> bytes:
        """Encode the trajectory as one JSON object, the content of its file."""
        return msgspec.json.encode(self)

    def _title(self) -> str:
        steps = f"{len(self.steps)} steps"
        if self.steps:
            steps += f" from {self.steps[0].step} to {self.steps[-1].step}"
        dropped = f", {len(self.dropped)} dropped" if self.dropped else ""
        return f"{self.run}: {steps}{dropped}, {len(self.modules)} matrices"

    def _columns(self) -> tuple[str, ...]:
        return LogEntry.__struct_fields__

    def _rows(self) -> tuple[LogEntry, ...]:
        return self.rows

    def _overview(self) -> tuple[tuple[str, ...], list[list[object]]]:
        names = ("step", "n_matrices", "loss", "eval_loss", "balance_sd", "balance_range")
        return names, [[getattr(step, name) for name in names] for step in self.steps]
