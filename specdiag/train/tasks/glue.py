"""Sequence classification: the eight tasks of GLUE (arXiv 1804.07461), and other labelled texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch.utils.data import Dataset

from specdiag.errors import MissingExtraError, SourceError, UsageError
from specdiag.train.data.fingerprint import data_fingerprint
from specdiag.train.data.hub import HubData, locate
from specdiag.train.data.tokens import Data, tokenizer_digest
from specdiag.train.tasks.metrics import Metric, accuracy, f1, matthews, of_predictions, pearson, spearman
from specdiag.train.tasks.rows import Row, Rows, read

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

try:
    from transformers import DataCollatorWithPadding
except ImportError as error:
    raise MissingExtraError("training needs transformers: pip install transformers accelerate") from error

HUB = "nyu-mll/glue"
"""Dataset that is read if no data is given; its configurations are the tasks."""
CLASSIFICATION = "classification"
"""Name of the task for labelled texts other than GLUE; each label is a class."""
_LABEL = "label"
_USUAL = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"),
    ("text",), ("sentence",),
)  # fmt: skip
"""Columns with texts that are looked for, in this order, if none are named."""


@dataclass(frozen=True)
class Task:
    """Task of GLUE.

    Attributes:
        texts: columns with the one or two texts.
        labels: names of the classes in the order of their numbers; None if a number is predicted.
        metrics: metrics by name.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...] | None
    metrics: Mapping[str, Metric]


