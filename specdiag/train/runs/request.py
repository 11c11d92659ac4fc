"""Request to continue a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Request:
    """Options of a run that continues; None or empty if not given."""

    source: Path
    data: Sequence[str | Path] = ()
    out: Path | None = None
    decay: str | None = None
    """`plan:FILE`, or a rule."""
    alphadecay: Mapping[str, object] | None = None
    """Options of AlphaDecay; s1, s2 and basis also of a plan that is made now."""
    steps_total: int | None = None
    extend: int | None = None
    block_size: int | None = None
    max_tokens: int | None = None
    task: str | None = None
    columns: Sequence[str] = ()
    """Columns of a classification data set: one or two with text, then the label."""
    layout: str | None = None
    """Parameter order of another program's optimizer, if several fit."""
    config: str | None = None
    """config.json, folder or hub id of the model, where another program's checkpoint has none."""
    tokenizer: str | None = None
    """Folder, file or hub id, or `bytes`; else the one beside the weights."""
    settings: Mapping[str, object] | None = None
    """Arguments of the Trainer."""
    fresh_optimizer: bool = False
    allow_data_shift: bool = False
    continues_text: bool = False
    """True if the model continues a text at the end."""
