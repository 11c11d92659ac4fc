"""Names of files that may hold weights, and of those beside them that do not."""

from __future__ import annotations

import re
from collections.abc import Iterable

from specdiag.checkpoint.formats import FOREIGN_SUFFIXES, WEIGHT_SUFFIXES
from specdiag.checkpoint.training_state import MOMENTS

SHARD = re.compile(r"(?P<stem>.*[-_])(?P<number>\d+)-of-(?P<total>\d+)(?P<suffix>\.[^./]+)")
"""Names of shards, which count themselves."""
TUNED = re.compile(r"(?P<before>.*hf_model_)(?P<number>\d{4})(?P<epoch>_\d+\.pt)")
"""Names of torchtune's shards, of which each epoch has a set."""
NOT_WEIGHTS = re.compile(
    r"(training_args|optimizer|scheduler|scaler|sampler|rng_state|random_states|recipe_state)[^/]*|.*_optim_states\.pt"
    r"|__\d+\.metadata|optim_\d+(_rank\d+)?\.pt|.*\.spectra\.safetensors"
)
"""Beginnings of names of what a training script saves beside weights, and the spectra that a report saves."""
MOMENT = re.compile(rf"(.*/)?zero/[^/]+/(step|{'|'.join(sorted(MOMENTS))})\.pt")
"""Files of a universal checkpoint of DeepSpeed that hold an optimizer's state of one parameter."""


def is_index(name: str) -> bool:
    """Tell whether a file is an index of shards by its name, such as `model.safetensors.index.json`."""
    return name.endswith(".json") and ".index." in name


def weight_files(names: Iterable[str]) -> list[str]:
    """List the names that look like files of weights, in supported formats and others.

    Args:
        names: files of a repository or directory, relative to it.

    Returns:
        Those names in their order, without optimizer states and the like.
    """
    return [
        name
        for name in names
        if name.endswith(WEIGHT_SUFFIXES + FOREIGN_SUFFIXES)
        and not NOT_WEIGHTS.match(base_name(name))
        and not MOMENT.fullmatch(name)
    ]


def base_name(name: str) -> str:
    """Give a file's name without its folders."""
    return name.rpartition("/")[2]
