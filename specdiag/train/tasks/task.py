"""The tasks by name, and which class of transformers learns each."""

from __future__ import annotations

from specdiag.errors import UsageError

_CLASSES = {
    "causal-lm": ("AutoModelForCausalLM", ("ForCausalLM", "LMHeadModel")),
    "masked-lm": ("AutoModelForMaskedLM", ("ForMaskedLM",)),
    "glue": ("AutoModelForSequenceClassification", ("ForSequenceClassification",)),
    "classification": ("AutoModelForSequenceClassification", ("ForSequenceClassification",)),
    "images": ("AutoModelForImageClassification", ("ForImageClassification",)),
}
"""By kind: the auto class, and endings of the names of its models' classes."""
CLASSIFYING = ("glue", "classification", "images")
"""Kinds whose models have a head for the classes of the data."""


def kind_of(task: str) -> str:
    """The kind of a task: what stands before the slash.

    Raises:
        UsageError: there is no such task.
    """
    kind, slash, name = task.partition("/")
    if kind not in _CLASSES or bool(slash) != (kind == "glue") or (slash and not name):
        known = ", ".join("glue/NAME" if each == "glue" else each for each in _CLASSES)
        raise UsageError(f"unknown task={task!r}; choose from {known}")
    return kind


def auto_class(kind: str) -> str:
    """The class of transformers that builds a model for a kind of task."""
    return _CLASSES[kind][0]


def tasks_of(architecture: str) -> list[str]:
    """The kinds of task that a class of transformers, as config.json names it, can learn."""
    return [kind for kind, (_, endings) in _CLASSES.items() if architecture.endswith(endings)]
