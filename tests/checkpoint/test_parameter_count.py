"""The number of parameters of a checkpoint against that of the module that was saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import specdiag
from specdiag.analysis.summary import count_reasons
from specdiag.checkpoint.reader import open_checkpoint

WIDTH = 24


def linear() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.key = linear()
        self.register_buffer("tril", torch.tril(torch.ones(WIDTH, WIDTH)))
        self.register_buffer("inv_freq", torch.ones(WIDTH))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(40, WIDTH)
        self.lm_head = nn.Linear(WIDTH, 40, bias=False)
        self.lm_head.weight = self.wte.weight


MODULES = {
    "masks": Masked,
    "running statistics": lambda: nn.Sequential(linear(), nn.BatchNorm1d(WIDTH)),
    "pruning": lambda: nn.Sequential(prune.l1_unstructured(linear(), "weight", amount=0.3)),
    "spectral norm": lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(linear())),
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(linear())),
    "a tied head": Tied,
    "an average": lambda: torch.optim.swa_utils.AveragedModel(linear()),
}


@pytest.mark.parametrize("kind", MODULES)
def test_buffers_and_copies_are_no_parameters(tmp_path: Path, kind: str) -> None:
    module = MODULES[kind]()
    torch.save(module.state_dict(), tmp_path / "x.pt")
    counted = open_checkpoint(tmp_path / "x.pt").n_parameters
    assert counted == sum(parameter.numel() for parameter in module.parameters())


def test_a_copy_by_its_values_alone(tmp_path: Path) -> None:
    """An archive of arrays cannot say that two names share their memory."""
    table, up = np.random.default_rng(0).standard_normal((2, 64, 64)).astype("f4")
    arrays = {"wte.weight": table, "lm_head.weight": table, "h.0.mlp.up_proj.weight": up}
    np.savez(tmp_path / "x.npz", **arrays)
    report = specdiag.analyze(tmp_path / "x.npz")
    assert report.summary.n_parameters == 2 * 64 * 64


def test_reasons_are_counted_by_kind(tmp_path: Path) -> None:
    blocks = [prune.l1_unstructured(linear(), "weight", amount=0.3) for _ in range(5)]
    torch.save(nn.Sequential(*blocks).state_dict(), tmp_path / "x.pt")
    reasons = count_reasons(s.reason for s in open_checkpoint(tmp_path / "x.pt").skipped)
    assert reasons == {"part of a weight (pruning)": 5, "1-D: bias, norm or vector": 5}


def test_many_ties_are_counted_together() -> None:
    ties = [f"tied to layers.0.w{i}" for i in range(4)]
    assert count_reasons([*ties, *ties, "norm"]) == {"tied to other tensors": 8, "norm": 1}
    assert count_reasons(ties[:3]) == dict.fromkeys(ties[:3], 1)
