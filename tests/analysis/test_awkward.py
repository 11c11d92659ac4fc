"""The awkward inputs on which other tools stop, stay silent, or give a wrong number. Each gets a right one or a reason."""

import json
import os

import numpy as np
import pytest
import torch
from command import python
from helpers import lcg
from models import write_checkpoint
from safetensors.torch import save_file

import specdiag
from specdiag.errors import SourceError, UsageError

Q = "model.layers.{}.self_attn.q_proj.weight"


def weights(seed=1, shape=(64, 96)):
    return torch.from_numpy(lcg(*shape, seed)).float()


def analyse(tmp_path, tensors, name="model.safetensors", **options):
    write_checkpoint(tmp_path, tensors, config=None, name=name)
    return specdiag.analyze(tmp_path / name if name != "model.safetensors" else tmp_path, device="cpu", **options)


def test_bf16(tmp_path):
    (r,) = analyse(tmp_path, {Q.format(0): weights().bfloat16()})
    assert r.alpha == pytest.approx(2.4936, abs=0.01)
    assert r.storage_dtype == "BF16"


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (
            {Q.format(1): weights().to(torch.float8_e4m3fn), Q.format(1) + "_scale_inv": torch.ones(3, 5)},
            "quantised or packed weights (F8_E4M3)",
        ),
        ({Q.format(1): (weights() * 100).to(torch.int8)}, "quantised or packed weights"),
        ({Q.format(1): torch.zeros(3072, 1, dtype=torch.uint8)}, "quantised or packed weights"),
        ({"model.position_ids": torch.arange(512)[None]}, "integer buffer"),
        ({"thin.weight": torch.ones(1, 300)}, "N < 2"),
        ({"empty.weight": torch.ones(0, 300)}, "empty"),
    ],
)
def test_codes_and_buffers_are_named_never_analysed(tmp_path, extra, reason):
    report = analyse(tmp_path, {Q.format(0): weights()} | extra)
    assert [r.name for r in report] == [Q.format(0)]
    assert any(reason in s.reason for s in report.skipped)
    assert {s.name for s in report.skipped} == set(extra)


def test_rank_one_is_low_rank_and_not_the_heaviest_tail(tmp_path):
    (r,) = analyse(tmp_path, {Q.format(0): torch.outer(torch.randn(64), torch.randn(96))})
    assert (r.status, r.alpha, r.pl_alpha, r.matrix_rank) == ("low_rank", None, None, 1)
    assert r.stable_rank == pytest.approx(1)


@pytest.mark.parametrize("scale", [1e-4, 1e-20, 1e15])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scale_does_not_matter(tmp_path, scale, dtype):
    plain, scaled = analyse(tmp_path, {Q.format(0): weights(), Q.format(1): weights() * scale}, dtype=dtype)
    for name in ("status", "n_zero", "matrix_rank", "mp_spikes", "detx_k", "pl_k"):
        # Outside the range of float32 arithmetic float64 takes over, and knows more.
        assert scale < 1e-12 or scale > 1e12 or getattr(scaled, name) == getattr(plain, name), name
    for name in ("alpha", "pl_alpha", "square_alpha", "rho", "effective_rank", "entropy", "mp_softrank"):
        if getattr(plain, name) is not None:
            assert getattr(scaled, name) == pytest.approx(getattr(plain, name), rel=1e-4), name


def test_values_whose_squares_overflow_or_vanish(caplog):
    tiny, huge = lcg(64, 96, 1) * 1e-200, lcg(64, 96, 1) * 1e200
    for r in specdiag.analyze({Q.format(0): torch.from_numpy(tiny), Q.format(1): torch.from_numpy(huge)}):
        assert (r.status, r.alpha) == ("failed", None)
    assert caplog.text.count("leave the range of the arithmetic") == 2


def test_stacked_experts_and_convolutions_are_not_skipped(tmp_path):
    stack = torch.stack([weights(s, (160, 64)) for s in range(1, 5)])
    report = analyse(
        tmp_path,
        {
            "model.layers.0.mlp.experts.gate_up_proj": torch.cat([stack, stack.flip(0)], dim=1),
            "model.layers.0.mlp.experts.down_proj": stack.transpose(1, 2),
            "encoder.conv1.weight": torch.randn(64, 80, 3),
        },
    )
    assert len(report) == 4 * 2 + 4 + 1
    assert {r.role for r in report if r.family == "mlp"} == {"gate", "up", "down"}
    conv = next(r for r in report if r.role == "conv")
    assert (conv.rows, conv.cols, conv.n_slices, conv.n_eigenvalues) == (64, 80, 3, 192)
    expert = next(r for r in report if r.role == "down" and r.part and "0" in r.part)
    assert expert.alpha == pytest.approx(specdiag.analyze({"a.weight": stack[0].contiguous()}).records[0].alpha)


