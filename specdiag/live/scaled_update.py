"""A factor on the update of one Parameter in one step, beside the optimizer: w <- w0 + r (w - w0)."""

from __future__ import annotations

import torch


class ScaledUpdate:
    """The update of a Parameter, decay included, is scaled once the step is done.

    For an optimizer whose update is proportional to the learning rate this is a step at r times the rate.
    """

    def __init__(self, parameter: torch.Tensor, rate: float) -> None:
        """Copy the Parameter before the step.

        Args:
            parameter: before anything of the step has changed it.
            rate: r.
        """
        self._weights = _local(parameter.detach())
        self._before = self._weights.clone()
        self._rate = rate

    @torch.no_grad()
    def finish(self) -> None:
        """Scale what has changed since. Nothing happens to a Parameter that the step skipped."""
        self._weights.copy_(torch.lerp(self._before, self._weights, self._rate))


def _local(value: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a DTensor, and anything else as it is: the scaling is elementwise."""
    return getattr(value, "_local_tensor", value)
