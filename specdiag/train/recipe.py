"""What a run is: model, data, optimizer, decay. A preset, a file of the user's, and every run's own record are such."""

from __future__ import annotations

from typing import Any

import msgspec

from specdiag.records import Record

_Table = dict[str, Any]


class Recipe(Record, frozen=True, kw_only=True):
    """Everything that decides what is trained, as its TOML file says it."""

    title: str = ""
    source: str = ""
    """Where the recipe is from."""
    notes: tuple[str, ...] = ()
    task: str = "causal-lm"
    """`causal-lm`, `masked-lm`, `glue/NAME`, `classification`, `images`."""
    data: tuple[str, ...] = ()
    tokenizer: str = ""
    """Hub id or folder; `bytes`; empty for that of the weights."""
    block_size: int = 0
    """Tokens of a block; 0 for what the model takes, to 1024."""
    max_tokens: int = 0
    """Tokens to read of the data; 0 for all."""
    steps_total: int = 0
    decay: str = "uniform"
    optimizer: str = ""
    """A name of specdiag.optim.METHODS; empty for the Trainer's own, by `optim` of the settings."""
    start: str = ""
    """Hub id or folder whose weights are taken; empty for new ones."""
    model: _Table = msgspec.field(default_factory=_Table)
    """Content of config.json."""
    alphadecay: _Table = msgspec.field(default_factory=_Table)
    optimizer_options: _Table = msgspec.field(default_factory=_Table)
    settings: _Table = msgspec.field(default_factory=_Table)
    """Arguments of transformers.TrainingArguments."""
