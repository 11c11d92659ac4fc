"""Layer numbers that no model has: figures and audits have a place for each layer up to the last one."""

from __future__ import annotations

import pytest
import torch
from msgspec.structs import replace

import specdiag
from specdiag.checkpoint.memory import from_state_dict
from specdiag.storage.plausibility import implausible


@pytest.mark.parametrize(("number", "layer"), [("99999", 99999), ("100000", None), ("100000000", None)])
def test_number_in_a_name(number: str, layer: int | None) -> None:
    (matrix,) = from_state_dict({f"model.layers.{number}.self_attn.q_proj.weight": torch.ones(8, 8)}).matrices
    assert (matrix.module.layer, matrix.module.role) == (layer, "q")


@pytest.mark.parametrize(("layer", "problem"), [(99_999, None), (100_000, "layer is 100000")])
def test_number_in_a_saved_row(layer: int, problem: str | None) -> None:
    (record,) = specdiag.analyze({"layers.0.q_proj.weight": torch.eye(8)}).records
    assert implausible(replace(record, layer=layer)) == problem
