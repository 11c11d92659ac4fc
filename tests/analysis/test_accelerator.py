"""The accelerator's code: on fake CUDA tensors for placement, on the CPU for numbers, on a GPU where there is one."""

import numpy as np
import pytest
import torch
from helpers import esd, lcg
from models import llama_shapes, random_state, tensors
from torch._subclasses.fake_tensor import FakeTensorMode

import specdiag
from specdiag.errors import ComputationError, UsageError
from specdiag.spectra import accelerator
from specdiag.spectra.accelerator import batch_eigenvalues, full_precision, resolve_device, solve
from specdiag.spectra.float_types import FLOAT_TYPES

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def stacks(count, shape=(48, 80), dtype=np.float32):
    return [lcg(*shape, seed).astype(dtype)[None] for seed in range(1, count + 1)]


@pytest.mark.parametrize("shape", [(3, 40, 100), (3, 100, 40)])
def test_everything_stays_on_the_device(shape):
    with FakeTensorMode():
        w = torch.empty(shape, dtype=torch.bfloat16, device="cuda")
        eigenvalues, norms = batch_eigenvalues(w.narrow(2, 0, 40), torch.float32)
        assert eigenvalues.device.type == norms.device.type == "cuda"
        assert eigenvalues.shape == (3, 40)
        assert eigenvalues.dtype == torch.float32
        moved, _ = batch_eigenvalues(w, torch.float32, solve_on_cpu=True)
        assert moved.device.type == "cpu"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(48, 80), (80, 48), (50, 50)])
