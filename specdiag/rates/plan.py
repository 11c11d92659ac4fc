"""A plan of learning rates: one multiple of the base rate for each Parameter, with what is needed to judge it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import msgspec

from specdiag.errors import SourceError
from specdiag.files import json_decoder, shortened
from specdiag.records import Family, Record, Role, Source
from specdiag.storage.kinds import RATES, read_record
from specdiag.storage.result import Result
from specdiag.text import checks
from specdiag.text.counts import percent

if TYPE_CHECKING:
    import torch
    from torch import nn

    from specdiag.live.parameters import ParamGroup

Per = Literal["module", "layer"]
"""Unit that has one exponent: a Parameter, or all Parameters of a block with their mean."""
RateBasis = Literal["alpha", "square"]


class RateEntry(Record, frozen=True, kw_only=True):
    """Multiple of the base learning rate for one Parameter."""

    name: str
    role: Role | None = None
    """None where the parts have several roles."""
    family: Family
    layer: int | None = None
    component: str | None = None
    """`encoder`, `vision`, ...; None in a model of one piece."""
    n_parameters: int
    value: float | None = None
    """Its own alpha or square_alpha, mean over the parts; None for embedding and head, and where there is none."""
    ratio: float
    lr: float | None = None
    """ratio x base rate; None where no base is known."""
    random_ratio: float | None = None
    """Ratio that the same rule gives if every matrix is random, of the same shapes."""
    note: str | None = None
    """Reason for a ratio that does not come from the Parameter's own value."""


RATE_COLUMNS: tuple[str, ...] = RateEntry.__struct_fields__


class RatePlan(Result, Record, frozen=True, kw_only=True):
    """Learning rate of each Parameter. Parameters outside `entries` keep the base rate.

    Example:
        >>> plan = specdiag.recommend_rates(model, lr=3e-4, per="layer")
        >>> optimizer = torch.optim.AdamW(plan.param_groups(model, lr=3e-4), weight_decay=0.1)
    """

    schema: int = RATES.schema
    headline: str
    """Advice for or against its use, in a sentence."""
    source: Source
    report_digest: str
    """SHA-256 of the report (as it is saved) that the plan was made from."""
    per: Per
    basis: RateBasis
    s1: float
    s2: float
    preserve_mean: bool
    embeddings: bool
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    base_lr: float | None = None
    mean_ratio: float
    """Mean of the ratios, weighted by number of parameters."""
    shape_share: float | None = None
    """R^2 between the ratios of the measured Parameters and those of random weights of the same shapes."""
    notes: tuple[str, ...] = ()
    rate_entries: tuple[RateEntry, ...]

    @property
    def entries(self) -> tuple[RateEntry, ...]:
        """The Parameters that have a ratio, in stored order."""
        return self.rate_entries

    def __getitem__(self, name: str) -> RateEntry:
        """Return the entry of the Parameter `name`; KeyError where there is none."""
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise KeyError(name)

    @property
    def ratios(self) -> dict[str, float]:
        """Ratio by Parameter name."""
        return {entry.name: entry.ratio for entry in self.entries}

    def to_json(self) -> bytes:
        """Encode the plan as the content of its file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    def _title(self) -> str:
        ratios = self.ratios.values()
        shape = "" if self.shape_share is None else f", {percent(self.shape_share)} explained by shape"
        return (
            f"{self.source}: learning rates of {len(self.entries)} Parameters, per {self.per} on {self.basis}, ratios "
            f"{min(ratios, default=1.0):.2f} to {max(ratios, default=1.0):.2f}, mean {self.mean_ratio:.2f}{shape}"
        )

    def _columns(self) -> tuple[str, ...]:
        return RATE_COLUMNS

    def _rows(self) -> tuple[RateEntry, ...]:
        return self.entries

    def _overview(self) -> tuple[tuple[str, ...], list[list[object]]]:
        names = ("name", "role", "layer", "value", "ratio", "lr", "random_ratio")
        return names, [[getattr(entry, name) for name in names] for entry in self.entries]

    def param_groups(self, model: nn.Module, *, lr: float | None = None) -> list[ParamGroup]:
        """Make groups for a new optimizer, one for each learning rate that occurs. They have no decay of their own.

        Args:
            model: that will be trained; wrappers (DDP, torch.compile) are looked through.
            lr: base rate; None for that of the plan.

        Returns:
            torch's parameter groups, the largest rate first. Parameters outside the plan have the base rate.

        Raises:
            UsageError: no base rate is known, or the plan does not fit the model; the difference is listed.
        """
        from specdiag.rates.plan_rates import param_groups

        return param_groups(self, model, lr=lr)

    def apply(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        """Apply the ratios to a live optimizer, whose groups, state, schedulers and checkpoints keep their layout.

        Inside `optimizer.step()` each Parameter of the plan moves at ratio x the rate of its group, decoupled decay
        included. Checkpoints do not hold the ratios: apply the plan again after a restart.

        Args:
            optimizer: built over `model`'s parameters.
            model: names the parameters.

        Raises:
            UsageError: the plan does not fit the model or the optimizer (the difference is listed), or the optimizer's
                update is not proportional to its learning rate and its groups cannot be divided.
        """
        from specdiag.rates.plan_rates import apply

        apply(self, optimizer, model)


_decode = json_decoder(RatePlan)


def load_rates(path: str | os.PathLike[str]) -> RatePlan:
    """Read a saved plan of learning rates.

    Args:
        path: a file of `RatePlan.save`.

    Raises:
        SourceError: the file is missing, is no such plan, is of another schema, or contradicts itself.
    """
    path = checks.path("path", path)
    plan = read_record(path, _decode, RATES)
    names = [entry.name for entry in plan.entries]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    below = next((entry.name for entry in plan.entries if entry.ratio < 0), None)
    if twice is not None or below is not None:
        why = f"'{twice}' is there twice" if twice is not None else f"'{below}' has a ratio below 0"
        raise SourceError(f"{path} cannot be used ({shortened(why)}); {RATES.remedy}")
    return plan
