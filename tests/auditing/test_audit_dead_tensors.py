"""Norms that pass nothing on, and integers where weights are expected."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from audited_models import LAYERS, found, llama, name, save
from models import PLACES

import specdiag
from specdiag.auditing.reference import Reference
from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Observation, default_checks
from specdiag.auditing.values import values

FINAL = "model.norm.weight"
GAINS = [f"model.layers.{layer}.input_layernorm.weight" for layer in range(LAYERS)]


def test_gains_of_zero_in_every_layer(tmp_path):
    state = llama()
    audit = specdiag.audit(save(tmp_path / "one", state | {GAINS[3]: np.zeros_like(state[FINAL])}), device="cpu")
    assert not found(audit), "one layer that is switched off is a design"
    dead = state | {gain: np.zeros_like(state[FINAL]) for gain in GAINS}
    assert found(specdiag.audit(save(tmp_path / "all", dead), device="cpu")) == {
        ("zero_gains", "model.layers.*.input_layernorm.weight")
    }
    last = state | {FINAL: np.zeros_like(state[FINAL])}
    assert found(specdiag.audit(save(tmp_path / "last", last), device="cpu")) == {("zero_gains", FINAL)}
    unknown = state | {FINAL: np.full_like(state[FINAL], np.nan)}
    assert found(specdiag.audit(save(tmp_path / "nan", unknown), device="cpu")) == {("nonfinite", FINAL)}


@pytest.mark.parametrize(
    ("kind", "reason", "check"),
    [
        ("llama", None, "zero_final_norm"),
        ("gemma2", None, "zero_gains"),
        ("llama", "unknown type", "zero_gains"),
    ],
)
def test_a_final_norm_of_zeros_fails_where_it_is_a_factor(kind, reason, check):
    others = (
        Observation("zero_gains", FINAL, "all zero"),
        Observation("zero_gains", "model.layers.*.a.weight", "all zero"),
    )
    report = cast("Any", SimpleNamespace(records=(), skipped=()))
    subject = Subject(
        report, default_checks(), others=others, config={"model_type": kind}, reference=Reference(reason=reason)
    )
    assert [o.check for o in values(subject)] == [check, "zero_gains"]


@pytest.mark.parametrize("dtype", ["i8", "?"])
def test_integers_under_the_name_of_a_weight_are_not_passed_over(tmp_path, dtype):
    state, key = llama(), name(2, PLACES[0])
    state[key] = (10 * state[key]).astype(dtype)
    checks = {pair for pair in found(specdiag.audit(save(tmp_path / "m", state), device="cpu")) if pair[1] == key}
    assert checks == {("unread", key)}
    mask = llama() | {"model.layers.2.self_attn.causal_mask": np.tril(np.ones((64, 64), dtype))}
    assert not found(specdiag.audit(save(tmp_path / "mask", mask), device="cpu"))


@pytest.mark.parametrize(("dtype", "factor", "checks"), [("f4", 1e25, {"huge"}), ("f2", 6e4, {"large"})])
def test_matrices_and_gains_beyond_what_types_hold(tmp_path, dtype, factor, checks):
    down = [name(layer, "mlp.down_proj") for layer in range(LAYERS)]
    state = {key: v.astype(dtype) for key, v in llama().items()}
    big = state | {key: np.sign(state[key]) * np.asarray(factor, dtype) for key in down}
    audit = specdiag.audit(save(tmp_path / "down", big), device="cpu")
    assert {pair for pair in found(audit) if pair[0] in ("huge", "large")} == {(c, key) for c in checks for key in down}
    assert audit.verdict == ("fail" if "huge" in checks else "warn")
    gains = state | {key: np.full_like(state[key], min(factor, 6e4)) for key in GAINS}
    assert found(specdiag.audit(save(tmp_path / "gains", gains), device="cpu")) == {("large", key) for key in GAINS}
