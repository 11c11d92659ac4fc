import hashlib

import numpy as np
import pytest
import torch

from specdiag.spectra.float_types import FLOAT_TYPES
from specdiag.spectra.scan import scan


@pytest.mark.parametrize("name", FLOAT_TYPES)
def test_planted_values_are_counted(name, monkeypatch):
    monkeypatch.setattr("specdiag.spectra.scan._BLOCK_VALUES", 100)
    kind = FLOAT_TYPES[name]
    values = torch.from_numpy(np.random.default_rng(0).uniform(0.5, 1.0, (2, 40, 60)))
    values[:, 3], values[:, :, 7] = 0, 0
    values[0, 0, 0], values[1, 1, 1] = float("nan"), -float("inf")
    values[0, 5, 5] = -kind.max
    values[0, 6, 6], values[1, 6, 6] = kind.tiny / 4, -kind.tiny / 2
    types = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    raw = values.to(types[name])
    raw = (raw.view(torch.uint16) if name == "BF16" else raw).numpy()
    found = scan(raw, kind)
    assert (found.n_nonfinite, found.n_denormal, found.n_saturated) == (2, 2, 1)
    assert (found.n_dead_rows, found.n_dead_cols) == (1, 1)
    assert found.largest == kind.max
    assert found.digest == hashlib.sha256(raw.tobytes()).hexdigest()


def test_ordinary_weights_are_clean():
    w = np.random.default_rng(0).standard_normal((1, 300, 300)).astype(np.float32)
    found = scan(w, FLOAT_TYPES["F32"])
    assert found.largest == np.abs(w).max()
    assert (found.n_nonfinite, found.n_denormal, found.n_saturated, found.n_dead_rows, found.n_dead_cols) == (0,) * 5


def test_a_row_dead_in_one_slice_only_is_alive():
    w = np.ones((2, 5, 4), np.float32)
    w[0, 2], w[:, :, 1] = 0, 0
    found = scan(w, FLOAT_TYPES["F32"])
    assert (found.n_dead_rows, found.n_dead_cols) == (0, 1)
