"""AlphaDecay for anybody's training loop (arXiv 2506.14562): weight decay that follows the exponents of the weights."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Hashable, Sequence
from typing import ClassVar

from torch import nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from specdiag.decay.assignment import Rule, assign, check_rule, largest_ratio
from specdiag.live.multipliers import Kind
from specdiag.live.optimizers import Changed
from specdiag.optim.rules.measured_ratios import MeasuredRatios
from specdiag.optim.rules.measurement_schedule import Mode
from specdiag.optim.rules.precision import warn_of_rounding
from specdiag.spectra.live_alpha import Basis

_log = logging.getLogger("specdiag")


class AlphaDecay(MeasuredRatios):
    """Multiplies the weight decay of attention and MLP matrices by ratios that follow their exponents.

    Ratios act inside `optimizer.step()` alone: groups, schedulers and checkpoints of the optimizer keep their layout,
    and with all ratios 1 a run is bitwise the same as without AlphaDecay. Where ranks train together every one must
    construct, step and load: these are collective.

    Attributes:
        waited: seconds that training has waited for measurements so far, copies of weights included.

    Example:
        >>> decay = AlphaDecay(model, optimizer)
        >>> for step, batch in enumerate(loader):
        ...     model(**batch).loss.backward()
        ...     decay.step(step)
        ...     optimizer.step()
    """

    _kind: ClassVar[Kind] = "ratio"
    _changed: ClassVar[Changed] = "decay"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        s1: float = 0.67,
        s2: float = 3.0,
        every: int = 500,
        mode: Mode = "round-robin",
        rule: Rule = "linear",
        basis: Basis = "alpha",
        include: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        roles: str | Sequence[str] = (),
        measure_first: bool | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        """Attach to a live optimizer, after it was prepared, sharded and loaded.

        Args:
            model: names the parameters; wrappers (DDP, torch.compile) are looked through.
            optimizer: one or several. Its own decay is the base; groups without decay keep none.
            s1: ratio of the heaviest tail, for the linear rule. Paper: 0.67.
            s2: ratio of the lightest tail. Paper: 3, or 5 for small decays.
            every: steps between two measurements of a module. Paper: 500.
            mode: `round-robin` measures a few modules at a time, so that no exponent is older than `every` steps;
                `sweep` all of them when step + 1 is a multiple of `every`, as the released code does; `background`
                the same as `round-robin`, on copies of the weights in threads, between one step of the optimizer and
                the next.
            rule: `linear` (the paper), `sqrt`, `log2`, `sigmoid`, `uniform`, `none`.
            basis: `alpha` (the paper), or `square`: square_alpha, which shape does not move.
            include: globs on names; only these take part.
            exclude: globs on names; these do not.
            roles: roles that take part, instead of the projections of attention and MLP.
            measure_first: True measures all modules before the first step, for weights that are already trained; False
                starts at ratio 1 until every module has been measured once; None measures first unless the first step
                is step 0. A loaded state takes precedence.
            process_group: the ranks that hold the same modules; None for all.

        Raises:
            UsageError: an option makes no sense, a glob matches nothing, or the optimizer cannot take a changing decay;
                the message shows an alternative.
        """
        self._s1, self._s2 = check_rule(rule, s1, s2)
        self._rule: Rule = rule
        super().__init__(
            model,
            optimizer,
            {"s1": self._s1, "s2": self._s2, "rule": rule},
            every=every,
            mode=mode,
            basis=basis,
            include=include,
            exclude=exclude,
            roles=roles,
            measure_first=measure_first,
            process_group=process_group,
        )

    def _targets(self, values: Sequence[float | None], blocks: Sequence[Hashable]) -> dict[str, float]:
        return dict(zip(self._named, assign(self._rule, values, blocks, self._s1, self._s2), strict=True))

    def _warn(self) -> None:
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        own = set(self._parameters.values())
        decays = [group["weight_decay"] for group in groups if any(p in own for p in group["params"])]
        if not any(decays):
            warnings.warn(
                f"The weight decay of all {len(own)} matrices is 0: AlphaDecay multiplies it and so does nothing. Give "
                "the optimizer one, such as weight_decay=0.1.",
                UserWarning,
                stacklevel=4,
            )
        warn_of_rounding(self._optimizers, list(own), largest_ratio(self._rule, self._s2))
        _log.info("AlphaDecay: %d matrices of %d Parameters take part", len(self._matrices), len(own))
