"""The data of whatever task a recipe names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specdiag.errors import UsageError
from specdiag.train.data import Data, load_data
from specdiag.train.recipe import Recipe
from specdiag.train.tasks.task import kind_of

_LONGEST_BLOCK = 1024


def load_task(recipe: Recipe, *, config: Any, tokenizer: Any, seed: int, cache: Path) -> Data:
    """Data for the task of a recipe.

    Args:
        recipe: names task, data and block size.
        config: of the model, for its vocabulary and positions.
        tokenizer: None for bytes.
        seed: of the run.
        cache: a folder that keeps tokens for the next start.

    Raises:
        UsageError: the data cannot serve the task.
        SourceError: it is missing or damaged.
    """
    kind_of(recipe.task)
    return load_data(
        [Path(path) for path in recipe.data],
        tokenizer=tokenizer,
        vocabulary=int(config.vocab_size),
        block_size=block_size(recipe, config),
        seed=seed,
        cache=cache,
    )


def block_size(recipe: Recipe, config: Any) -> int:
    """Tokens of a block: the recipe's, else what the model takes, to 1024.

    Raises:
        UsageError: it does not fit the model.
    """
    longest = getattr(config, "max_position_embeddings", None) or _LONGEST_BLOCK
    size = recipe.block_size or min(longest, _LONGEST_BLOCK)
    if size < 2 or size > longest:
        raise UsageError(f"--block-size {size} must be 2 to {longest}, the positions of the model")
    return size
