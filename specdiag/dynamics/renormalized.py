"""AdamW whose steps lengthen the weights only by what points along them (arXiv 2512.08217, algorithm 1)."""

from __future__ import annotations

import numpy as np


def renormalized_step(weights: np.ndarray, update: np.ndarray, lr: float, decay: float) -> np.ndarray:
    """Take a step, rescaled to the norm that it would have without the perpendicular part of the update.

    The display of the algorithm was not readable: this is a reconstruction from what the text says of its line 14.

    Args:
        weights: of one tensor.
        update: u of the same shape, whatever the optimizer makes of the gradients.
        lr: learning rate.
        decay: the optimizer's argument; decay comes first.

    Returns:
        The new weights: theta'' ||theta' - lr u_par||/||theta''||, with theta' = (1 - lr decay) theta, theta'' =
        theta' - lr u and u_par the part of u along theta'. Zero norms are left as they are.
    """
    shrunk = (1 - lr * decay) * weights
    stepped = shrunk - lr * update
    squared, length = float(np.sum(shrunk * shrunk)), float(np.linalg.norm(stepped))
    if squared == 0 or length == 0:
        return stepped
    along = float(np.sum(update * shrunk)) / squared
    return stepped * (abs(1 - lr * along) * np.sqrt(squared) / length)
