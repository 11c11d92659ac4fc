"""A checkpoint's Adam is refused where its options are out of range or a moment is missing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from specdiag.errors import SourceError
from specdiag.train.checkpoints.optimizer_state import check_optimizer

State = dict[str, Any]


def saved(folder: Path, change: Callable[[State], object]) -> tuple[Path, torch.optim.Optimizer, torch.nn.Module]:
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    change(state)
    torch.save(state, folder / "optimizer.pt")
    return folder / "optimizer.pt", optimizer, model


def option(**values: object) -> Callable[[State], object]:
    return lambda state: state["param_groups"][0].update(values)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (option(betas=(2.0, 0.9)), "for betas, which is two numbers from 0 to below 1: it is damaged"),
        (option(weight_decay=-1.0), "has -1 for weight_decay, which is a number from 0 on: it is damaged"),
        (option(eps=-1.0), "has -1 for eps, which is a number from 0 on: it is damaged"),
        (lambda state: state["state"][0].pop("exp_avg"), "has no exp_avg for weight, which Adam needs: it is damaged"),
        (lambda state: state["state"][1].pop("step"), "has no step for bias, which Adam needs: it is damaged"),
    ],
)
def test_what_adam_cannot_go_on_with(tmp_path: Path, change: Callable[[State], object], sentence: str) -> None:
    with pytest.raises(SourceError, match=sentence):
        check_optimizer(*saved(tmp_path, change))


def test_a_whole_one(tmp_path: Path) -> None:
    said, moments = check_optimizer(*saved(tmp_path, lambda state: None))
    assert said.startswith("4 state tensors of 2 parameters")
    assert set(moments) == {"weight", "bias"}
