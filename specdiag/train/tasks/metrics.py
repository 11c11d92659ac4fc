"""Figures of merit from predictions, as GLUE and its users compute them (arXiv 1804.07461).

Where one is not defined, for predictions that are all the same, it is 0, as scikit-learn has it for Matthews and F1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, rankdata

if TYPE_CHECKING:
    from transformers import EvalPrediction

Metric = Callable[[NDArray[Any], NDArray[Any]], float]
"""Figure of merit as a function of predictions and true values."""


def accuracy(predicted: NDArray[np.int64], true: NDArray[np.int64]) -> float:
    """Share that is right."""
    return float((predicted == true).mean())


def f1(predicted: NDArray[np.int64], true: NDArray[np.int64]) -> float:
    """2 TP / (2 TP + FP + FN), of class 1."""
    both = int(((predicted == 1) & (true == 1)).sum())
    either = int((predicted == 1).sum() + (true == 1).sum())
    return 2 * both / either if either else 0.0


def matthews(predicted: NDArray[np.int64], true: NDArray[np.int64]) -> float:
    """The correlation of two partitions: that of Matthews, for more classes than two that of Gorodkin (2004)."""
    classes = int(max(predicted.max(), true.max())) + 1
    p, t = np.eye(classes)[predicted], np.eye(classes)[true]
    p, t = p - p.mean(axis=0), t - t.mean(axis=0)
    scale = np.sqrt((p * p).sum() * (t * t).sum())
    return float((p * t).sum() / scale) if scale > 0 else 0.0


def pearson(predicted: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    """Linear correlation."""
    constant = np.ptp(predicted) == 0 or np.ptp(true) == 0
    return 0.0 if constant else float(cast("Any", pearsonr(predicted, true)).statistic)


def spearman(predicted: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    """Pearson's of the ranks; equal values share theirs."""
    return pearson(rankdata(predicted), rankdata(true))


def of_predictions(metrics: Mapping[str, Metric], *, regression: bool) -> Callable[[EvalPrediction], dict[str, float]]:
    """Build a Trainer's compute_metrics.

    Args:
        metrics: by their names.
        regression: whether the model predicts a number, instead of a logit for each class.
    """

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        held: Any = prediction.predictions
        outputs = np.asarray(held[0] if isinstance(held, tuple) else held)  # others are hidden states and the like
        true = np.asarray(prediction.label_ids)
        if np.isnan(outputs).any():  # the largest of NaNs would be taken for class 0
            return dict.fromkeys(metrics, float("nan"))
        if regression:
            predicted, true = outputs.astype(np.float64).reshape(-1), true.astype(np.float64).reshape(-1)
        else:
            predicted = outputs.argmax(axis=-1)
        return {name: metric(predicted, true) for name, metric in metrics.items()}

    return compute
