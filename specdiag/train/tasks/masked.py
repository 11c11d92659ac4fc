"""Masked language modelling on packed blocks. The content of a batch decides which of its tokens are hidden.

The collator of transformers draws from torch's global generator, and the Trainer fetches a batch ahead of the step. So
a run that continues would hide other tokens than one that was not interrupted. Here the generator is seeded by the seed
of the run and the blocks of a batch in their order, which the Trainer's sampler repeats on resuming and changes with
every epoch.

Held-out blocks are masked by their content alone: the same at every evaluation, for every seed and run. In each, the
same number of tokens is hidden, so that a mean over batches, weighted by their blocks, is a mean over tokens.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import torch
from torch.utils.data import Dataset

from specdiag.errors import MissingExtraError, UsageError
from specdiag.train.data.tokens import Data, Examples, load_data

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

try:
    from transformers import DataCollatorForLanguageModeling
except ImportError as error:
    raise MissingExtraError("training needs transformers: pip install transformers accelerate") from error

PROBABILITY = 0.15
"""Probability that a token is hidden, as in BERT: 80 % become the mask token, 10 % another one, 10 % stay."""

Tensors = dict[str, torch.Tensor]


def load_masked(
    paths: Sequence[str | Path],
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    vocabulary: int,
    block_size: int,
    seed: int,
    cache: Path,
    max_tokens: int | None = None,
    eval_paths: Sequence[str | Path] = (),
    probability: float = PROBABILITY,
) -> Data:
    """Load blocks as `load_data` packs them, for training on hidden tokens.

    Args:
        paths: files, folders, and datasets on the hub.
        tokenizer: tokenizer of the checkpoint, which must have a mask token.
        vocabulary: size of the model's vocabulary.
        block_size: tokens of a block.
        seed: seed of the run.
        cache: folder that keeps the tokens for the next start.
        max_tokens: largest number of tokens to take, in stored order; None for all.
        eval_paths: held-out data, as for `load_data`.
        probability: probability that a token is hidden.

    Raises:
        UsageError: the tokenizer has no mask token or does not fit the model, or as for `load_data`.
        SourceError: as for `load_data`.
        ComputationError: as for `load_data`.
    """
    if tokenizer is None or tokenizer.mask_token_id is None:
        problem = "there is no tokenizer" if tokenizer is None else f"{type(tokenizer).__name__} has no mask token"
        raise UsageError(f"masked language modelling needs a tokenizer with a mask token, and {problem}")
    if len(tokenizer) > vocabulary:
        raise UsageError(f"the tokenizer has {len(tokenizer)} tokens and the model {vocabulary}: it is another model's")
    if not 0 < probability < 1:
        raise UsageError(f"a token is hidden with a probability between 0 and 1, not {probability}")
    data = load_data(
        paths,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        block_size=block_size,
        seed=seed,
        cache=cache,
        max_tokens=max_tokens,
        eval_paths=eval_paths,
    )
    return dataclasses.replace(
        data,
        train=_Inputs(data.train),
        held_out=_Hidden(data.held_out, tokenizer, probability),
        fingerprint=msgspec.structs.replace(data.fingerprint, task=f"masked {probability:g}"),
        collate=_Collate(tokenizer, probability, seed),
    )


class _Inputs(Dataset[Tensors]):
    """Blocks without labels, in which the collator hides tokens."""

    def __init__(self, blocks: Examples) -> None:
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> Tensors:
        return {"input_ids": cast("torch.Tensor", self.blocks[index]["input_ids"])}


class _Hidden(Dataset[Tensors]):
    """Blocks in which a fixed number of tokens is hidden; special tokens only if there are no others."""

    def __init__(self, blocks: Examples, tokenizer: Any, probability: float) -> None:
        self.blocks, self.probability = blocks, probability
        self.special = torch.tensor(tokenizer.all_special_ids, dtype=torch.long)
        self.hide = DataCollatorForLanguageModeling(tokenizer, mlm_probability=1.0)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> Tensors:
        block = cast("torch.Tensor", self.blocks[index]["input_ids"])
        self.hide.generator = generator = _generator(0, block)
        order = torch.rand(len(block), generator=generator) + torch.isin(block, self.special)
        kept = torch.ones(len(block), dtype=torch.bool)
        kept[order.argsort()[: max(1, round(self.probability * len(block)))]] = False
        inputs, labels = self.hide.torch_mask_tokens(block[None].clone(), special_tokens_mask=kept[None])
        return {"input_ids": inputs[0], "labels": labels[0]}


class _Collate:
    """Stacks blocks of one length, and hides tokens in those without labels."""

    def __init__(self, tokenizer: Any, probability: float, seed: int) -> None:
        self.hide, self.seed = DataCollatorForLanguageModeling(tokenizer, mlm_probability=probability), seed

    def __call__(self, examples: list[Tensors]) -> Tensors:
        batch = {name: torch.stack([example[name] for example in examples]) for name in examples[0]}
        if "labels" not in batch:
            self.hide.generator = _generator(self.seed, batch["input_ids"])
            batch["input_ids"], batch["labels"] = self.hide.torch_mask_tokens(batch["input_ids"])
        return batch


def _generator(seed: int, tokens: torch.Tensor) -> torch.Generator:
    """Return a generator that is seeded by a seed and tokens in their order."""
    digest = hashlib.sha256(f"{seed} ".encode() + tokens.numpy().tobytes()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
