"""The AdaDecay of AlphaDecay's repository: one factor for each module, from gradient norms within its block."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from specdiag.errors import UsageError
from specdiag.files import Table
from specdiag.live.multipliers import attach_all
from specdiag.live.optimizers import unwrap_optimizers
from specdiag.optim.optimizers.ada_decay import thetas
from specdiag.optim.rules.participants import taking_part
from specdiag.text import checks


class ModuleAdaDecay:
    """Multiplies the decay of attention and MLP matrices by 2/(1 + exp(-slope z)), z of gradient norms in a block.

    Not the method of Nakamura and Hong (`AdaDecay`), which goes by single weights. It acts as `AlphaDecay` does, on
    any optimizer and inside its step alone, and cannot act beside it.

    Example:
        >>> decay = ModuleAdaDecay(model, optimizer)
        >>> for step, batch in enumerate(loader):
        ...     model(**batch).loss.backward()
        ...     decay.step(step)
        ...     optimizer.step()
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer | Sequence[Optimizer], *, every: int = 500, slope: float = 4.0
    ) -> None:
        """Attach to a live optimizer.

        Args:
            model: names the parameters.
            optimizer: one or several.
            every: steps between two comparisons; ratios are 1 before the first.
            slope: how sharply the ratio rises with the norm.

        Raises:
            UsageError: `every` below 1, or the optimizer cannot be served.
        """
        if checks.whole("every", every) < 1:
            raise UsageError(f"every={every} must be a number of steps of at least 1; AlphaDecay's code has 500")
        checks.number("slope", slope, least=0)
        held = unwrap_optimizers(optimizer)
        owned = {p for each in held for group in each.param_groups for p in group["params"]}
        participants, matrices = taking_part(model, owned, include=(), exclude=(), roles=())
        named = dict(zip((p.name for p in participants), dict.fromkeys(m.parameter for m in matrices), strict=True))
        self._blocks: dict[int, dict[str, nn.Parameter]] = defaultdict(dict)
        for participant in participants:
            if participant.layer is not None:
                self._blocks[participant.layer][participant.name] = named[participant.name]
        self._named, self._every, self._slope = named, every, slope
        self._ratios = dict.fromkeys(named, 1.0)
        self._acting: dict[torch.Tensor, float] = {}
        self._detachments = attach_all(held, "ratio", "ModuleAdaDecay", lambda p, _: self._acting.get(p, 1.0))[1]

    @property
    def ratios(self) -> dict[str, float]:
        """Current factor on the decay of each parameter."""
        return dict(self._ratios)

    def step(self, global_step: int) -> None:
        """Compare gradients where step + 1 is a multiple of `every`; after backward, before the optimizer's step."""
        if (global_step + 1) % self._every:
            return
        for block in self._blocks.values():
            norms = {name: torch.linalg.vector_norm(p.grad) for name, p in block.items() if p.grad is not None}
            if norms:
                found = thetas(torch.stack(list(norms.values())).double(), self._slope)
                self._ratios |= dict(zip(norms, found.tolist(), strict=True))
        self._act()

    def state_dict(self) -> Table:
        """The ratios by name; plain enough for JSON."""
        return {"ratios": self.ratios}

    def load_state_dict(self, state: Table) -> None:
        """Go on with saved ratios.

        Raises:
            UsageError: they are of other modules.
        """
        if set(state["ratios"]) != set(self._ratios):
            raise UsageError("the saved ModuleAdaDecay state is of other modules than this model's")
        self._ratios = dict(state["ratios"])
        self._act()

    def detach(self) -> None:
        """Leave the optimizer as it was."""
        for detach in self._detachments:
            detach()
        self._detachments = []

    def _act(self) -> None:
        self._acting = {self._named[name]: ratio for name, ratio in self._ratios.items()}
