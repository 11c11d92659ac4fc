"""Adapters under the names that transformers 5 gives an encoder's modules, over bases with the names of version 4."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from adapter_files import LORA, dense, lora, random, write
from models import write_checkpoint

import specdiag
from specdiag.checkpoint.adapters.match import Names
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError

OLD = "vit.encoder.layer.{}.attention.attention.{}"
NEW = "vit.layers.{}.attention.{}_proj"


@pytest.mark.parametrize(
    ("adapted", "held"),
    [
        (NEW.format(0, "q"), OLD.format(0, "query")),
        (OLD.format(0, "query"), NEW.format(0, "q")),
        (NEW.format(1, "v"), "encoder.layer.1.attention.attention.value"),
        ("layers.1.attention.k_proj", OLD.format(1, "key")),
        ("vit.layers.2.attention.o_proj", "vit.encoder.layer.2.attention.output.dense"),
        ("vit.layers.2.mlp.fc1", "vit.encoder.layer.2.intermediate.dense"),
        ("vit.layers.2.mlp.fc2", "vit.encoder.layer.2.output.dense"),
    ],
)
def test_names_of_both_versions_are_found(adapted: str, held: str) -> None:
    names = Names([f"{held}.weight", "vit.layernorm.weight", "vit.encoder.layer.7.attention.attention.query.weight"])
    assert names.find(f"{adapted}.weight") == f"{held}.weight"


@pytest.mark.parametrize(
    ("adapted", "held"),
    [
        (NEW.format(0, "q"), OLD.format(0, "key")),
        (NEW.format(0, "q"), OLD.format(1, "query")),
        (NEW.format(0, "q"), "bert.encoder.layer.0.attention.self.query"),
        ("decoder.layers.0.attention.q_proj", "encoder.layer.0.attention.attention.query"),
        ("vit.layers.2.mlp.fc2", "vit.encoder.layer.2.attention.output.dense"),
        ("model.layers.0.self_attn.q_proj", "vit.encoder.layer.0.attention.attention.query"),
    ],
)
def test_another_module_or_model_is_not_taken_for_it(adapted: str, held: str) -> None:
    assert Names([f"{held}.weight"]).find(f"{adapted}.weight") is None


def test_such_an_adapter_is_applied_and_audited_and_its_merge_verified(tmp_path: Path) -> None:
    weights = {f"{OLD.format(i, p)}.weight": random(64, 64, seed=i) for i in range(2) for p in ("query", "value")}
    tensors = {k: v for i in range(2) for p in "qv" for k, v in lora(NEW.format(i, p), 64, 64, seed=i).items()}
    config = {"architectures": ["ViTForImageClassification"], "model_type": "vit", "num_attention_heads": 4}
    base = write_checkpoint(tmp_path / "base", weights, config)
    adapter = write(tmp_path / "adapter", tensors, LORA | {"target_modules": ["q_proj", "v_proj", "query", "value"]})
    merged = {
        f"{OLD.format(i, old)}.weight": weights[f"{OLD.format(i, old)}.weight"]
        + dense(tensors, NEW.format(i, new), 2.0).astype("f4")
        for i in range(2)
        for old, new in (("query", "q"), ("value", "v"))
    }
    own = next(m for m in open_checkpoint(adapter, base=base).matrices if m.name == f"{OLD.format(0, 'query')}.weight")
    np.testing.assert_allclose(own.load().numpy(), merged[own.name], rtol=1e-5, atol=1e-5)
    found = specdiag.verify(base, adapter, write_checkpoint(tmp_path / "merged", merged, config))
    assert found.verdict == "verified", found.reason
    assert {f.cause for f in specdiag.verify(base, adapter, base).faults} == {"not applied"}
    audit = specdiag.audit(adapter, base=base, device="cpu")
    assert "adapter_lost" not in {f.check for f in audit.findings}
    other = write(tmp_path / "other", lora("deit.layers.0.attention.q_proj", 64, 64), LORA)
    with pytest.raises(SourceError, match=r"adapts 'deit\.layers\.0\.attention\.q_proj'.* does not hold"):
        open_checkpoint(other, base=base)
