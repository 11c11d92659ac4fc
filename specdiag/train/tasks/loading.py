"""Loads the data of the task that a recipe names."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec

from specdiag.errors import UsageError
from specdiag.train.data.tokens import Data, load_data
from specdiag.train.recipe import Recipe
from specdiag.train.tasks.task import kind_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from specdiag.train.tasks.augment import Augment
    from specdiag.train.tasks.images import Images

LANGUAGE = ("causal-lm", "masked-lm")
"""Tasks whose examples are blocks of tokens."""
_TRAIN = "train.bin"
_LONGEST_BLOCK = 1024
_AFTER_PADDING = (
    "camembert", "data2vec-text", "esm", "ibert", "longformer", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
"""Model types whose positions begin after the padding token's number: RoBERTa has 514 and takes 512 tokens."""
_SIDE = 224
"""Side of images in pixels for models whose configuration does not have it."""


def load_task(
    recipe: Recipe, *, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None, seed: int, cache: Path
) -> Data:
    """Load the data for the task of a recipe.

    Args:
        recipe: recipe with task, data and block size.
        config: configuration of the model, for its vocabulary and positions.
        tokenizer: tokenizer of the model; None for bytes.
        seed: seed of the run.
        cache: folder that keeps tokens for the next start.

    Raises:
        UsageError: the data cannot be used for the task.
        SourceError: the data is missing or damaged.
    """
    kind = kind_of(recipe.task)
    if recipe.eval_data and kind not in LANGUAGE:
        raise UsageError(
            f"eval_data= is for causal-lm and masked-lm, and the task is {recipe.task}, which holds out the files or "
            "the split called validation in data=: leave it out"
        )
    if recipe.columns and kind not in ("glue", "classification"):
        raise UsageError(f"columns= is for texts with labels, and the task is {recipe.task}: leave it out")
    if kind == "images":
        from specdiag.train.tasks.images import EpochCallback, load_images

        side = getattr(config, "image_size", None) or _SIDE
        data = load_images(recipe.data, size=int(side), augment=cast("Augment", recipe.augment), seed=seed)
        return dataclasses.replace(data, callbacks=(EpochCallback(cast("Images", data.train)),))
    size = block_size(recipe, config)
    if kind in ("glue", "classification"):
        from specdiag.train.tasks.glue import load_classification

        task = recipe.task.removeprefix("glue/")
        columns = recipe.columns or None
        return load_classification(task, recipe.data, tokenizer=tokenizer, max_length=size, seed=seed, columns=columns)
    if kind == "masked-lm":
        from specdiag.train.tasks.masked import load_masked as load
    else:
        load = load_data
    return load(
        recipe.data,
        tokenizer=tokenizer,
        vocabulary=int(config.vocab_size),
        block_size=size,
        seed=seed,
        cache=cache,
        max_tokens=recipe.max_tokens or None,
        eval_paths=recipe.eval_data,
    )


def with_validation_file(recipe: Recipe, notes: list[str]) -> Recipe:
    """Take nanoGPT's val.bin as held-out data where it lies beside train.bin, unless the recipe names some.

    Args:
        recipe: recipe whose data may be train.bin, or the one folder with both files.
        notes: list to which a sentence is added if val.bin is taken.

    Returns:
        The recipe with both files named, or as it was.
    """
    if recipe.eval_data or len(recipe.data) != 1 or kind_of(recipe.task) not in LANGUAGE:
        return recipe
    given = Path(recipe.data[0])
    train = given / _TRAIN if given.is_dir() else given
    held_out = train.with_name("val.bin")
    if train.name != _TRAIN or not train.is_file() or not held_out.is_file():
        return recipe
    notes.append(f"{held_out} lies beside {_TRAIN}, as nanoGPT leaves it: the held-out blocks are of that file.")
    return msgspec.structs.replace(recipe, data=(str(train),), eval_data=(str(held_out),))


def reads_text(recipe: Recipe) -> bool:
    """True if the data of a language model is text that must be tokenized."""
    return kind_of(recipe.task) == "causal-lm" and not reads_tokens(recipe)


def reads_tokens(recipe: Recipe) -> bool:
    """True if the data is one file of tokens, which does not contain its vocabulary."""
    return len(recipe.data) == 1 and Path(recipe.data[0]).suffix == ".bin"


def vocabulary_of(config: PreTrainedConfig) -> int | None:
    """Return the size of a model's vocabulary; None if it has none."""
    size = getattr(config, "vocab_size", None)
    return size if isinstance(size, int) else None


def block_size(recipe: Recipe, config: PreTrainedConfig) -> int:
    """Return the tokens of a block: those of the recipe, else as many as the model takes, at most 1024.

    Args:
        recipe: recipe with a block size, or 0.
        config: configuration of the model.

    Raises:
        UsageError: the block size does not fit the model.
    """
    longest = _positions(config)
    size = recipe.block_size or min(longest, _LONGEST_BLOCK)
    if size < 2 or size > longest:
        raise UsageError(f"block_size={size} must be 2 to {longest}, the positions of the model")
    return size


def _positions(config: PreTrainedConfig) -> int:
    positions = int(getattr(config, "max_position_embeddings", None) or _LONGEST_BLOCK)
    if getattr(config, "model_type", "") in _AFTER_PADDING:
        return positions - int(config.pad_token_id or 0) - 1
    return positions
