"""The paper's own numerical experiment (arXiv 2512.08217, appendix A): a random walk is enough.

A reconstruction: equation 5 was not readable, and neither were its numbers. The text says that a simple system under a
cosine lr replicates how norms fall at the end of training, whatever the optimizer. Used here: theta_t = (1 - lr_t
decay_t) theta_{t-1} - lr_t u_t with u_t ~ N(0, I), the lr from its peak to 0 along a cosine, the decay constant
(uncorrected) or proportional to the lr (corrected).
"""

from __future__ import annotations

import math

from msgspec.structs import replace

from specdiag.decay.schedule_record import LrShape
from specdiag.dynamics.records import Simulation
from specdiag.dynamics.simulate import simulate
from specdiag.dynamics.steady import steady_norm
from specdiag.dynamics.updates import Shape, update_of

LR, WEIGHT_DECAY, STEPS = 0.01, 0.1, 20_000
"""Chosen here: the paper's values are not readable."""

RECONSTRUCTION = (
    "Appendix A of arXiv 2512.08217 is reconstructed: its equation 5 and its settings could not be read. Here the "
    "weights start in the balance of the peak lr unless another norm is given."
)


def appendix_a(
    *,
    lr: float = LR,
    weight_decay: float = WEIGHT_DECAY,
    steps: int = STEPS,
    lr_shape: LrShape = "cosine",
    shape: Shape = (4096,),
    initial_rms: float | None = None,
    stochastic: bool = False,
    seed: int = 0,
) -> tuple[Simulation, Simulation]:
    """Simulate the norms with uncorrected and with corrected decay.

    Args:
        lr: peak learning rate.
        weight_decay: at the peak.
        steps: of the run.
        lr_shape: course of the lr, as for `simulate`.
        shape: of the weights; any number of axes.
        initial_rms: root mean square of the weights before the first step, such as 1 for N(0, I); None for that of the
            balance at the peak.
        stochastic: True also draws the walk at random.
        seed: of the random walk.

    Returns:
        The simulation with uncorrected decay, and that with corrected decay.

    Raises:
        UsageError: a number is out of range.
    """
    if initial_rms is None:
        initial_rms = steady_norm(update_of("random-walk", shape), lr, weight_decay)
    base, corrected = (
        simulate(
            "random-walk", lr=lr, weight_decay=weight_decay, steps=steps, lr_shape=lr_shape, corrected=is_corrected,
            shape=shape, initial_rms=initial_rms, stochastic=stochastic, seed=seed,
        )
        for is_corrected in (False, True)
    )  # fmt: skip
    return tuple(replace(s, assumptions=(RECONSTRUCTION, *s.assumptions)) for s in (base, corrected))  # pyright: ignore


def suppression(simulation: Simulation) -> float:
    """Return the last squared norm of a simulation over the first.

    Args:
        simulation: that did not start from norm 0.
    """
    return math.pow(simulation.course[-1].rms / simulation.course[0].rms, 2)