def test_a_missing_shard_is_no_smaller_model(tmp_path):
    save_file({Q.format(0): weights()}, tmp_path / "model-00001-of-00002.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {Q.format(i): f"model-0000{i + 1}-of-00002.safetensors" for i in (0, 1)}})
    )
    with pytest.raises(SourceError, match=r"model-00002-of-00002\.safetensors"):
        specdiag.analyze(tmp_path)


def test_a_file_of_any_name(tmp_path):
    (r,) = analyse(tmp_path, {Q.format(0): weights()}, name="diffusion_pytorch_model.safetensors")
    assert r.status == "ok"


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (self.marker,))


def test_a_pickle_with_code_is_named_and_does_not_run(tmp_path):
    marker = tmp_path / "it-ran"
    torch.save({Q.format(0): weights(), "x": Bomb(str(marker))}, tmp_path / "pytorch_model.bin")
    report = specdiag.analyze(tmp_path)
    assert [r.name for r in report] == [Q.format(0)]
    assert any("mkdir" in note and "nothing was run" in note for note in report.provenance.notes)
    assert not marker.exists()


def test_a_nested_state_dict(tmp_path):
    torch.save({"model": {Q.format(0): weights()}, "step": 3}, tmp_path / "ckpt.pt")
    assert [r.name for r in specdiag.analyze(tmp_path / "ckpt.pt")] == [Q.format(0)]


def test_an_adapter_is_not_analysed_as_two_layers(tmp_path):
    save_file({"base_model.model.q_proj.lora_A.weight": weights()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(SourceError, match="half of an update"):
        specdiag.analyze(tmp_path)


def test_modules_without_values():
    normed = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64, affine=False))
    assert len(specdiag.analyze(normed)) == 1
    with torch.device("meta"):
        empty = torch.nn.Sequential(torch.nn.Linear(64, 64))
    with pytest.raises(SourceError, match="meta"):
        specdiag.analyze(empty)


def test_memory_stays_at_the_largest_matrix(tmp_path):
    """A file 24 times the largest matrix: the peak above the imports is a few matrices, not the file."""
    rng = np.random.default_rng(0)
    n, count = 700, 24
    save_file(
        {Q.format(i): torch.from_numpy(rng.standard_normal((n, 2 * n))).float() for i in range(count)},
        tmp_path / "model.safetensors",
    )
    code = (
        "import sys, specdiag.analysis.analyze as a, specdiag.checkpoint.reader\n"
        "from specdiag.resources import peak_memory\n"
        "before = peak_memory()\n"
        "report = a.analyze(sys.argv[1], device='cpu', jobs=1)\n"
        "print(len(report), report.provenance.peak_bytes - before)"
    )
    done = python(code, tmp_path)
    n_records, grown = map(int, done.stdout.split())
    assert n_records == count
    matrix = n * 2 * n * 4
    assert grown < 8 * matrix < count * matrix / 2


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (5, "cannot analyse a int"),
        ({"a": np.array(["x"])}, "this one of 1 entries holds none"),
        ({}, "this one of 0 entries holds none"),
    ],
)
def test_what_is_no_source(source, sentence):
    with pytest.raises(UsageError, match=sentence):
        specdiag.analyze(source)


def test_a_report_is_no_checkpoint(tmp_path):
    path = specdiag.analyze({Q.format(0): weights()}).save(tmp_path / "a.json")
    with pytest.raises(UsageError, match=r"saved report, not weights: .* read it with specdiag\.load_report"):
        specdiag.analyze(path)


def test_a_comparison_is_called_what_it_is(tmp_path):
    state = {Q.format(0): weights()}
    path = specdiag.compare(state, state).save(tmp_path / "a.json")
    with pytest.raises(UsageError, match=r"a.json is a saved comparison, not weights: give the checkpoint$"):
        specdiag.analyze(path)


def test_one_pattern_need_not_be_a_list():
    assert len(specdiag.analyze({Q.format(i): weights() for i in (0, 1)}, include="*.0.*", roles="q")) == 1


def test_a_convolution_with_one_zero_kernel_position(tmp_path):
    w = torch.randn(64, 80, 3)
    w[:, :, 1] = 0
    (r,) = analyse(tmp_path, {"conv.weight": w})
    naive = np.concatenate([np.linalg.svd(w[:, :, i].double().numpy(), compute_uv=False) ** 2 for i in range(3)])
    assert (r.status, r.n_eigenvalues, r.n_zero) == ("ok", 192, 64)
    assert r.spectral_norm == pytest.approx(naive.max() ** 0.5)
    (r,) = analyse(tmp_path, {"conv.weight": -w}, method="svd")
    assert r.n_zero == 64
