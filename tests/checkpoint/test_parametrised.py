"""Weights that torch computes from other Parameters are analysed as the network uses them."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, prune

import specdiag
from specdiag.checkpoint.memory import from_state_dict
from specdiag.checkpoint.tensors import Checkpoint
from specdiag.spectra.float_types import FLOAT_TYPES


class Block(nn.Module):
    """A module under the name of a projection, and a plain one beside it."""

    def __init__(self, module):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"q_proj": module, "up_proj": nn.Linear(64, 96, bias=False)})])


def old(norm):
    def apply(module, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls them deprecated; files that hold them stay
            return norm(module, **options)

    return apply


def pruned(module):
    return prune.l1_unstructured(module, "weight", amount=0.3)


WAYS = {
    "weight norm": old(nn.utils.weight_norm),
    "weight norm of the whole": lambda m: old(nn.utils.weight_norm)(m, dim=None),
    "weight norm by column": lambda m: parametrizations.weight_norm(m, dim=1),
    "parametrised weight norm": parametrizations.weight_norm,
    "spectral norm": old(nn.utils.spectral_norm),
    "parametrised spectral norm": parametrizations.spectral_norm,
    "pruning": pruned,
}
MODULES = {
    "linear": lambda: nn.Linear(64, 80),
    "convolution": lambda: nn.Conv1d(64, 72, 3),
    "transposed convolution": lambda: nn.ConvTranspose1d(64, 72, 3),
}


def model(way, kind="linear"):
    torch.manual_seed(0)
    wrapped = WAYS[way](MODULES[kind]())
    for parameter in wrapped.parameters():
        with torch.no_grad():
            parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    for _ in range(3):  # power iterations of a spectral norm
        wrapped(torch.randn(2, 64) if kind == "linear" else torch.randn(2, 64, 9))
    return Block(wrapped).eval()


def values(checkpoint: Checkpoint, name: str) -> np.ndarray:
    tensor = next(t for t in checkpoint.stored if t.name == name)
    return FLOAT_TYPES[tensor.values_dtype].widen(tensor.read(None), np.dtype(np.float64))


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("way", WAYS)
def test_the_weight_is_the_one_that_the_network_uses(way: str, kind: str) -> None:
    block = model(way, kind)
    used = block.layers[0]["q_proj"].weight.detach().double().numpy()
    checkpoint = from_state_dict(block.state_dict())
    name = "layers.0.q_proj.weight"
    assert np.abs(values(checkpoint, name) - used).max() <= 1e-6 * np.abs(used).max()
    (matrix,) = (m for m in checkpoint.matrices if m.name == name)
    assert matrix.parametrized
    assert matrix.module.role == "q"
    assert {m.name for m in checkpoint.matrices} == {name, "layers.0.up_proj.weight"}
    assert all(s.reason.startswith("part of a weight") for s in checkpoint.skipped if "bias" not in s.name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("way", WAYS)
def test_files_and_their_types(way: str, dtype: torch.dtype, tmp_path: Path) -> None:
    block = model(way)
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in block.state_dict().items()}
    save_file({name: t.contiguous() for name, t in state.items()}, tmp_path / "model.safetensors")
    report = specdiag.analyze(tmp_path, device="cpu")
    record = report["layers.0.q_proj.weight"]
    assert record.storage_dtype == {torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}[dtype]
    assert record.parametrized
    plain = {"layers.0.q_proj.weight": block.layers[0]["q_proj"].weight.detach().to(dtype)}
    expected = specdiag.analyze(plain, device="cpu").records[0]
    assert record.alpha == pytest.approx(expected.alpha, rel=1e-2 if dtype == torch.bfloat16 else 2e-3)
    assert record.frobenius_norm == pytest.approx(expected.frobenius_norm, rel=1e-2)


def test_narrowing_is_torchs_own_rounding() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [rng.standard_normal(10_000) * 10.0 ** rng.integers(-40, 38, 10_000), [0.0, -0.0, np.inf, np.nan]]
    )
    narrow = FLOAT_TYPES["BF16"].narrow(values)
    expected = torch.from_numpy(values.astype(np.float32)).bfloat16()
    assert np.array_equal(narrow[:-1], expected.view(torch.int16).numpy().view(np.uint16)[:-1])
    assert np.isnan(FLOAT_TYPES["BF16"].widen(narrow, np.dtype(np.float32))[-1])
    for name, kind in (("F16", np.float16), ("F32", np.float32), ("F64", np.float64)):
        with np.errstate(over="ignore"):
            assert FLOAT_TYPES[name].narrow(values).tobytes() == values.astype(kind).tobytes()


def test_what_the_file_does_not_tell_is_left_out() -> None:
    torch.manual_seed(0)
    block = Block(parametrizations.orthogonal(nn.Linear(64, 64)))
    checkpoint = from_state_dict(block.state_dict())
    assert [m.name for m in checkpoint.matrices] == ["layers.0.up_proj.weight"]
    assert any("parametrised in a way that the file does not tell" in s.reason for s in checkpoint.skipped)


def test_a_weight_beside_its_parts() -> None:
    """None of them says which one the network uses; the stored weight has the name."""
    weight = torch.randn(64, 64)
    parts = {
        "weight norm": {"weight_v": torch.randn(64, 64), "weight_g": torch.randn(64, 1)},
        "pruning": {"weight_orig": torch.randn(64, 64), "weight_mask": torch.ones(64, 64)},
    }
    for stored in parts.values():
        names = {f"layers.0.up_proj.{name}": tensor for name, tensor in stored.items()}
        checkpoint = from_state_dict({**names, "layers.0.up_proj.weight": weight})
        (matrix,) = checkpoint.matrices
        assert (matrix.name, matrix.parametrized) == ("layers.0.up_proj.weight", False)
        assert torch.equal(matrix.load(), weight)
        reason = "part of a weight that is stored beside it"
        assert {s.name: s.reason for s in checkpoint.skipped} == dict.fromkeys(names, reason)


def test_parts_of_two_norms_on_one_weight() -> None:
    names = ("weight_v", "weight_g", "parametrizations.weight.original1", "parametrizations.weight.original0")
    state = {f"a.{name}": torch.randn(64, 1 if name[-1] in "g0" else 64) for name in names}
    checkpoint = from_state_dict(state)
    assert not checkpoint.matrices
    reason = "part of a.weight, which is parametrised in a way that the file does not tell"
    assert {s.name: s.reason for s in checkpoint.skipped} == dict.fromkeys(state, reason)


def test_gates_are_no_lengths() -> None:
    """A weight norm has one length for each direction, and no matrix of them."""
    names = [f"layers.0.attn.w_{letter}" for letter in "qkvg"]
    checkpoint = from_state_dict({name: torch.randn(64, 64) for name in names})
    assert sorted(matrix.name for matrix in checkpoint.matrices) == sorted(names)


@pytest.mark.parametrize("way", ["weight norm", "parametrised weight norm", "spectral norm"])
def test_zeros_have_no_direction(way: str) -> None:
    """NaN is what torch gives there as well; no warning reaches stderr."""
    block = model(way)
    module = block.layers[0]["q_proj"]
    direction = next(p for n, p in module.named_parameters() if n.endswith(("weight_v", "original1", "weight_orig")))
    with torch.no_grad():
        direction[0 if "weight" in way else slice(None)] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = values(from_state_dict(block.state_dict()), "layers.0.q_proj.weight")
    assert np.isnan(found[0]).all()
    assert np.isnan(found[1:]).any() == (way == "spectral norm")


def test_names_that_only_resemble_are_left_alone() -> None:
    names = ["layers.0.attn.weight_v", "layers.1.mlp.weight_orig", "layers.2.mlp.up_proj.weight"]
    checkpoint = from_state_dict({name: torch.randn(64, 64) for name in names})
    assert [m.name for m in checkpoint.matrices] == names
    assert not any(m.parametrized for m in checkpoint.matrices)


def test_parameters_called_v_and_g_are_no_weight_norm() -> None:
    names = [f"layers.0.attn.w_{part}" for part in "qkvgo"]
    state = {name: torch.randn(64, 64) for name in names}
    checkpoint = from_state_dict({**state, "att.x_v": torch.rand(1, 1, 64), "att.x_g": torch.rand(1, 1, 64)})
    assert [m.name for m in checkpoint.matrices] == names
    assert torch.equal(checkpoint.matrices[2].load(), state[names[2]])
    assert checkpoint.notes == ()
    shorter = from_state_dict({"a.proj_v": torch.randn(64, 32), "a.proj_g": torch.ones(64, 1)})
    assert [(m.name, m.parametrized) for m in shorter.matrices] == [("a.proj", True)]


def test_no_decay_is_planned_for_what_is_computed() -> None:
    block = model("parametrised weight norm")
    plan = specdiag.recommend(block, weight_decay=0.1)
    assert set(plan.ratios) == {"layers.0.up_proj.weight"}
    assert any("No decay is planned for 1 weights that are computed" in note for note in plan.notes)
    optimizer = torch.optim.AdamW(block.parameters(), lr=1e-3, weight_decay=0.1)
    rule = specdiag.optim.AlphaDecay(block, optimizer, every=1)
    assert set(rule.ratios) == {"layers.0.up_proj.weight"}
