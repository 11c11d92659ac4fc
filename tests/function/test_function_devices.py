"""Products of the function where a device says: torch's numbers are NumPy's, and nothing leaves a CUDA device."""

import numpy as np
import pytest
import torch
from wired_models import random_model

import specdiag
from specdiag.analysis.source import open_source
from specdiag.function import arrays
from specdiag.function.alarms import look_for_alarms
from specdiag.function.algebra import Algebra
from specdiag.function.attention import (
    HeadNorm,
    Moving,
    Scoring,
    normalised,
    ov_cores,
    plane_strengths,
    qk_cores,
    scoring,
)
from specdiag.function.balance import balance_moving, balance_neurons, balance_scoring
from specdiag.function.blocks import find_blocks
from specdiag.function.bounds import balanced_gate, moved_bounds, reader_bounds
from specdiag.function.folding import Norm, Reader, fold_reader, fold_writer
from specdiag.function.matrices import function_of
from specdiag.function.mlp import centred_router, du_core, homogeneous, strengths
from specdiag.kinship.products import inner_products

KINDS = ("llama", "gpt2", "qwen3", "gemma2", "gptj", "mixtral", "nemotron", "bert")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def by_torch(monkeypatch):
    """Send what a CUDA device would compute to torch on the CPU."""
    monkeypatch.setattr(arrays, "home", lambda device: "cpu:0" if device.startswith("cuda") else "cpu")


def values(kind, device):
    found = function_of(open_source(random_model(kind)), device)
    return {m.key: m.slicer.cut(m.tensor.read(None)) for m in (*found.rows, *found.balanced.values())}


def sigma(matrix):
    return np.linalg.svd(matrix, compute_uv=False)


@pytest.mark.parametrize("kind", KINDS)
def test_torch_computes_the_same_function(kind, by_torch):
    plain, found = values(kind, "cpu"), values(kind, "cuda")
    assert plain.keys() == found.keys()
    for key, matrix in plain.items():
        assert isinstance(found[key], np.ndarray)
        assert sigma(found[key]) == pytest.approx(sigma(matrix), rel=0, abs=1e-12 * sigma(matrix).max()), key


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "mixtral", "nemotron"])
def test_torch_computes_the_same_alarms(kind, by_torch, monkeypatch):
    from specdiag.function import algebra

    monkeypatch.setattr(algebra, "home", arrays.home)
    source = open_source(random_model(kind))
    (plain, _), (found, _) = (look_for_alarms(source, device) for device in ("cpu", "cuda"))
    assert plain.scores or plain.notes
    assert [r.bound for r in found.ranges] == pytest.approx([r.bound for r in plain.ranges], rel=1e-10)
    assert [(s.bound, s.at_positions or 0) for s in found.scores] == [
        pytest.approx((s.bound, s.at_positions or 0), rel=1e-10) for s in plain.scores
    ]
    assert [w.ratio or 0 for w in found.writers] == pytest.approx([w.ratio or 0 for w in plain.writers], rel=1e-9)
    assert [w.ratio for w in found.windows] == pytest.approx([w.ratio for w in plain.windows], rel=1e-9)
    assert [c.size for c in found.channels] == pytest.approx([c.size for c in plain.channels], rel=1e-12)


def test_torch_computes_the_same_inner_products(by_torch):
    block = find_blocks(open_source(random_model("llama")))[0][0]
    order = range(block.attention.heads)
    plain, found = (inner_products([block, block], [order, order], device) for device in ("cpu", "cuda"))
    for one, other in zip(plain.kinds, found.kinds, strict=True):
        assert other == pytest.approx(one, rel=1e-12)


