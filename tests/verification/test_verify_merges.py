"""Merges: right ones are verified in every type, and each planted fault gets its own name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from merged_models import PLANTED, base_state, factors, merged, modules, save, save_adapter

import specdiag
from specdiag.verification.causes import ADVICE, SENTENCES
from specdiag.verification.records import CAUSES

TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("verify")
    state = base_state()
    pairs = factors(state)
    return folder, state, pairs, save(folder / "base", state), save_adapter(folder / "adapter", pairs)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("of_base", ["F32", "BF16"])
def test_a_right_merge_is_verified(tmp_path: Path, name: str, of_base: str) -> None:
    state = base_state()
    stored = {n: w.float().numpy() for n, w in save_and_read(tmp_path / "base", state, TYPES[of_base]).items()}
    pairs = factors(state)
    adapter = save_adapter(tmp_path / "adapter", pairs)
    model = save(tmp_path / "model", merged(stored, pairs), TYPES[name])
    found = specdiag.verify(tmp_path / "base", adapter, model)
    assert found.verdict == "verified", found.reason
    assert not found.faults
    updated = [check for check in found.tensors if check.updated]
    assert {check.name.removesuffix(".weight") for check in updated} == {*modules()}
    assert all(abs(check.strength - 1) < 0.01 for check in updated)
    assert {check.outcome for check in found.tensors} <= {"equal", "rounded", "within rounding"}


def save_and_read(folder, state, dtype):
    from safetensors.torch import load_file

    return load_file(save(folder, state, dtype) / "model.safetensors")


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_gets_its_name(made, tmp_path: Path, fault: str, name: str) -> None:
    _, state, pairs, base, adapter = made
    plant, cause, n = PLANTED[fault]
    found = specdiag.verify(base, adapter, save(tmp_path, plant(state, pairs), TYPES[name]))
    assert found.verdict == "not verified"
    assert [f.cause for f in found.faults].count(cause) == n, [(f.name, f.cause) for f in found.faults]
    if fault != "another base":
        assert len(found.faults) == n + 4 * (fault == "other modules"), [(f.name, f.cause) for f in found.faults]


@pytest.mark.parametrize("name", TYPES)
def test_a_merge_of_a_merge_is_applied_twice(made, tmp_path: Path, name: str) -> None:
    """Unlike a scale of twice the size, which rounds once."""
    _, state, pairs, base, adapter = made
    once = {
        n: w.float().numpy() for n, w in save_and_read(tmp_path / "once", merged(state, pairs), TYPES[name]).items()
    }
    found = specdiag.verify(base, adapter, save(tmp_path / "twice", merged(once, pairs), TYPES[name]))
    assert [f.cause for f in found.faults] == ["applied twice"] * 6
    assert all(check.strength == pytest.approx(2, abs=0.01) for check in found.tensors if check.updated)


def test_strengths_are_estimated(made, tmp_path: Path) -> None:
    """The case of the reference: a merge at four fifths of its scale."""
    _, state, pairs, base, adapter = made
    found = specdiag.verify(base, adapter, save(tmp_path, merged(state, pairs, 1.6), torch.bfloat16))
    for module in modules():
        check = found[f"{module}.weight"]
        w, x = state[f"{module}.weight"].astype("f8"), 2.0 * pairs[module][1] @ pairs[module][0]
        after = torch.from_numpy(w + 0.8 * x).to(torch.bfloat16).double().numpy()
        strength = np.vdot(after - w, x) / np.vdot(x, x)
        assert check.strength == pytest.approx(strength, abs=1e-4)
        assert check.residual == pytest.approx(np.linalg.norm(after - w - x) / np.linalg.norm(x), rel=1e-3)
        rest = np.linalg.norm(after - w - strength * x) / np.linalg.norm(after - w)
        assert check.unexplained == pytest.approx(rest, rel=1e-2)


@pytest.mark.parametrize("size", [0.003, 0.001, 0.0003])
def test_a_lossy_merge_is_replayed_and_said_to_be_lossy(tmp_path: Path, size: float) -> None:
    state = {n: w.to(torch.bfloat16).float().numpy() for n, w in as_tensors(base_state()).items()}
    pairs = factors(state, size)
    base, adapter = save(tmp_path / "base", state, torch.bfloat16), save_adapter(tmp_path / "a", pairs)
    found = specdiag.verify(base, adapter, save(tmp_path / "m", merged(state, pairs), torch.bfloat16))
    assert found.verdict == "verified", found.reason
    assert any("lossy in this storage" in note for note in found.notes)
    kept = np.mean([check.kept for check in found.tensors if check.updated])
    assert kept == pytest.approx({0.003: 0.93, 0.001: 0.55, 0.0003: 0.19}[size], abs=0.05), "as the reference measured"
    unchanged = specdiag.verify(base, adapter, base)
    assert [f.cause for f in unchanged.faults] == ["not applied"] * 6


def as_tensors(state):
    return {name: torch.from_numpy(value) for name, value in state.items()}


def test_an_update_below_the_rounding_cannot_be_told(tmp_path: Path) -> None:
    state = {n: w.to(torch.bfloat16).float().numpy() for n, w in as_tensors(base_state()).items()}
    state = {n: np.where(np.abs(w) < 0.01, np.float32(0.25), w) for n, w in state.items()}
    pairs = factors(state, 1e-7)
    base, adapter = save(tmp_path / "base", state, torch.bfloat16), save_adapter(tmp_path / "a", pairs)
    model = save(tmp_path / "m", merged(state, pairs), torch.bfloat16)
    found = specdiag.verify(base, adapter, model)
    assert found.verdict == "cannot be told"
    assert "smaller than the rounding" in found.reason
    assert not found.faults


def test_an_empty_adapter_cannot_be_told(tmp_path: Path) -> None:
    state = base_state()
    pairs = {m: (a, 0 * b) for m, (a, b) in factors(state).items()}
    base, adapter = save(tmp_path / "base", state), save_adapter(tmp_path / "a", pairs)
    found = specdiag.verify(base, adapter, base)
    assert (found.verdict, found.reason.split(":")[0]) == ("cannot be told", "the adapter changes nothing")


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_a_merge_in_another_type_is_named(made, tmp_path: Path, low: torch.dtype) -> None:
    _, state, pairs, base, adapter = made
    rounded = {n: torch.from_numpy(w).to(low).float().numpy() for n, w in merged(state, pairs).items()}
    found = specdiag.verify(base, adapter, save(tmp_path, rounded))
    assert found.verdict == "not verified"
    assert {f.cause for f in found.faults} == {"other dtype"}
    assert len(found.faults) == len(found.tensors)


def test_factors_and_product_in_bfloat16_are_right(tmp_path: Path) -> None:
    """As PEFT merges a model in bfloat16 whose adapter is in bfloat16 too."""
    state = as_tensors(base_state())
    pairs = factors(base_state())
    adapter = save_adapter(tmp_path / "a", pairs)
    base = save(tmp_path / "base", base_state(), torch.bfloat16)
    for how in ("product", "factors"):
        model = {name: w.to(torch.bfloat16) for name, w in state.items()}
        for module, (a, b) in pairs.items():
            a, b = torch.from_numpy(a), torch.from_numpy(b)
            if how == "factors":
                a, b = a.to(torch.bfloat16).double(), b.to(torch.bfloat16).double()
            delta = (2 * b @ a).to(torch.bfloat16) if how == "product" else 2 * b @ a
            model[f"{module}.weight"] = (model[f"{module}.weight"].double() + delta.double()).to(torch.bfloat16)
        found = specdiag.verify(
            base, adapter, save(tmp_path / how, {n: w.float().numpy() for n, w in model.items()}, torch.bfloat16)
        )
        assert found.verdict == "verified", found.reason
        arithmetics = {check.arithmetic for check in found.tensors if check.updated}
        assert arithmetics == {f"{how} cast to BF16"}


def test_every_fault_has_a_sentence_and_advice() -> None:
    assert set(SENTENCES) == set(ADVICE) == set(CAUSES)
