"""Design of benchmarks/study.py, fixed before the first run: sizes, arms, tuning, seeds. See docs/study.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from specdiag.train.recipe import load_recipe

TUNING_SEEDS = (100, 101)
"""Seeds that choose lr and base decay; no comparison uses them."""
TEST_SEEDS = (0, 1, 2, 3, 4)
TUNING_TOTAL = 2.0
"""Sum of lr x decay over a run, while the lr is chosen."""
TOTALS = (1.0, 2.0, 4.0, 8.0)
"""Sums of lr x decay that a grid begins with, unless its size has others; factors of 2 follow while an edge is best."""
MOST_EXTENSIONS = 3
"""Values that a grid may gain on either side."""
S1, S2 = 0.67, 3.0
REMEASURED = 20
"""Measurements of the exponents in a run, evenly spaced; the first is before step 0, as in the released code."""
MARGIN = 0.010
"""Nats a token below which a difference counts as none: ln(22.99/22.76), AlphaDecay's own gain at 135 M (table 2)."""
CONFIDENCE = 0.95
"""Probability that all headline intervals hold together (Bonferroni)."""


@dataclass(frozen=True, slots=True)
class Size:
    """A model, its data and the length of its run.

    Attributes:
        config: content of config.json.
        block: tokens of a block.
        batch: blocks of a step.
        micro: blocks of one forward pass.
        tokens_per_parameter: tokens trained on over weights; sets the steps.
        lrs: peak lrs that the choice begins with.
        totals: sums of lr x decay that the choice of the base decay begins with.
        tokenizer: hub id; empty for bytes.
        data: paths or datasets of the hub; empty for Python's standard library.
        max_tokens: of the data; 0 for all.
    """

    config: Mapping[str, object]
    block: int
    batch: int
    micro: int
    tokens_per_parameter: float
    lrs: tuple[float, ...]
    totals: tuple[float, ...] = TOTALS
    tokenizer: str = ""
    data: tuple[str, ...] = ()
    max_tokens: int = 0


def _llama(width: int, inner: int) -> dict[str, object]:
    return {
        "model_type": "llama", "vocab_size": 256, "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 128, "tie_word_embeddings": False,
    }  # fmt: skip


SIZES: dict[str, Size] = {
    "0.3m": Size(_llama(80, 216), 128, 16, 16, 20, (2e-3, 4e-3, 8e-3)),
    "1m": Size(_llama(144, 384), 128, 16, 16, 5, (2e-3, 4e-3, 8e-3), (0.25, 0.5, 1.0, 2.0)),
}
HEADLINE_SIZES = tuple(SIZES)


def size_of(name: str) -> Size:
    """A size of this study, or the preset `llama-NAME` for a GPU.

    Raises:
        UsageError: there is neither.
    """
    if name in SIZES:
        return SIZES[name]
    recipe = load_recipe(f"llama-{name}")
    settings = recipe.settings
    micro = settings["per_device_train_batch_size"]
    lr = settings["learning_rate"]
    return Size(
        recipe.model, recipe.block_size, micro * settings["gradient_accumulation_steps"], micro, 20,
        (lr / 2, lr, 2 * lr), tokenizer=recipe.tokenizer, data=recipe.data, max_tokens=recipe.max_tokens,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Arm:
    """A contender.

    Attributes:
        title: for the table.
        rule: key of `study_arms.RULES`.
        tuned_as: arm whose tuned base decay it takes; its own name if it is tuned itself.
        seeds: test seeds.
        linear: lr falls linearly to 0, instead of by a cosine to a tenth.
    """

    title: str
    rule: str
    tuned_as: str
    seeds: tuple[int, ...] = TEST_SEEDS
    linear: bool = False


BEST_UNIFORM, PUBLISHED, PRESERVED, NULL, REVERSED = "uniform", "alphadecay", "preserved", "null", "reversed"
HEADLINE: dict[str, Arm] = {
    BEST_UNIFORM: Arm("uniform, its best base", "uniform", BEST_UNIFORM),
    PUBLISHED: Arm("AlphaDecay as published, its best base", "alphadecay", PUBLISHED),
    PRESERVED: Arm("AlphaDecay at the total decay of uniform", "preserved", BEST_UNIFORM),
    NULL: Arm("plan of random matrices, at that total", "null", BEST_UNIFORM),
    REVERSED: Arm("AlphaDecay reversed, at that total", "reversed", BEST_UNIFORM),
}
_FEW = TEST_SEEDS[:3]
_ROLES = ("q", "k", "v", "o", "gate", "up", "down")
EXPLORATORY: dict[str, Arm] = {
    "none": Arm("no decay", "none", BEST_UNIFORM, _FEW),
    "square": Arm("AlphaDecay on square_alpha, at that total", "square", BEST_UNIFORM, _FEW),
    "layer": Arm("AlphaDecay on the mean of a layer, at that total", "layer", BEST_UNIFORM, _FEW),
    "adamc": Arm("AdamC", "adamc", "adamc", _FEW),
    "awd": Arm("AWD", "awd", "awd", _FEW),
    "adadecay": Arm("AdaDecay", "adadecay", BEST_UNIFORM, _FEW),
    "llr": Arm("LLR (layer-wise lr), decay of uniform", "llr", BEST_UNIFORM, _FEW),
    "llr-alphadecay": Arm("LLR with AlphaDecay at that total", "llr-preserved", BEST_UNIFORM, _FEW),
    "uniform-linear": Arm("uniform, lr linear to 0", "uniform", BEST_UNIFORM, _FEW, linear=True),
    "preserved-linear": Arm("AlphaDecay at that total, lr linear to 0", "preserved", BEST_UNIFORM, _FEW, linear=True),
    **{f"{role} x 3": Arm(f"decay of {role} x 3", f"role:{role}", BEST_UNIFORM, TEST_SEEDS[:2]) for role in _ROLES},
}
ARMS = HEADLINE | EXPLORATORY
COMPARISONS = (
    ("H1", PUBLISHED, BEST_UNIFORM, "AlphaDecay as published against the best uniform decay"),
    ("H2", PRESERVED, BEST_UNIFORM, "which module gets how much, at equal total decay"),
    ("H3", PRESERVED, NULL, "measured exponents against those of random matrices of the same shapes"),
    ("H4", PRESERVED, REVERSED, "the direction of the rule against its reverse"),
)
"""Name, arm, rival, question."""
