"""Metrics of predictions, as GLUE and its users compute them (arXiv 1804.07461).

A metric that is not defined, because all predictions are the same, is 0, as in scikit-learn for Matthews and F1.
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
"""Metric as a function of predictions and true values, both of shape [n]."""


def accuracy(predicted: NDArray[np.int64], true: NDArray[np.int64]) -> float:
    """Return the fraction of predictions that are right.

    Args:
        predicted: predicted class numbers, of shape [n].
        true: true class numbers, of shape [n].
    """
    return float((predicted == true).mean())


def f1(predicted: NDArray[np.int64], true: NDArray[np.int64]) -> float:
    """Return F1 of class 1: 2 TP / (2 TP + FP + FN).

    Args:
        predicted: predicted class numbers, of shape [n].
        true: true class numbers, of shape [n].
    """
    both = int(((predicted == 1) & (true == 1)).sum())
    either = int((predicted == 1).sum() + (true == 1).sum())
    return 2 * both / either if either else 0.0


def matthews(predicted: NDArray[np.int64], true: NDArray[np.int64]) -> float:
    """Return the correlation of two partitions: Matthews', or Gorodkin's (2004) for more than two classes.

    Args:
        predicted: predicted class numbers, of shape [n].
        true: true class numbers, of shape [n].
    """
    classes = int(max(predicted.max(), true.max())) + 1
    p, t = np.eye(classes)[predicted], np.eye(classes)[true]
    p, t = p - p.mean(axis=0), t - t.mean(axis=0)
    scale = np.sqrt((p * p).sum() * (t * t).sum())
    return float((p * t).sum() / scale) if scale > 0 else 0.0


def pearson(predicted: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    """Return the linear correlation.

    Args:
        predicted: predicted numbers, of shape [n].
        true: true numbers, of shape [n].
    """
    constant = np.ptp(predicted) == 0 or np.ptp(true) == 0
    return 0.0 if constant else float(cast("Any", pearsonr(predicted, true)).statistic)


def spearman(predicted: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    """Return the linear correlation of the ranks; equal values have the mean of their ranks.

    Args:
        predicted: predicted numbers, of shape [n].
        true: true numbers, of shape [n].
    """
    return pearson(rankdata(predicted), rankdata(true))


def of_predictions(metrics: Mapping[str, Metric], *, regression: bool) -> Callable[[EvalPrediction], dict[str, float]]:
    """Build a Trainer's compute_metrics.

    Args:
        metrics: metrics by name.
        regression: True if the model predicts a number, instead of a logit for each class.

    Returns:
        A function that computes the metrics; all are NaN if an output is NaN.
    """

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        predictions: Any = prediction.predictions
        # The first of a tuple are the logits, the others are hidden states and the like.
        outputs = np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)
        true = np.asarray(prediction.label_ids)
        if np.isnan(outputs).any():  # the largest of NaNs would be taken for class 0
            return dict.fromkeys(metrics, float("nan"))
        if regression:
            predicted, true = outputs.astype(np.float64).reshape(-1), true.astype(np.float64).reshape(-1)
        else:
            predicted = outputs.argmax(axis=-1)
        return {name: metric(predicted, true) for name, metric in metrics.items()}

    return compute
