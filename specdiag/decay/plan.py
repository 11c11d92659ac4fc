"""A weight-decay plan: one ratio and one decay for each Parameter, with what is needed to judge and apply it."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Literal

import msgspec

from specdiag.decay.assignment import Rule
from specdiag.decay.effect import Verdict
from specdiag.decay.schedule_record import DecaySchedule
from specdiag.errors import SourceError, UsageError
from specdiag.files import json_decoder, shortened
from specdiag.records import Family, Record, Role, Source
from specdiag.storage.kinds import PLAN, read_record
from specdiag.storage.result import Result
from specdiag.text import checks
from specdiag.text.counts import percent

if TYPE_CHECKING:
    import torch
    from torch import nn

    from specdiag.live.parameters import ParamGroup


MOSTLY_GEOMETRY = 0.5
"""From this share on, shapes explain most of the differences between modules."""
Basis = Literal["alpha", "square", "farms", "function", "frobenius_norm", "spectral_norm"]


class PlanEntry(Record, frozen=True, kw_only=True):
    """Ratio and decay of one Parameter. Its parts (fused, stacked) share one decay: their values are averaged first."""

    name: str
    role: Role | None = None
    """None where the parts have several roles."""
    family: Family
    layer: int | None = None
    component: str | None = None
    """`encoder`, `vision`, ...; None in a model of one piece."""
    n_parameters: int
    value: float | None = None
    """Value that the rule read, mean over the parts: alpha, square_alpha (or its balanced one) or a norm. None: no
    value, ratio 1."""
    part_values: dict[str, float | None] = msgspec.field(default_factory=dict[str, float | None])
    """By part; empty for a Parameter that is one matrix."""
    ratio: float
    """Multiple of the base weight decay."""
    weight_decay: float | None = None
    """ratio * base, None where no base is known."""
    random_ratio: float | None = None
    """Ratio that the same rule gives if every matrix is random, of the same shapes."""
    square_ratio: float | None = None
    """Ratio that the same rule gives by square_alpha, which takes the shape out (basis alpha only)."""
    rho_ratio: float | None = None
    """Ratio that the same rule gives by rho, the other way to take the shape out (basis square only)."""
    ratio_25: float | None = None
    """Ratio at the tail fraction 0.25 (basis alpha by Hill only)."""
    ratio_75: float | None = None
    note: str | None = None
    """Reason for ratio 1 where no value could be computed; None for other entries."""


COLUMNS: tuple[str, ...] = tuple(name for name in PlanEntry.__struct_fields__ if name != "part_values")
"""Columns of a row of a plan, the same in csv and data frames."""


class DecayPlan(Result, Record, frozen=True, kw_only=True):
    """Weight decay of each Parameter. Parameters outside `entries` keep their own decay.

    Example:
        >>> plan = specdiag.recommend(model, weight_decay=0.1)
        >>> optimizer = torch.optim.AdamW(plan.param_groups(model), lr=3e-4)
    """

    schema: int = PLAN.schema
    headline: str = ""
    """Advice for or against its use, in a sentence; empty for a plan that nobody judged."""
    source: Source
    report_digest: str
    """SHA-256 of the report (as it is saved) that the plan was made from."""
    rule: Rule
    basis: Basis
    tail: str
    s1: float
    s2: float
    clip: tuple[float, float] | None = None
    preserve_mean: bool = False
    compat: Literal["reference"] | None = None
    include: tuple[str, ...] = ()
    """Globs that chose the Parameters. All three empty: the projections of attention and MLP."""
    exclude: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    base_weight_decay: float | None = None
    base_origin: str | None = None
    """Origin of the base: an argument, a run's file, or Power Lines."""
    default_ratio: float = 1.0
    """Ratio of the Parameters that have no entry."""
    mean_ratio: float
    mean_ratio_weighted: float
    """Weighted by number of parameters."""
    shape_share: float | None = None
    """R^2 between these ratios and those of random weights of the same shapes; None where these have no ratios."""
    agreement: float | None = None
    """Correlation of square_alpha with rho over the entries. Both take the shape out, with something else held fixed: a
    plan that rests on one of them needs both. None where fewer than three entries have both."""
    tail_shift: float | None = None
    """Median over entries of how far the ratio moves between tail fractions 0.25 and 0.75."""
    schedule: DecaySchedule | None = None
    """Course of the decays with the lr; None for constant decays."""
    verdict: Verdict | None = None
    """Prediction of its effect in the steps left; the changes are in the order of the entries."""
    notes: tuple[str, ...] = ()
    entries: tuple[PlanEntry, ...]

    def __getitem__(self, name: str) -> PlanEntry:
        """Return the entry of the Parameter `name`; KeyError where there is none."""
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise KeyError(name)

    @property
    def ratios(self) -> dict[str, float]:
        """Ratio by Parameter name."""
        return {entry.name: entry.ratio for entry in self.entries}

    @property
    def explained_by_shape(self) -> bool:
        """True where random weights of the same shapes would get most of this plan: `shape_share` is half or more."""
        return self.shape_share is not None and self.shape_share >= MOSTLY_GEOMETRY

    @property
    def has_square_ratios(self) -> bool:
        """True where an entry has a ratio by square_alpha beside its own."""
        return any(entry.square_ratio is not None for entry in self.entries)

    def weight_decay(self, name: str, step: int = 0) -> float:
        """Return the optimizer's `weight_decay` argument for a Parameter of the plan.

        Args:
            name: of the Parameter.
            step: optimizer steps done, for a plan with a schedule.

        Raises:
            KeyError: the plan has no entry of this name.
            UsageError: the plan has no base decay.
        """
        base = self[name].weight_decay
        if base is None:
            raise UsageError("this plan has ratios and no base decay: make it with a weight decay")
        return base if self.schedule is None else self.schedule.weight_decay(step, base)

    def to_json(self) -> bytes:
        """Encode the plan as the content of its file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    def _title(self) -> str:
        ratios = self.ratios.values()
        shape = "" if self.shape_share is None else f", {percent(self.shape_share)} explained by shape"
        return (
            f"{self.source}: {len(self.entries)} Parameters, {self.rule} on {self.basis}, ratios "
            f"{min(ratios, default=1.0):.2f} to {max(ratios, default=1.0):.2f}, mean {self.mean_ratio:.2f}{shape}"
        )

    def _columns(self) -> tuple[str, ...]:
        return COLUMNS

    def _rows(self) -> tuple[PlanEntry, ...]:
        return self.entries

    def _overview(self) -> tuple[tuple[str, ...], list[list[object]]]:
        names = ("name", "role", "layer", "value", "ratio", "weight_decay", "random_ratio")
        return names, [[getattr(entry, name) for name in names] for entry in self.entries]

    def param_groups(
        self, model: nn.Module, *, lr: float | None = None, weight_decay: float | None = None
    ) -> list[ParamGroup]:
        """Groups for a new optimizer: one for each decay that occurs, and one without decay.

        Parameters outside the plan keep the base decay if they have two axes or more and are no embedding, and none
        otherwise (biases, norm gains, embeddings).

        Args:
            model: the model that will be trained; wrappers (DDP, torch.compile) are looked through.
            lr: learning rate of every group; None leaves it to the optimizer's own argument.
            weight_decay: base decay; None for that of the plan.

        Returns:
            torch's parameter groups, the largest decay first.

        Raises:
            UsageError: no base decay is known, or the plan does not fit the model; the difference is listed.
        """
        from specdiag.decay.plan_groups import param_groups

        return param_groups(self, model, lr=lr, weight_decay=weight_decay)

    def apply(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        """Apply the ratios to a live optimizer, whose groups, state, schedulers and checkpoints keep their layout.

        Inside `optimizer.step()` each Parameter of the plan decays by ratio * the decay of its group (a group without
        decay stays at 0). Outside, the groups read as before. Checkpoints do not hold the ratios: apply the plan again
        after a restart. A second plan replaces the first.

        Args:
            optimizer: built over `model`'s parameters.
            model: names the parameters.

        Raises:
            UsageError: the plan does not fit the model or the optimizer (the difference is listed), or the optimizer
                cannot take a changing decay: then build it on `param_groups`.
        """
        from specdiag.decay.plan_groups import apply

        apply(self, optimizer, model)


_decode_plan = json_decoder(DecayPlan)


def load_plan(path: str | os.PathLike[str]) -> DecayPlan:
    """Read a saved plan.

    Args:
        path: a file of `DecayPlan.save`.

    Raises:
        SourceError: the file is missing, is no plan, is of another schema, or contradicts itself.
    """
    path = checks.path("path", path)
    plan = read_record(path, _decode_plan, PLAN)
    if problem := _problem(plan):
        raise SourceError(f"{path} cannot be used ({shortened(problem)}); {PLAN.remedy}")
    return plan


def _problem(plan: DecayPlan) -> str | None:
    """Name the first contradiction in a plan, whose file may have been edited."""
    base = plan.base_weight_decay
    if plan.default_ratio < 0 or (base is not None and base < 0):
        return "a ratio or decay is below 0"
    seen: set[str] = set()
    for entry in plan.entries:
        if entry.name in seen:
            return f"'{entry.name}' is there twice"
        seen.add(entry.name)
        if entry.ratio < 0:
            return f"'{entry.name}' has the ratio {entry.ratio:g}"
        expected = None if base is None else entry.ratio * base
        if entry.weight_decay != expected and not _is_close(entry.weight_decay, expected):
            return f"'{entry.name}' has the decay {entry.weight_decay}, and its ratio times the base is {expected}"
    return None


def _is_close(value: float | None, expected: float | None) -> bool:
    return value is not None and expected is not None and math.isclose(value, expected, rel_tol=1e-6)
