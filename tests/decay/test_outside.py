"""Matrices that a plan leaves alone are counted, by `recommend` and by `analyze`."""

from __future__ import annotations

import pytest
import torch

import specdiag
from specdiag.checkpoint.memory import from_state_dict
from specdiag.views.sentences import left_over

BLOCK = {f"layers.0.self_attn.{role}_proj.weight": (64, 64) for role in "qkvo"}


def report(extra):
    random = torch.Generator().manual_seed(0)
    shapes = BLOCK | extra
    tensors = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    return specdiag.analyze(from_state_dict(tensors), cache=None)


@pytest.mark.parametrize(
    ("extra", "planned", "analysed"),
    [
        ({}, [], []),
        (
            {"embed_tokens.weight": (80, 64)},
            ["1 of 5 matrices takes no part: 1 embed."],
            ["1 of 5 matrices takes no part in decay plans: 1 embed."],
        ),
        (
            {"embed_tokens.weight": (80, 64), "layers.0.wizard.weight": (70, 64), "layers.0.witch.weight": (70, 64)},
            [
                "3 of 7 matrices take no part: 2 other, 1 embed.",
                "2 of them have names that no rule knows: layers.0.wizard.weight, layers.0.witch.weight.",
            ],
            [
                "2 matrices have names that no rule knows, analysed as 'other' (a role map names them): "
                "layers.0.wizard.weight, layers.0.witch.weight.",
                "3 of 7 matrices take no part in decay plans: 1 embed, 2 other.",
            ],
        ),
    ],
)
def test_what_takes_no_part_is_counted(extra, planned, analysed):
    found = report(extra)
    notes = specdiag.recommend(found).notes
    assert [note for note in notes if "no part" in note or "no rule knows" in note] == planned
    assert left_over(found.summary) == analysed
