"""Encoder and decoder are each counted by their own number of layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import write_checkpoint

import specdiag

WIDTH = 64


def t5(encoder: int, decoder: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    state = {"shared.weight": rng.normal(size=(200, WIDTH))}
    for side, layers in (("encoder", encoder), ("decoder", decoder)):
        for i in range(layers):
            for role in "qkvo":
                state[f"{side}.block.{i}.layer.0.SelfAttention.{role}.weight"] = rng.normal(size=(WIDTH, WIDTH))
            state[f"{side}.block.{i}.layer.{1 + (side == 'decoder')}.DenseReluDense.wi.weight"] = rng.normal(
                size=(4 * WIDTH, WIDTH)
            )
    return {name: value.astype(np.float32) for name, value in state.items()}


@pytest.mark.parametrize(
    ("counts", "layers", "found"),
    [
        ({"num_layers": 4, "num_decoder_layers": 2}, (4, 2), []),
        ({"num_layers": 4}, (4, 4), []),
        ({"num_layers": 4, "num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2}, (4, 4), []),
        ({"encoder_layers": 4, "decoder_layers": 2, "num_hidden_layers": 4}, (4, 2), []),
        ({"num_layers": 4, "num_decoder_layers": 2}, (2, 4), [("decoder", 4, 2), ("encoder", 2, 4)]),
        ({"encoder_layers": 4, "decoder_layers": 2}, (4, 4), [("decoder", 4, 2)]),
    ],
)
def test_each_side_has_its_own_number(
    tmp_path: Path, counts: dict[str, int], layers: tuple[int, int], found: list[tuple[str, int, int]]
) -> None:
    config = {"model_type": "t5", "is_encoder_decoder": True, "d_model": WIDTH, "vocab_size": 200, **counts}
    audit = specdiag.audit(write_checkpoint(tmp_path / "m", t5(*layers), config))
    seen = [(f.module, f.value, f.threshold) for f in audit.findings if f.check == "layers"]
    assert sorted(seen, key=str) == found


def test_an_encoder_of_several_lists_of_layers_is_not_counted(tmp_path: Path) -> None:
    """As PP-DocLayoutV2 has them: encoder_layers counts one list, and another one stands beside it."""
    state = t5(1, 2)
    rng = np.random.default_rng(1)
    for i in range(6):
        for role in ("query", "key", "value"):
            values = rng.normal(size=(WIDTH, WIDTH)).astype(np.float32)
            state[f"reading_order.encoder.layer.{i}.attention.self.{role}.weight"] = values
    config = {"model_type": "t5", "is_encoder_decoder": True, "d_model": WIDTH, "vocab_size": 200}
    config |= {"encoder_layers": 1, "decoder_layers": 2}
    audit = specdiag.audit(write_checkpoint(tmp_path / "m", state, config))
    assert "layers" not in {f.check for f in audit.findings}
    assert audit.coverage.not_checked["layers"].startswith("several pieces")