@pytest.mark.parametrize("rope", ["half", "interleaved"])
def test_nothing_leaves_the_device(rope):
    """On meta tensors, as fake ones of CUDA cannot be indexed where torch was built without it."""

    def there(*shape):
        return torch.empty(shape, dtype=torch.float64, device="meta")

    norm = Norm(there(48), there(48), is_layer=True)
    heads = scoring(
        Reader(there(64, 48), there(64)), Reader(there(32, 48), there(32)), 4, norm=norm, rope=rope, n_rotated=8
    )
    assert isinstance(heads, Scoring)
    moving = Moving(v=there(2, 16, 48), o=there(4, 48, 16))
    gate, up = Reader(there(80, 48), there(80)), Reader(there(80, 48))
    even, scaled = balanced_gate(gate, up, there(48, 80))
    algebra = Algebra("cuda")
    found = [
        fold_reader(gate, norm).with_bias,
        fold_writer(there(48, 80), is_layer=True, gain=there(48)),
        qk_cores(heads),
        plane_strengths(heads),
        qk_cores(normalised(heads, HeadNorm(q_gain=there(16), k_gain=there(16)))),
        ov_cores(moving, scaled=True),
        *(getattr(balance_scoring(heads), side) for side in "qk"),
        *(getattr(balance_moving(moving), side) for side in "vo"),
        *balance_neurons(there(80, 48), there(48, 80), 2),
        du_core(there(80, 48), there(48, 80)),
        du_core(there(20, 48), there(48, 20)),
        homogeneous(there(80, 48), there(48, 80), 2),
        strengths(there(80, 48), there(48, 80)),
        centred_router(there(8, 48)),
        even.weight,
        scaled,
        reader_bounds(gate),
        moved_bounds(moving, 48, there(48)),
        algebra.gram(there(48, 80)),
        algebra.largest(there(3, 48, 80)),
    ]
    assert {values.device.type for values in found} == {"meta"}
    assert {values.dtype for values in found} == {torch.float64}


@pytest.mark.parametrize("device", ["mps", "cpu"])
def test_float64_is_computed_on_the_cpu_where_a_device_has_none(device):
    found = arrays.placed(np.ones((2, 3)), device)
    assert isinstance(found, np.ndarray)
    assert Algebra(device).device == "cpu"


def test_a_device_out_of_memory_leaves_it_to_the_cpu(by_torch, caplog):
    asked = []

    def compute(device):
        asked.append(device)
        if device != "cpu":
            raise torch.OutOfMemoryError("pretend")
        return np.ones(3)

    assert arrays.computed(compute, "cuda", "layers.0").tolist() == [1, 1, 1]
    assert asked == ["cpu:0", "cpu"]
    assert "out of memory on cpu:0: the CPU computes the function of layers.0" in caplog.text


def test_values_that_are_not_finite_are_no_failure(by_torch):
    model = random_model("llama")
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight[0, 0] = float("nan")
    found = function_of(open_source(model), "cuda")
    bad = {m.key for m in found.rows if np.isnan(m.slicer.cut(m.tensor.read(None))).any()}
    assert bad
    assert all(".0." in key and ".ov" in key for key in bad)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_computes_the_same_function(kind):
    plain, found = (specdiag.analyze(random_model(kind), function=True, device=d) for d in ("cpu", "cuda"))
    assert [r.key for r in plain.function] == [r.key for r in found.function]
    for one, other in zip(plain.function, found.function, strict=True):
        assert other.spectral_norm == pytest.approx(one.spectral_norm, rel=1e-5)
    for key, matrix in values(kind, "cuda").items():
        assert sigma(matrix) == pytest.approx(sigma(values(kind, "cpu")[key]), rel=0, abs=1e-11 * sigma(matrix).max())


@pytest.mark.gpu
@gpu
def test_cuda_computes_the_same_alarms():
    source = open_source(random_model("llama"))
    (plain, _), (found, _) = (look_for_alarms(source, device) for device in ("cpu", "cuda"))
    assert [r.bound for r in found.ranges] == pytest.approx([r.bound for r in plain.ranges], rel=1e-9)
    assert [s.bound for s in found.scores] == pytest.approx([s.bound for s in plain.scores], rel=1e-9)
    assert [c.size for c in found.channels] == pytest.approx([c.size for c in plain.channels], rel=1e-10)
