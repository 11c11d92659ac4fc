"""Weights that are computed in a way that a file does not tell: the audit says that it did not see them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrizations

import specdiag
from specdiag.checkpoint.memory import from_state_dict


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({name: nn.Linear(64, 64, bias=False) for name in "qkvo"})
        self.mlp = nn.Sequential(nn.Linear(64, 160), nn.GELU(), parametrizations.orthogonal(nn.Linear(160, 64)))


def test_each_weight_of_an_unknown_parametrisation_is_one_warning():
    torch.manual_seed(0)
    model = nn.ModuleDict({"layers": nn.ModuleList([Block() for _ in range(3)])})
    report = specdiag.analyze(from_state_dict(model.state_dict()), cache=None)
    assert [r.role for r in report.records if ".mlp." in r.name] == ["up"] * 3
    audit = specdiag.audit(report)
    warned = [finding for finding in audit.findings if finding.check == "unread"]
    assert [finding.module for finding in warned] == [f"layers.{i}.mlp.2.weight" for i in range(3)]
    assert {(finding.severity, finding.value) for finding in warned} == {("warn", "unknown parametrisation")}
    assert not any(finding.check == "unrecognised" for finding in audit.findings)
