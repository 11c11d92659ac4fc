"""The AdaDecay of AlphaDecay's repository: one factor for each module, from gradient norms within its block."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from specdiag.errors import UsageError
from specdiag.files import Table
from specdiag.live.attaching import attach
from specdiag.live.optimizers import unwrap_optimizers
from specdiag.optim.optimizers.ada_decay import thetas
from specdiag.optim.rules.participants import select_participants
from specdiag.text import checks


class ModuleAdaDecay:
    """Multiplies the decay of attention and MLP matrices by 2/(1 + exp(-slope z)), z of gradient norms in a block.

    This is not the method of Nakamura and Hong (`AdaDecay`), which has a factor for each weight. It acts on any
    optimizer and inside its step alone, as `AlphaDecay` does. The two exclude each other.

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
            slope: steepness with which the ratio rises with the norm.

        Raises:
            UsageError: `every` is below 1, `slope` is negative, or the optimizer cannot take a changing decay.
        """
        if checks.whole("every", every) < 1:
            raise UsageError(f"every={every} must be a number of steps of at least 1; AlphaDecay's code has 500")
        checks.number("slope", slope, least=0)
        unwrapped = unwrap_optimizers(optimizer)
        optimized = {p for each in unwrapped for group in each.param_groups for p in group["params"]}
        participants, matrices = select_participants(model, optimized, include=(), exclude=(), roles=())
        named = dict(zip((p.name for p in participants), dict.fromkeys(m.parameter for m in matrices), strict=True))
        self._blocks: dict[int, dict[str, nn.Parameter]] = defaultdict(dict)
        for participant in participants:
            if participant.layer is not None:
                self._blocks[participant.layer][participant.name] = named[participant.name]
        self._named, self._every, self._slope = named, every, slope
        self._ratios = dict.fromkeys(named, 1.0)
        self._acting: dict[torch.Tensor, float] = {}
        self._detach = attach(unwrapped, "ratio", "ModuleAdaDecay", lambda p, _: self._acting.get(p, 1.0))[1]

    @property
    def ratios(self) -> dict[str, float]:
        """Current factor on the decay of each parameter."""
        return dict(self._ratios)

    def step(self, global_step: int) -> None:
        """Compare the gradients where a comparison is due. Call it after backward, before the optimizer's step.

        Args:
            global_step: optimizer steps done so far; a comparison is due where `every` divides global_step + 1.
        """
        if (global_step + 1) % self._every:
            return
        for block in self._blocks.values():
            norms = {name: torch.linalg.vector_norm(p.grad) for name, p in block.items() if p.grad is not None}
            if norms:
                ratios = thetas(torch.stack(list(norms.values())).double(), self._slope)
                self._ratios |= dict(zip(norms, ratios.tolist(), strict=True))
        self._apply_ratios()

    def state_dict(self) -> Table:
        """Return the ratios by name. They can be written as JSON."""
        return {"ratios": self.ratios}

    def load_state_dict(self, state: Table) -> None:
        """Continue with saved ratios.

        Raises:
            UsageError: they are of other modules.
        """
        if set(state["ratios"]) != set(self._ratios):
            raise UsageError("the saved ModuleAdaDecay state is of other modules than this model's")
        self._ratios = dict(state["ratios"])
        self._apply_ratios()

    def detach(self) -> None:
        """Remove the ratios from the optimizer."""
        self._detach()

    def _apply_ratios(self) -> None:
        self._acting = {self._named[name]: ratio for name, ratio in self._ratios.items()}
