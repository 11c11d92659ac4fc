"""Adapters that do not fit their base or their own settings are refused, and the reason is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from adapter_files import ATTENTION, LORA, QUERY, Arrays, lora, random, write
from models import write_checkpoint

from specdiag.analysis.source import open_source
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        (lora("model.layers.7.self_attn.q_proj", 96, 64),
         r"adapts 'model.layers.7.self_attn.q_proj' \(96x64\), which .*base does not hold"),
        (lora(QUERY, 96, 32), "by a matrix 96x32, and 'model.layers.0.self_attn.q_proj.weight' in .*base is 96x64"),
        (lora("self_attn.q_proj", 96, 64), "'self_attn.q_proj.weight' may be model.layers.0.* or model.layers.1"),
        (lora(QUERY, 96, 64) | lora("model.layers.0.mlp.experts", 96, 32),
         "cannot be applied whole, for .*experts.lora_A.weight and 1 more .update of stacked experts"),
        ({"base_model.model.x.lora_A.weight": random(8, 4)}, "half of an update"),
        (lora(QUERY, 96, 64) | {f"base_model.model.{QUERY}.lora_magnitude_vector": random(64)},
         "lora_magnitude_vector' has 64 values and not 96"),
        ({"base_model.model.x.lora_A.weight": random(8, 4), "base_model.model.x.lora_B.weight": random(4, 7)},
         "factors of 'x' have the shapes 4x7 and 8x4, which do not multiply"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path: Path, tensors: Arrays, sentence: str) -> None:
    base = write_checkpoint(tmp_path / "base", {f"{ATTENTION.format(i, 'q')}.weight": random(96, 64) for i in (0, 1)})
    with pytest.raises(SourceError, match=sentence) as error:
        open_checkpoint(write(tmp_path, tensors), base=base)
    assert "\n" not in str(error.value)


def test_rank_and_config_must_agree(tmp_path: Path) -> None:
    write(tmp_path, lora(QUERY, 96, 64, r=4), LORA)
    said = "factors of rank 4, and adapter_config.json says 8"
    with pytest.raises(SourceError, match=rf"contradicts itself: 'model.*q_proj' has {said}; fetch or save"):
        open_source(tmp_path)
    base = write_checkpoint(tmp_path / "base", {f"{QUERY}.weight": random(96, 64)})
    with pytest.raises(SourceError, match=rf"cannot be applied whole, .*{said}.*fetch or save"):
        open_source(tmp_path, base=base)
    write(tmp_path, lora(QUERY, 96, 64, r=4), LORA | {"rank_pattern": {"(": 4}})
    with pytest.raises(
        SourceError,
        match=r"'\(', which cannot be followed \(no regular expression: .*write the names of the modules instead",
    ):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("method", ["pissa", "pissa_niter_4", "olora", "loftq"])
def test_initialisations_that_move_the_base(tmp_path: Path, method: str) -> None:
    base = write_checkpoint(tmp_path / "base", {f"{QUERY}.weight": random(96, 64)})
    write(tmp_path, lora(QUERY, 96, 64), LORA | {"init_lora_weights": method})
    with pytest.raises(SourceError, match=r"which changes W too: W \+ delta would count that part twice"):
        open_checkpoint(tmp_path, base=base)
    assert any("moves a part of W into the factors" in note for note in open_checkpoint(tmp_path).notes)
