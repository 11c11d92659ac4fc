"""Matrices that look untrained, and traps that randomising shows."""

from __future__ import annotations

import numpy as np
import torch
from audited_models import found, wide

import specdiag


def test_matrices_like_noise_where_others_are_not():
    rng = np.random.default_rng(3)
    state = wide()
    keys = [str(key) for key in rng.choice(list(state), 2, replace=False)]
    for key in keys:
        state[key] = torch.from_numpy(rng.standard_normal((256, 256))).float() * (
            torch.linalg.matrix_norm(state[key], 2) / 32
        )
    assert found(specdiag.audit(wide(), device="cpu")) == set()
    assert found(specdiag.audit(state, device="cpu")) == {("random", key) for key in keys}
    rms = state[keys[0]].square().mean().sqrt()
    spiked = state | {keys[0]: state[keys[0]] + 0.25 * rms * torch.outer(torch.randn(256), torch.randn(256))}
    assert found(specdiag.audit(spiked, device="cpu")) == {("random", keys[1])}
    noise = {key: torch.from_numpy(rng.standard_normal((256, 256))).float() for key in state}
    audit = specdiag.audit(noise, device="cpu")
    assert found(audit) == {("untrained", None)}
    assert audit.findings[0].value == 1.0


def test_traps_are_huge_entries_or_a_mean():
    state = wide()
    huge, shifted, usual = list(state)[:3]
    rms = state[huge].square().mean().sqrt()
    state[huge][5, 9] = 60 * rms
    state[usual][5, 9] = 15 * state[usual].square().mean().sqrt()
    state[shifted] += 0.3 * state[shifted].square().mean().sqrt()
    audit = specdiag.audit(state, randomize=True, device="cpu")
    assert found(audit) == {("trap", huge), ("trap", shifted)}
    quiet = specdiag.audit(state, device="cpu")
    assert not quiet.findings
    assert quiet.coverage.not_checked["trap"] == "needs randomize=True"
