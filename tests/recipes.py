"""A recipe of `specdiag train` that is over in a second, and how a run of it ranks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from specdiag.train.recipe import Recipe
from specdiag.train.runs.leaderboard import Ranked

MODEL = {
    "model_type": "llama", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
    "num_attention_heads": 4, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
SETTINGS = {
    "learning_rate": 1e-2, "per_device_train_batch_size": 4, "save_steps": 2, "logging_steps": 1, "weight_decay": 0.5,
    "use_cpu": True, "seed": 3,
}  # fmt: skip


def tiny_recipe(text: Path, settings: Mapping[str, Any] | None = None, **changes: Any) -> Recipe:
    """Four steps of AdamW on the bytes of a text; `settings` and `changes` replace or add values."""
    recipe = Recipe(
        title="Tiny", source="this test", task="causal-lm", data=(str(text),), tokenizer="bytes", block_size=32,
        steps_total=4, decay="uniform", optimizer="adamw", model=MODEL, settings=SETTINGS | dict(settings or {}),
    )  # fmt: skip
    return msgspec.structs.replace(recipe, **changes)


def write_recipe(recipe: Recipe, path: Path) -> Path:
    """The recipe as a file."""
    path.write_bytes(msgspec.toml.encode(recipe))
    return path


def ranked(task: str, loss: float, **merits: float) -> Ranked:
    """A finished run of a task in a table of runs."""
    return Ranked(run="r", task=task, decay="uniform", weight_decay=0.1, optimizer="adamw", seed=0, step=4, loss=loss,
                  improvement=0.0, merits=merits, hours=1.0, decay_share=0.0, tokens=0)  # fmt: skip
