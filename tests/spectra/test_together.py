"""Small matrices measured together have the bits of each alone, under every kernel."""

import numpy as np
import pytest
import torch

import specdiag
from specdiag.analysis import measuring
from specdiag.errors import SourceError
from specdiag.spectra.eigenvalues import spectrum
from specdiag.spectra.float_types import FLOAT_TYPES
from specdiag.spectra.scan import scan, scans
from specdiag.spectra.together import spectra

SHAPES = ((1, 1, 1), (1, 1, 6), (1, 2, 2), (1, 3, 7), (1, 7, 3), (1, 17, 17), (9, 5, 3), (1, 49, 60), (1, 60, 48))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_spectra_have_the_bits_of_each_alone(shape, dtype):
    stacks = np.random.default_rng(0).standard_normal((20, *shape)).astype(np.float32)
    settings = specdiag.analyze({"a.weight": noise(4, 4)}, dtype=dtype).settings
    kind = FLOAT_TYPES["F32"]
    found = spectra(stacks, kind, scans(stacks, kind), settings)
    for together, stack in zip(found, stacks, strict=True):
        alone = spectrum(stack.copy(), kind, dtype=dtype)
        assert np.array_equal(together.eigenvalues, alone.eigenvalues)
        assert np.array_equal(together.slices, alone.slices)
        assert (together.frobenius2, together.floor, together.n_zero) == (
            alone.frobenius2,
            alone.floor,
            alone.n_zero,
        )


@pytest.mark.parametrize("name", FLOAT_TYPES)
def test_scans_are_those_of_each_alone(name):
    kind = FLOAT_TYPES[name]
    stacks = kind.narrow(np.random.default_rng(0).standard_normal((9, 1, 4, 6)))
    odd = (0.0, float("nan"), float("inf"), kind.max, kind.tiny / 2)
    for stack, value in zip(stacks, odd, strict=False):
        stack[0, 1, :] = kind.narrow(np.full(6, value))
    assert scans(stacks, kind) == [scan(stack, kind) for stack in stacks]


def test_rows_do_not_depend_on_their_company(monkeypatch):
    weights = _awkward()
    sizes: list[int] = []
    monkeypatch.setattr(measuring, "spectra", lambda stacks, *rest: sizes.append(len(stacks)) or spectra(stacks, *rest))
    together = specdiag.analyze(weights, jobs=1)
    assert max(sizes) >= 7
    assert sum(sizes) == len(weights)
    monkeypatch.setattr(measuring, "_TINY_VALUES", 0)
    alone = specdiag.analyze(weights, jobs=1)
    assert sum(sizes) == len(weights)
    assert {record.status for record in together} >= {"zero", "nonfinite", "too_few"}
    assert together.records == alone.records
    for key in (record.key for record in together if record.status != "nonfinite"):
        assert np.array_equal(together.eigenvalues(key), alone.eigenvalues(key))


def test_one_that_cannot_be_read_costs_no_other(monkeypatch):
    weights = {f"model.layers.{i}.self_attn.q_proj.weight": noise(2, 2, seed=i) for i in range(4)}
    lost = "model.layers.2.self_attn.q_proj.weight"

    def read(tensor, index):
        if tensor.name == lost:
            raise SourceError("the share is gone")
        return tensor.read(index)

    whole = specdiag.analyze(weights)
    monkeypatch.setattr(measuring, "read_once", read)
    report = specdiag.analyze(weights)
    assert report[lost].status == "failed"
    assert [r for r in report if r.key != lost] == [r for r in whole if r.key != lost]


def noise(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def _awkward():
    weights = {}
    for i, kind in enumerate((torch.float32, torch.float64, torch.float16, torch.bfloat16)):
        for j, shape in enumerate(((2, 2), (3, 7), (40, 60), (12, 4, 3, 3), (2, 1500))):
            for k, change in enumerate((lambda w: w, torch.zeros_like, torch.ones_like, _dead, _bad, _huge, _faint)):
                values = change(noise(*shape, seed=100 * i + 10 * j + k))
                weights[f"model.layers.{i}.m{j}.n{k}.weight"] = values.to(kind)
    return weights


def _dead(values):
    values[0] = 0
    return values


def _bad(values):
    values[0, 0] = float("nan")
    return values


def _huge(values):
    return values * 1e20


def _faint(values):
    return values * 1e-25
