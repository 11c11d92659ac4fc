"""Tasks by name, and the class of transformers that learns each."""

from __future__ import annotations

from specdiag.errors import UsageError

_CLASSES = {
    "causal-lm": ("AutoModelForCausalLM", ("ForCausalLM", "LMHeadModel")),
    "masked-lm": ("AutoModelForMaskedLM", ("ForMaskedLM",)),
    "glue": ("AutoModelForSequenceClassification", ("ForSequenceClassification",)),
    "classification": ("AutoModelForSequenceClassification", ("ForSequenceClassification",)),
    "images": ("AutoModelForImageClassification", ("ForImageClassification",)),
}
"""By kind of task: the auto class, and the endings of its models' class names."""
CLASSIFYING = ("glue", "classification", "images")
"""Kinds of task whose models have a head for the classes of the data."""


def kind_of(task: str) -> str:
    """Return the kind of a task: the part before the slash.

    Raises:
        UsageError: there is no such task.
    """
    kind, slash, name = task.partition("/")
    if kind not in _CLASSES or bool(slash) != (kind == "glue") or (slash and not name):
        known = ", ".join("glue/NAME" if each == "glue" else each for each in _CLASSES)
        raise UsageError(f"unknown task={task!r}; choose from {known}")
    return kind


def auto_class(kind: str) -> str:
    """Return the name of the class of transformers that builds models for a kind of task."""
    return _CLASSES[kind][0]


def tasks_of(architecture: str) -> list[str]:
    """Return the kinds of task that a class of transformers can learn; `architecture` is its name in config.json."""
    return [kind for kind, (_, endings) in _CLASSES.items() if architecture.endswith(endings)]