def test_batched_numbers(shape, dtype):
    batch = stacks(5, shape)
    for solved, stack in zip(solve(batch, [FLOAT_TYPES["F32"]] * len(batch), "cpu", dtype), batch, strict=True):
        n = min(shape)
        assert solved.eigenvalues[n // 2 :] == pytest.approx(esd(stack[0])[n // 2 :], rel=1e-4)


def test_bf16_codes_and_slices():
    values = torch.from_numpy(np.stack([lcg(30, 60, s) for s in (1, 2)])).bfloat16()
    (solved,) = solve([values.view(torch.uint16).numpy()], [FLOAT_TYPES["BF16"]], "cpu", "float64")
    pooled = np.sort(np.concatenate([esd(v.numpy()) for v in values.double()]))
    assert solved.eigenvalues == pytest.approx(pooled, rel=1e-9)


def test_out_of_memory_halves_the_batch(monkeypatch):
    sizes, plain = [], accelerator._solve_batch

    def small(batch, *rest):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("pretend")
        return plain(batch, *rest)

    monkeypatch.setattr(accelerator, "_solve_batch", small)
    batch = stacks(7)
    found = list(solve(batch, [FLOAT_TYPES["F32"]] * len(batch), "cpu", "float64"))
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert [s.eigenvalues[-1] for s in found] == pytest.approx([esd(b[0])[-1] for b in batch])


def test_one_matrix_that_does_not_fit(monkeypatch):
    def never(*_):
        raise torch.OutOfMemoryError("pretend")

    monkeypatch.setattr(accelerator, "_solve_batch", never)
    with pytest.raises(ComputationError, match="48 x 80 matrix does not fit on cpu in float64; try device=cpu"):
        list(solve(stacks(1), [FLOAT_TYPES["F32"]], "cpu", "float64"))


def test_full_precision_restores_the_setting():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with full_precision():
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_missing_device_is_one_sentence():
    with pytest.raises(UsageError, match=r"device 'cuda' is not available here .*; try device=cpu"):
        resolve_device("cuda")
    with pytest.raises(UsageError, match="unknown device 'nonsense'; choose auto, cpu, cuda"):
        resolve_device("nonsense")


def model():
    places = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")
    shapes = {name: shape for name, shape in llama_shapes(3).items() if any(place in name for place in places)}
    state = tensors(random_state(shapes))
    state["model.layers.0.self_attn.o_proj.weight"] = torch.zeros(64, 64)
    state["model.layers.1.self_attn.o_proj.weight"] = torch.full((64, 64), float("nan"))
    return state


def test_the_batched_road_gives_the_same_records(as_accelerator):
    plain = specdiag.analyze(model(), device="cpu")
    as_accelerator()
    batched = specdiag.analyze(model())
    assert [r.key for r in batched] == [r.key for r in plain]
    assert batched.settings.dtype == "float32"
    assert 0 < batched.provenance.device_difference < 1e-4
    for a, b in zip(batched, plain, strict=True):
        assert (a.status, a.digest) == (b.status, b.digest)
        if b.status == "ok":
            assert a.alpha == pytest.approx(b.alpha, rel=1e-4)
            assert a.square_alpha == pytest.approx(b.square_alpha, rel=1e-4)
            assert a.pl_alpha == pytest.approx(b.pl_alpha, rel=1e-3)
            assert a.n_zero is a.matrix_rank is a.detx_k is a.entropy is None


def test_one_comparison_a_shape_and_full_batches(as_accelerator, monkeypatch):
    """Parts of a fused tensor alternate in shape; they are batched all the same, and compared once a shape."""
    from specdiag.analysis import workers
    from specdiag.spectra import accelerator as module

    compared, batches, solved = [], [], module.solve
    plain = module.disagreement
    monkeypatch.setattr(module, "disagreement", lambda *a: compared.append(a[1].shape) or plain(*a))
    monkeypatch.setattr(module, "solve", lambda m, *a, **k: batches.append((m[0].shape, len(m))) or solved(m, *a, **k))
    as_accelerator()
    rng = np.random.default_rng(0)
    state = {}
    for layer in range(6):
        for name, rows in (("q", 128), ("k", 64), ("v", 64)):
            w = rng.standard_normal((rows, 128))
            state[f"model.layers.{layer}.self_attn.{name}_proj.weight"] = torch.from_numpy(w).float()
    assert len(specdiag.analyze(state)) == 18
    assert sorted(batches) == [((1, 64, 128), 12), ((1, 128, 128), 6)]
    assert sorted(compared) == [(1, 64, 128), (1, 128, 128)]
    batches.clear(), compared.clear()
    monkeypatch.setattr(workers, "_BATCH_BYTES", 128 * 128 * 4 * 2)
    assert len(specdiag.analyze(state)) == 18
    assert len(batches) > 4
    assert len(compared) == 2


def test_svd_stays_on_the_cpu(as_accelerator):
    as_accelerator()
    report = specdiag.analyze(model(), method="svd")
    assert report.settings.device == "cpu"
    assert {r.method for r in report} == {"svd"}
    with pytest.raises(UsageError, match="method=svd runs on the CPU: leave out device=cuda"):
        specdiag.analyze(model(), method="svd", device="cuda")


def test_a_wrong_accelerator_is_caught(as_accelerator, monkeypatch, caplog):
    plain, real = specdiag.analyze(model(), device="cpu"), accelerator.batch_eigenvalues

    def wrong(stack, dtype, **others):
        eigenvalues, norms = real(stack, dtype, **others)
        shift = torch.zeros_like(eigenvalues)
        shift[:, -1], shift[:, -2] = 0.01 * norms, -0.01 * norms
        return (eigenvalues + shift).sort(dim=1).values, norms

    as_accelerator()
    monkeypatch.setattr(accelerator, "batch_eigenvalues", wrong)
    found = specdiag.analyze(model())
    assert "the CPU takes over" in caplog.text
    assert [r.alpha for r in found] == [r.alpha for r in plain]
    assert {r.compute_dtype for r in found if r.status == "ok"} == {"float64"}


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cuda_agrees_with_the_cpu(dtype):
    plain = specdiag.analyze(model(), device="cpu")
    found = specdiag.analyze(model(), device="cuda", dtype=dtype)
    for a, b in zip(found, plain, strict=True):
        assert a.status == b.status
        if b.status == "ok":
            assert a.alpha == pytest.approx(b.alpha, rel=1e-4 if dtype == "float32" else 1e-9)
            assert a.square_alpha == pytest.approx(b.square_alpha, rel=1e-4 if dtype == "float32" else 1e-9)