_PAIR = ("sentence1", "sentence2")
_ENTAILED = ("entailment", "not_entailment")
_ACCURACY: Mapping[str, Metric] = {"accuracy": accuracy}
_BOTH: Mapping[str, Metric] = {"accuracy": accuracy, "f1": f1}
GLUE: Mapping[str, Task] = {
    "cola": Task(("sentence",), ("unacceptable", "acceptable"), {"matthews": matthews}),
    "sst2": Task(("sentence",), ("negative", "positive"), _ACCURACY),
    "mrpc": Task(_PAIR, ("not_equivalent", "equivalent"), _BOTH),
    "stsb": Task(_PAIR, None, {"pearson": pearson, "spearman": spearman}),
    "qqp": Task(("question1", "question2"), ("not_duplicate", "duplicate"), _BOTH),
    "mnli": Task(("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), _ACCURACY),
    "qnli": Task(("question", "sentence"), _ENTAILED, _ACCURACY),
    "rte": Task(_PAIR, _ENTAILED, _ACCURACY),
}
"""The tasks of GLUE by name, without WNLI, which is usually left out."""
TASKS = (*GLUE, CLASSIFICATION)


def load_classification(
    task: str,
    paths: Sequence[str | Path] = (),
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    max_length: int,
    seed: int,
    columns: Sequence[str] | None = None,
) -> Data:
    """Load labelled texts. The validation split of GLUE is held out, for MNLI the matched one.

    `Data.labels` has the names of the classes. It is None for stsb, whose model has one output and the mean squared
    error as its loss (`num_labels=1`).

    Args:
        task: name of a task of GLUE, or `classification`.
        paths: csv, tsv, jsonl, json or parquet files, folders, or one dataset on the hub; empty for GLUE's own data.
        tokenizer: tokenizer of the checkpoint, which must have a padding token.
        max_length: largest number of tokens of an example; longer ones are cut.
        seed: seed of the run, for the fingerprint.
        columns: names of one or two columns with texts, then of the label; None for the usual ones.

    Raises:
        UsageError: there is no such task, or an argument is missing.
        SourceError: the data is missing or damaged, or has other labels.
    """
    if task not in TASKS:
        raise UsageError(f"unknown task '{task}'; choose {', '.join(TASKS)}")
    if tokenizer is None or tokenizer.pad_token_id is None:
        problem = "there is no tokenizer" if tokenizer is None else f"{type(tokenizer).__name__} has no padding token"
        raise UsageError(f"classification needs a tokenizer with a padding token, and {problem}")
    known = GLUE.get(task)
    if known is None and not paths:
        raise UsageError(f"name the texts to classify with data=PATH, or a task of GLUE: {', '.join(GLUE)}")
    usual = _USUAL if known is None else (known.texts,)
    sources = paths if known is None else [_of_task(path, task) for path in paths or [HUB]]
    rows = read(sources, columns, [(*texts, _LABEL) for texts in usual])
    names = _names(rows) if known is None else known.labels
    labels = [[_label(row, names, task) for row in part] for part in (rows.train, rows.held_out)]
    metrics = {"accuracy": accuracy, "matthews": matthews} if known is None else known.metrics
    return Data(
        train=_Texts(rows.train, labels[0], tokenizer, max_length),
        held_out=_Texts(rows.held_out, labels[1], tokenizer, max_length),
        fingerprint=data_fingerprint(
            rows.sources, tokenizer_digest(tokenizer), max_length, seed, task=task, columns=rows.columns
        ),
        collate=DataCollatorWithPadding(tokenizer),
        metrics=of_predictions(metrics, regression=names is None),
        labels=names,
        split_off=rows.split_off,
    )


def glue_score(task: str, metrics: Mapping[str, float]) -> float:
    """Return the score of a task: the unweighted mean of its metrics, as GLUE defines it.

    The tables of AlphaDecay (arXiv 2506.14562) do not say which metric of MRPC, QQP and STS-B they print.

    Args:
        task: name of a task of GLUE.
        metrics: metrics by name, which may begin with the `eval_` of a Trainer.

    Raises:
        UsageError: GLUE has no such task, or a metric of it is missing.
    """
    if task not in GLUE:
        raise UsageError(f"'{task}' is no task of GLUE: {', '.join(GLUE)}")
    by_name = {name: metrics.get(name, metrics.get(f"eval_{name}")) for name in GLUE[task].metrics}
    values = [value for value in by_name.values() if value is not None]
    if len(values) < len(by_name):
        raise UsageError(f"{task} is judged by {' and '.join(by_name)}, and there is {', '.join(metrics) or 'nothing'}")
    return sum(values) / len(values)


def glue_average(results: Mapping[str, Mapping[str, float]]) -> float:
    """Return the mean of the scores of the eight tasks: `Avg.` in the tables of AlphaDecay, as a fraction.

    Args:
        results: metrics by name, by task.

    Raises:
        UsageError: a task is missing; the mean of fewer tasks would be another number.
    """
    missing = [task for task in GLUE if task not in results]
    if missing:
        raise UsageError(f"the average is over eight tasks, and there is no result of {', '.join(missing)}")
    return sum(glue_score(task, results[task]) for task in GLUE) / len(GLUE)


def _of_task(path: str | Path, task: str) -> str | Path:
    located = locate(path)
    if isinstance(located, HubData) and located.repo == HUB and located.config is None:
        return str(replace(located, config=task))
    return path


class _Texts(Dataset[dict[str, Any]]):
    """Labelled texts that are tokenized when they are asked for."""

    def __init__(self, rows: Sequence[Row], labels: Sequence[float], tokenizer: Any, max_length: int) -> None:
        self.rows, self.labels, self.tokenizer, self.max_length = rows, labels, tokenizer, max_length

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        encoded: Any = self.tokenizer(*self.rows[index].texts, truncation=True, max_length=self.max_length)
        return {**encoded, "labels": self.labels[index]}


def _names(rows: Rows) -> tuple[str, ...]:
    """Return the names of the classes: those of the dataset, else all labels in order, numbers by size."""
    if rows.names is not None:
        return rows.names
    labels = {_plain(row) for part in (rows.train, rows.held_out) for row in part}
    if len(labels) < 2:
        raise SourceError(f"{rows.train[0].at} and all others have the label {next(iter(labels))}: give two classes")
    if all(isinstance(label, int) for label in labels):
        return tuple(str(label) for label in sorted(labels, key=int))
    return tuple(sorted(str(label) for label in labels))


def _label(row: Row, names: tuple[str, ...] | None, task: str) -> float:
    """Return the number of a row's class; for stsb, the number that is predicted."""
    if names is None:
        try:
            number = float(cast("str | float", row.label))
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise SourceError(f"{row.at} has the label {row.label!r}, and {task} predicts a number")
        return number
    label = str(_plain(row))
    if label in names:
        return names.index(label)
    if label.isdecimal() and int(label) < len(names):
        return int(label)
    hint = ": the test split of GLUE is not labelled" if label == "-1" else ""
    raise SourceError(f"{row.at} has the label {row.label!r}, and {task} has the classes {', '.join(names)}{hint}")


def _plain(row: Row) -> int | str:
    """Return a row's label as a whole number or a name."""
    label = row.label
    if isinstance(label, float) and label.is_integer():
        return int(label)
    if isinstance(label, int):
        return int(label)
    if not isinstance(label, str) or not label:
        raise SourceError(f"{row.at} has the label {label!r}, which is no class: name the column with columns=")
    return label
