"""Arms of benchmarks/study.py as rules on a live optimizer."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from statistics import fmean
from typing import Protocol

from study_design import REMEASURED, S1, S2
from torch import nn
from torch.optim import Optimizer

from specdiag.decay.assignment import linear
from specdiag.files import Table
from specdiag.optim import AlphaDecay, AlphaLR, CorrectedDecay, GradientRatioDecay, WeightwiseDecay
from specdiag.spectra.live_alpha import Basis, null_of


class Stepped(Protocol):
    """Protocol of rules whose `step` is called before each step of the optimizer."""

    def step(self, global_step: int) -> None:
        """Update the ratios; called before each step of the optimizer."""

    def state_dict(self) -> Table:
        """Return what a resumed run needs."""
        ...

    def load_state_dict(self, state: Table, /) -> None:
        """Continue from a saved state."""


class VariedDecay(AlphaDecay):
    """AlphaDecay with one part of its rule exchanged: the exponents, their direction, or the mean of the ratios."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        steps: int,
        *,
        values: str = "measured",
        reverse: bool = False,
        preserve: bool = True,
        basis: Basis = "alpha",
    ) -> None:
        """Attach to a live optimizer.

        Args:
            model: names the parameters.
            optimizer: its decay is the base.
            steps: of the run.
            values: `measured`, `layer` (mean of a block), `null` (random matrices of the same shapes) or `role:NAME`
                (ratio 3 for this role, 1 for others).
            reverse: the smallest exponent gets the largest ratio.
            preserve: divide the ratios by their mean, weighted by the size of the matrices: the total decay is that of
                the uniform run.
            basis: exponent that is measured.
        """
        self._values, self._reverse, self._preserve = values, reverse, preserve
        every = max(1, steps // REMEASURED)
        super().__init__(
            model, optimizer, s1=S1, s2=S2, every=every, mode="sweep", basis=basis, measure_first=True
        )  # fmt: skip

    def _targets(self, values: Sequence[float | None], blocks: Sequence[Hashable]) -> dict[str, float]:
        ratios = self._ratios_of(values, blocks)
        if self._preserve:
            sizes = [parameter.numel() for parameter in self._parameters.values()]
            mean = sum(r * n for r, n in zip(ratios, sizes, strict=True)) / sum(sizes)
            ratios = [ratio / mean for ratio in ratios]
        return dict(zip(self._named, ratios, strict=True))

    def _ratios_of(self, values: Sequence[float | None], blocks: Sequence[Hashable]) -> list[float]:
        kind, _, role = self._values.partition(":")
        if kind == "role":
            return [3.0 if participant.records[0].role == role else 1.0 for participant in self._participants]
        if kind == "null":
            values = [fmean(null_of(r, self._basis) for r in each.records) for each in self._participants]
        if kind == "layer":
            values = [fmean(v for v, b in zip(values, blocks, strict=True) if b == block and v) for block in blocks]
        ratios = linear(values, S1, S2)
        return [S1 + S2 - ratio for ratio in ratios] if self._reverse else ratios


Rule = Callable[[nn.Module, Optimizer, int], list[Stepped]]
"""Attaches the rules of an arm to an optimizer, for a run of so many steps."""


def _varied(**options: object) -> Rule:
    return lambda model, optimizer, steps: [VariedDecay(model, optimizer, steps, **options)]  # type: ignore[arg-type]


def _corrected(model: nn.Module, optimizer: Optimizer, steps: int) -> list[Stepped]:
    CorrectedDecay(optimizer, model)
    return []


def _rates(model: nn.Module, optimizer: Optimizer, steps: int) -> AlphaLR:
    return AlphaLR(model, optimizer, until=steps // 5, every=max(1, steps // 100))


RULES: dict[str, Rule] = {
    "uniform": lambda model, optimizer, steps: [],
    "none": lambda model, optimizer, steps: [],
    "alphadecay": _varied(preserve=False),
    "preserved": _varied(),
    "null": _varied(values="null"),
    "reversed": _varied(reverse=True),
    "square": _varied(basis="square"),
    "layer": _varied(values="layer"),
    "adamc": _corrected,
    "awd": lambda model, optimizer, steps: [GradientRatioDecay(model, optimizer)],
    "adadecay": lambda model, optimizer, steps: [WeightwiseDecay(model, optimizer)],
    "llr": lambda model, optimizer, steps: [_rates(model, optimizer, steps)],
    "llr-preserved": lambda model, optimizer, steps: [
        VariedDecay(model, optimizer, steps),
        _rates(model, optimizer, steps),
    ],
    **{f"role:{role}": _varied(values=f"role:{role}", preserve=False)
       for role in ("q", "k", "v", "o", "gate", "up", "down")},
}  # fmt: skip
