import hashlib

import numpy as np
import pytest
import torch

from specdiag.spectra.float_types import FLOAT_TYPES
from specdiag.spectra.living import living_shape
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


@pytest.mark.parametrize("place", [0, 1, 20, 39])
def test_one_value_keeps_a_row_and_a_column_alive_wherever_it_stands(place):
    w = np.full((1, 40, 40), -0.0, np.float32)
    w[0, place, 39 - place] = -1
    found = scan(w, FLOAT_TYPES["F32"])
    assert (found.n_dead_rows, found.n_dead_cols) == (39, 39)
    w = np.where(w == 0, 1e-9, w).astype(np.float32)
    assert living_shape(w, FLOAT_TYPES["F32"], 1.0) == (1, 1)
    w[0, :, 20] = 1
    assert living_shape(w, FLOAT_TYPES["F32"], 41.0) == (40, len({20, 39 - place}))


def test_a_digest_is_left_out_where_nobody_asks_for_it():
    assert scan(np.ones((1, 2, 2), np.float32), FLOAT_TYPES["F32"], with_digest=False).digest is None
