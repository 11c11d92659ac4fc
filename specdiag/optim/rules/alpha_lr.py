"""LLR for anybody's training loop (arXiv 2605.22297): learning rates that follow the exponents of the weights."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Hashable, Sequence
from typing import ClassVar, get_args

from torch import nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from specdiag.decay.assignment import check_rule
from specdiag.files import Table
from specdiag.live.matrices import live_matrices
from specdiag.live.multipliers import Kind
from specdiag.live.optimizers import Changed
from specdiag.optim.rules.measured_ratios import MeasuredRatios
from specdiag.optim.rules.measurement_schedule import Mode
from specdiag.rates.plan import Per
from specdiag.rates.rule import ENDS, rate_ratios
from specdiag.spectra.live_alpha import Basis
from specdiag.text import checks

_log = logging.getLogger("specdiag")


class AlphaLR(MeasuredRatios):
    """Multiplies the learning rate of attention and MLP matrices by ratios that follow their exponents.

    A larger exponent (lighter tail) means a larger rate: (alpha - min)/(max - min) (s2 - s1) + s1. Decoupled decay is
    multiplied too, since it acts as lr x decay; with AlphaDecay on the same optimizer both ratios act. The update of
    each Parameter is scaled beside the step, w <- w0 + r (w - w0), where a probe on small tensors finds it proportional
    to the learning rate; otherwise the groups are divided for the step, or the optimizer is refused. Groups, schedulers
    and checkpoints of the optimizer keep their layout, and ratio 1 is bitwise the same as no AlphaLR.

    The formula, its settings, and the largest ratio of embedding and head are those of the released code; the paper's
    text was not at hand. The code interpolates rates over `blend` steps, this class their ratios to the base rate,
    which differs only where a schedule bends within these steps. Biases and norms keep the base rate here. The method
    is not shown to help by this project, and its ratios raise the mean rate unless `preserve_mean` is set.

    Attributes:
        waited: seconds that training has waited for measurements so far, copies of weights included.

    Example:
        >>> rates = AlphaLR(model, optimizer, until=2000)  # a fifth of the run
        >>> for step, batch in enumerate(loader):
        ...     model(**batch).loss.backward()
        ...     rates.step(step)
        ...     optimizer.step()
    """

    _kind: ClassVar[Kind] = "rate"
    _changed: ClassVar[Changed] = "lr"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        s1: float = 1.0,
        s2: float = 5.0,
        every: int = 100,
        blend: int = 50,
        until: int | None = None,
        per: Per = "module",
        preserve_mean: bool = False,
        embeddings: bool = True,
        mode: Mode = "sweep",
        basis: Basis = "alpha",
        include: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        roles: str | Sequence[str] = (),
        measure_first: bool | None = True,
        process_group: ProcessGroup | None = None,
    ) -> None:
        """Attach to a live optimizer, after it was prepared, sharded and loaded.

        Args:
            model: names the parameters; wrappers (DDP, torch.compile) are looked through.
            optimizer: one or several. Its own learning rate is the base, at each step as its scheduler set it.
            s1: ratio of the heaviest tail. Released code: 1.
            s2: ratio of the lightest tail. Released code: 5 in its README, 3 in one of its configurations.
            every: steps between two measurements of a module. Released code: 100.
            blend: steps over which ratios move from the former to the new ones. Released code: 50.
            until: step from which nothing is measured and the ratios stay. Released code: a fifth of the run; None
                measures to its end.
            per: `module` gives each Parameter its ratio; `layer` all Parameters of a block the one of their mean
                exponent, which cancels what shapes alone do.
            preserve_mean: divide all ratios by their mean over the weights that have one, so that the mean rate stays.
            embeddings: give embedding and head the largest ratio, as the released code does; False leaves them alone.
            mode: `sweep` measures everything when step + 1 is a multiple of `every`, as the released code does; the
                others are those of `AlphaDecay`. They change ratios at almost every step, which makes `blend` a moving
                average.
            basis: `alpha`, or `square`: square_alpha, which shape does not move.
            include: globs on names; only these take part.
            exclude: globs on names; these do not.
            roles: roles that take part, instead of the projections of attention and MLP.
            measure_first: True measures all modules before the first step, as the released code does: exponents of
                random weights, which tell shapes apart and nothing else; None does so unless the first step is step 0.
                A loaded state takes precedence.
            process_group: the ranks that hold the same modules; None for all.

        Raises:
            UsageError: an option makes no sense, a glob matches nothing, or the optimizer's update is not proportional
                to its learning rate and its groups cannot be divided.
        """
        self._s1, self._s2 = check_rule("linear", s1, s2)
        self._blend = checks.whole("blend", blend, least=1)
        self._until = None if until is None else checks.whole("until", until, least=0)
        self._per: Per = per
        checks.one_of("per", per, get_args(Per))
        self._preserve_mean = checks.flag("preserve_mean", preserve_mean)
        matrices = live_matrices(model) if checks.flag("embeddings", embeddings) else []
        ends = {m.name: m.parameter for m in matrices if m.is_first and m.role in ENDS}
        self._from: dict[str, float] = {}
        self._to: dict[str, float] = {}
        self._since = 0
        super().__init__(
            model,
            optimizer,
            {
                "s1": self._s1,
                "s2": self._s2,
                "blend": blend,
                "until": until,
                "per": per,
                "preserve_mean": preserve_mean,
                "embeddings": embeddings,
            },
            every=every,
            mode=mode,
            basis=basis,
            include=include,
            exclude=exclude,
            roles=roles,
            measure_first=measure_first,
            process_group=process_group,
            unmeasured=ends,
        )

    def step(self, global_step: int | None = None) -> None:
        """Measure what is due, and move the ratios for the optimizer step that follows.

        Args:
            global_step: optimizer steps done so far, 0 before the first; None counts calls.

        Raises:
            UsageError: as `AlphaDecay.step`.
        """
        super().step(global_step)
        self._act(self._blended())

    def state_dict(self) -> Table:
        """Return the state that a resumed run continues from. It can be written as JSON."""
        return super().state_dict() | {"from": dict(self._from), "to": dict(self._to), "since": self._since}

    def load_state_dict(self, state: Table) -> None:
        """Continue from a saved state. Settings stay those of the constructor.

        Raises:
            UsageError: the state is of other modules or of another basis.
        """
        super().load_state_dict(state)
        self._from, self._to, self._since = dict(state["from"]), dict(state["to"]), state["since"]
        self._act(self._blended())

    def _targets(self, values: Sequence[float | None], blocks: Sequence[Hashable]) -> dict[str, float]:
        ratios = rate_ratios(
            values,
            blocks,
            [parameter.numel() for parameter in self._named.values()],
            s1=self._s1,
            s2=self._s2,
            per=self._per,
            preserve_mean=self._preserve_mean,
            unmeasured=len(self._unmeasured),
        )
        return dict(zip(self._named, ratios, strict=True))

    def _retarget(self, ratios: dict[str, float]) -> None:
        self._from, self._to, self._since = dict(self._ratios), ratios, self._last or 0

    def _blended(self) -> dict[str, float]:
        """Return the ratios of the next step, on their way from the former to the latest."""
        if not self._to:
            return dict.fromkeys(self._named, 1.0)
        done = min(1.0, ((self._last or 0) - self._since + 1) / self._blend)
        return {name: self._from[name] + (to - self._from[name]) * done for name, to in self._to.items()}

    def _due(self, last: int, step: int) -> list[list[int]]:
        return [] if self._until is not None and step >= self._until else super()._due(last, step)

    def _warn(self) -> None:
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        own = set(self._named.values())
        if not any(float(g.get("initial_lr", g["lr"])) for g in groups if any(p in own for p in g["params"])):
            warnings.warn(
                f"The learning rate of all {len(own)} Parameters is 0: AlphaLR multiplies it and so does nothing.",
                UserWarning,
                stacklevel=4,
            )
        _log.info("AlphaLR: %d matrices of %d Parameters take part", len(self._matrices), len(self._parameters))
