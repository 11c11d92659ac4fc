"""Real checkpoints: what is found in them is true, and rounding and fine-tuning make no faults."""

from __future__ import annotations

import pytest
import torch
from audited_models import found

import specdiag


@pytest.mark.parametrize(
    ("asset_name", "file", "expected"),
    [
        # Its pooler is as BERT initialises it (RMS 0.0200, bias exactly 0): masked language modelling does not use it.
        ("rxnmapper", None, {("random", "albert.pooler.weight")}),
        ("chat-spx", None, set()),
        ("fracast", None, {("unrecognised", "core.block.pw.weight"), ("unrecognised", "core.scale.to_gb.weight")}),
        ("fracast", "model.safetensors", {("not_audited", "model.int8.safetensors"), ("unrecognised", "core.block.pw.weight"), ("unrecognised", "core.scale.to_gb.weight")}),
        ("fracast", "model.int8.safetensors", {("not_audited", "model.safetensors"), ("unrecognised", "core.block.pw.weight"), ("unrecognised", "core.scale.to_gb.weight")}),
    ],
)  # fmt: skip
def test_real_checkpoints(asset, asset_name, file, expected):
    audit = specdiag.audit(asset(asset_name), file=file, device="cpu")
    assert found(audit) == expected


def test_the_pooler_that_minilm_never_used(minilm):
    """RMS 0.0091 (0.02 when initialised, decayed since), kurtosis 2.98, bias exactly 0: mean pooling does without it."""
    audit = specdiag.audit(minilm, device="cpu")
    assert {(f.check, f.module) for f in audit.findings if f.check != "reference_range"} == {
        ("random", "pooler.dense.weight")
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_to_half_precision_makes_no_faults(rxnfp, dtype):
    """In bfloat16 up to 9 % of the singular values of queries and keys lie below the rounding; float16 has denormals."""
    path = rxnfp / "bert_pretrained" / "pytorch_model.bin"
    state = torch.load(path, map_location="cpu", weights_only=True)
    audit = specdiag.audit({key: value.to(dtype) for key, value in state.items()}, device="cpu")
    assert not audit.at_least("warn")


def test_fine_tuning_keeps_all_but_the_pooler(rxnfp):
    audit = specdiag.audit(rxnfp / "bert_ft", baseline=rxnfp / "bert_pretrained", device="cpu")
    assert {f.module for f in audit.at_least("warn")} == {"pooler.dense.weight"}
    assert {f.check for f in audit.findings} == {
        "baseline_alpha", "baseline_square_alpha", "baseline_norm", "baseline_stable_rank", "baseline_changed",
        "baseline_head",
    }  # fmt: skip
