"""State dicts at any depth of a file: their names, and what a script keeps beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from specdiag.checkpoint.reader import open_checkpoint
from specdiag.checkpoint.tensors import Checkpoint
from specdiag.errors import SourceError

QUERY = "layers.0.self_attn.q_proj.weight"
KEY = "layers.0.self_attn.k_proj.weight"
State = dict[str, torch.Tensor]


def model() -> State:
    return {QUERY: torch.randn(4, 4), KEY: torch.randn(4, 4), "norm.weight": torch.ones(4)}


def opened(folder: Path, content: object, part: str | None = None) -> Checkpoint:
    torch.save(content, folder / "x.pt")
    return open_checkpoint(folder / "x.pt", part=part)


def names(checkpoint: Checkpoint) -> list[str]:
    return [matrix.name for matrix in checkpoint.matrices]


def adam() -> dict[str, Any]:
    groups = [{"lr": 1e-3, "params": [0]}]
    return {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(4, 4)}}, "param_groups": groups}


def averaged(state: State) -> State:
    """As torch's AveragedModel gives it."""
    return {"n_averaged": torch.tensor(3), **{f"module.{name}": tensor * 0.5 for name, tensor in state.items()}}


LAYOUTS: dict[str, tuple[Callable[[State], dict[str, Any]], str]] = {
    "one level": (lambda sd: {"state": {"weights": sd}}, "state.weights"),
    "two levels": (lambda sd: {"train_state": {"net": {"weights": sd}, "step": 3}}, "train_state.net.weights"),
    "a configuration": (lambda sd: {"model": {"weights": sd, "config": {"n_layer": 3}}}, "model.weights"),
    "an optimizer": (lambda sd: {"trainer": {"net": sd, "opt": adam()}, "epoch": 1}, "trainer.net"),
    "moments": (
        lambda sd: {"checkpoint": {"params": sd, "opt_state": {"mu": model(), "nu": model()}}, "step": 4},
        "checkpoint.params",
    ),
    "moments under an unknown name": (
        lambda sd: {"checkpoint": {"params": sd, "inner": {"mu": model(), "nu": model()}}},
        "checkpoint.params",
    ),
    "moments beside the weights": (
        lambda sd: {"run": {"network": sd, "exp_avg": model(), "exp_avg_sq": model()}},
        "run.network",
    ),
    "moments of optax": (lambda sd: {"run": {"network": sd, "mu": model(), "nu": model(), "count": 3}}, "run.network"),
    "gradients": (lambda sd: {"run": {"network": sd, "grads": {QUERY: torch.ones(4, 4)}}}, "run.network"),
    "a loss": (lambda sd: {"run": {"network": sd, "loss": torch.tensor(1.0)}}, "run.network"),
    "metrics": (lambda sd: {"run": {"network": sd, "metrics": {"confusion": torch.ones(8, 8)}}}, "run.network"),
    "an average": (lambda sd: {"state": {"weights": sd, "ema": averaged(sd)}}, "state.weights"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_are_those_of_the_state_dict(tmp_path: Path, layout: str) -> None:
    """The plan's code looks them up in `model.named_parameters()`."""
    make, path = LAYOUTS[layout]
    state = model()
    checkpoint = opened(tmp_path, make(state))
    assert names(checkpoint) == [QUERY, KEY]
    assert torch.equal(checkpoint.matrices[0].load(), state[QUERY])
    assert f"Took the weights under '{path}' of" in checkpoint.notes[-1]


@pytest.mark.parametrize(
    ("layout", "left"),
    [
        ("an optimizer", "opt (an optimizer's state)"),
        ("moments", "opt_state (an optimizer's state)"),
        ("moments under an unknown name", "inner (an optimizer's state)"),
        (
            "moments beside the weights",
            "exp_avg (an optimizer's state, 3 tensors), exp_avg_sq (an optimizer's state, 3",
        ),
        ("moments of optax", "mu (an optimizer's state, 3 tensors), nu (an optimizer's state, 3 tensors)"),
        ("gradients", "grads (gradients, 1 tensor)"),
        ("a loss", "loss (1 tensor of one value)"),
        ("metrics", "metrics (no weights, 1 tensor)"),
        ("an average", "ema (an averaged or lagging copy, 4 tensors)"),
    ],
)
def test_what_is_left_out_is_named(tmp_path: Path, layout: str, left: str) -> None:
    assert left in opened(tmp_path, LAYOUTS[layout][0](model())).notes[-1]


def test_the_innermost_dictionary_alone_is_noted(tmp_path: Path) -> None:
    torch.save({"app": {"model": {"fc.weight": torch.ones(3, 4), "fc.bias": torch.ones(3)}}}, tmp_path / "a.pt")
    checkpoint = open_checkpoint(tmp_path / "a.pt")
    assert checkpoint.notes == (f"Took the weights under 'app.model' of {tmp_path / 'a.pt'}.",)


def test_top_level_with_moments_and_gradients(tmp_path: Path) -> None:
    content = {"net": model(), "exp_avg": model(), "exp_avg_sq": model(), "grads": model()}
    checkpoint = opened(tmp_path, content)
    assert names(checkpoint) == [QUERY, KEY]
    assert "3 tensors under 'exp_avg'" in checkpoint.notes[0]


@pytest.mark.parametrize(
    "content",
    [
        {"exp_avg": model(), "exp_avg_sq": model()},
        {"mu": model(), "nu": model()},
        {"exp_avg": model(), "hparams": {"lr": 1e-3}},
    ],
)
def test_moments_alone_are_an_optimizers_state(tmp_path: Path, content: dict[str, Any]) -> None:
    with pytest.raises(SourceError, match="is an optimizer's state, not a model"):
        opened(tmp_path, content)


KEPT: dict[str, tuple[dict[str, Any], list[str]]] = {
    "dotted prefix": ({"model": {f"model.{QUERY}": torch.ones(4, 4)}}, [f"model.{QUERY}"]),
    "nested modules": (
        {"model": {"encoder": {"proj": {"weight": torch.ones(4, 4)}}}},
        ["encoder.proj.weight"],
    ),
    "a list": ({"model": {"blocks": [{"q.weight": torch.ones(4, 4)}]}}, ["blocks.0.q.weight"]),
    "two modules": (
        {"model": {"encoder": {"a.weight": torch.ones(4, 4)}, "decoder": {"b.weight": torch.ones(4, 4)}}},
        ["encoder.a.weight", "decoder.b.weight"],
    ),
    "a matrix beside": (
        {"model": {"encoder": {"a.weight": torch.ones(4, 4)}, "table": torch.ones(5, 4)}},
        ["encoder.a.weight", "table"],
    ),
    "modules named as moments": (
        {"model": {"trunk": {"a.weight": torch.ones(4, 4)}, "mu": {"b.weight": torch.ones(4, 4)}}},
        ["trunk.a.weight", "mu.b.weight"],
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_names_of_modules_are_kept(tmp_path: Path, case: str) -> None:
    content, expected = KEPT[case]
    assert names(opened(tmp_path, content)) == expected


def test_one_network_twice_is_refused(tmp_path: Path) -> None:
    content = {"params": {"first": model(), "second": model()}}
    with pytest.raises(SourceError, match=r"one network twice, under 'params.first' and 'params.second': pick one"):
        opened(tmp_path, content)
    assert names(opened(tmp_path, content, part="params.second")) == [QUERY, KEY]


def test_wide_dictionaries_are_read_in_time(tmp_path: Path) -> None:
    """Each level is looked at once for each of those above it that may be taken off."""
    content: Any = {str(i): {"w": torch.ones(1)} for i in range(3000)}
    for _ in range(60):
        content = {"a": content}
    assert opened(tmp_path, {"model": content}).n_tensors == 3000


def test_average_in_the_place_of_the_weights(tmp_path: Path) -> None:
    """As Lightning's WeightAveraging saves both."""
    trained, average = model(), model()
    content = {
        "state_dict": average,
        "current_model_state": trained,
        "averaging_state": {"n_averaged": torch.tensor(3)},
    }
    checkpoint = opened(tmp_path, content)
    assert torch.equal(checkpoint.matrices[0].load(), average[QUERY])
    assert (
        "is the running average that Lightning's WeightAveraging keeps: part=current_model_state"
        in checkpoint.notes[-1]
    )
    chosen = opened(tmp_path, content, part="current_model_state")
    assert torch.equal(chosen.matrices[0].load(), trained[QUERY])
