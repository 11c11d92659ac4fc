"""Alerts on the training loss: values that are not finite, and spikes as OLMo 2 counts them (arXiv 2501.00656)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from specdiag.trajectories.alerts import Alert

WINDOW, DEVIATIONS, FIRST = 1000, 7.0, 10
"""Losses before one with whose mean it is compared, standard deviations that make a spike, and losses that are none."""
LEAST = 0.1
"""Smallest rise above the mean, in nats, that is a spike: a loss that stands still has no deviation. Provisional."""


class LossWatch:
    """Watches logged losses one by one."""

    def __init__(self) -> None:
        self._before: deque[float] = deque(maxlen=WINDOW)
        self._ended = False

    def observe(self, step: int, loss: float) -> Alert | None:
        """Compare a loss with those before it.

        Args:
            step: optimizer steps done.
            loss: in nats.

        Returns:
            An alert on a spike upwards, and on the first of the losses that are not finite; None for other losses.
        """
        if not math.isfinite(loss):
            ended, self._ended = self._ended, True
            message = f"the training loss is {loss}: go back to a checkpoint before it, with a lower learning rate"
            return None if ended else Alert(step=step, kind="nonfinite", module="", value=None, message=message)
        self._ended = False
        alert = self._spike(step, loss) if len(self._before) >= FIRST else None
        self._before.append(loss)
        return alert

    def _spike(self, step: int, loss: float) -> Alert | None:
        mean = math.fsum(self._before) / len(self._before)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in self._before) / len(self._before))
        if loss - mean < max(DEVIATIONS * deviation, LEAST):
            return None
        message = (
            f"the training loss is {loss:.4g} after a mean of {mean:.4g}, {(loss - mean) / max(deviation, 1e-300):.0f} "
            "standard deviations above: look at that batch; where it does not come back, lower the learning rate"
        )
        return Alert(step=step, kind="spike", module="", value=loss, message=message)


def loss_alerts(losses: Iterable[tuple[int, float]], after: int | None, until: int) -> list[Alert]:
    """List the alerts of logged losses.

    Args:
        losses: steps and losses in order.
        after: steps up to this one are passed over; None for none.
        until: the last step.
    """
    watch = LossWatch()
    found = [watch.observe(step, loss) for step, loss in losses if step <= until]
    return [alert for alert in found if alert is not None and (after is None or alert.step > after)]
