"""square_alpha in reports: of what lives, on every path, with a reason where there is none."""

import numpy as np
import pytest
import torch
from helpers import with_singular_values

import specdiag
from specdiag.errors import UsageError
from specdiag.spectra import live_alpha
from specdiag.spectra.accelerator import solve
from specdiag.spectra.eigenvalues import spectrum
from specdiag.spectra.float_types import FLOAT_TYPES
from specdiag.spectra.live_alpha import exponents
from specdiag.spectra.square import NO_SQUARE
from specdiag.spectra.trust import judge_square


def test_degenerate_and_dead_matrices():
    """Orthogonal weights have no square_alpha; noise with dead rows or columns scores like noise of what lives."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((256, 1024)).astype(np.float32)
    rows, cols = np.repeat(noise, 2, axis=0), noise.copy()
    rows[::2] = 0
    cols[:, ::2] *= 1e-9
    turned = np.linalg.qr(rng.standard_normal((200, 80)))[0].astype(np.float32)
    state = {"q": rows, "k": cols, "v": turned, "o": noise}
    named = {f"model.layers.0.self_attn.{role}_proj.weight": torch.from_numpy(w) for role, w in state.items()}
    q, k, v, o = specdiag.analyze(named, device="cpu")
    assert (q.rows, q.living_shape, k.living_shape, o.living_shape) == (512, (256, 1024), (256, 512), (256, 1024))
    assert q.square_alpha == pytest.approx(o.square_alpha, rel=1e-9)
    assert q.rho == pytest.approx(o.rho, rel=1e-9)
    assert q.alpha < o.alpha
    assert (q.mp_spikes, k.mp_spikes) == (0, 0)
    assert k.square_rho == pytest.approx(1, abs=0.02)
    assert (v.status, v.square_alpha, v.square_rho, v.mp_edge, v.mp_spikes) == ("degenerate", None, None, None, None)
    assert (q.square_status, v.square_status) == ("ok", "degenerate")


@pytest.mark.parametrize("side", ["rows", "columns"])
def test_live_tensors_are_cut_to_what_lives(side):
    """Live and measured exponents of noise with half of a side zeroed, on the CPU and as an accelerator does it."""
    w = torch.from_numpy(np.random.default_rng(0).standard_normal((160, 240)).astype(np.float32))
    (w if side == "rows" else w.T)[::2] = 0
    measured = specdiag.analyze({"a.weight": w}, device="cpu")["a.weight"]
    assert measured.living_shape == ((80, 240) if side == "rows" else (160, 120))
    assert exponents([w[None]], "square") == pytest.approx([measured.square_alpha], rel=1e-4)
    assert live_alpha._on_accelerator([w[None]], "square") == pytest.approx([measured.square_alpha], rel=1e-4)


def without_square_alpha():
    """A matrix for each reason."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((80, 120))
    few = noise.copy()
    few[40:] = 0
    sigma = np.concatenate([[1.0], np.geomspace(1e-13, 2e-14, 79)])
    return {
        "too_few": few,
        "low_rank": (noise[:, :20] @ rng.standard_normal((20, 120))).astype(np.float32),
        "degenerate": np.linalg.qr(noise.T)[0],
        "imprecise": with_singular_values(sigma, (80, 80)),
    }


@pytest.mark.parametrize("reason", ["too_few", "low_rank", "degenerate", "imprecise"])
def test_a_missing_square_alpha_has_its_reason(reason):
    report = specdiag.analyze({"a.weight": without_square_alpha()[reason]}, device="cpu")
    assert (report["a.weight"].square_alpha, report["a.weight"].square_status) == (None, reason)
    with pytest.raises(UsageError, match=f"'a.weight' has no square_alpha: {NO_SQUARE[reason]}"):
        report.alpha_at("a.weight")


@pytest.mark.parametrize("choices", [{"tail": "ks"}, {"tail": "farms"}, {"tail_fraction": 0.2}])
def test_the_rule_of_alpha_does_not_matter(choices):
    state = {"a.weight": np.random.default_rng(0).standard_t(3, (80, 120))}
    usual, other = (specdiag.analyze(state, device="cpu", **kw)["a.weight"] for kw in ({}, choices))
    assert other.alpha != usual.alpha
    assert (other.square_alpha, other.square_rho) == (usual.square_alpha, usual.square_rho)


def test_alpha_at_any_aspect_from_a_saved_report(tmp_path):
    w = np.random.default_rng(0).standard_normal((64, 256)) * np.exp(np.random.default_rng(1).standard_normal((64, 1)))
    name = "model.layers.0.mlp.up_proj.weight"
    state = {
        name: torch.from_numpy(w),
        "conv.weight": torch.from_numpy(w.reshape(64, 64, 4)),
        "model.norm": torch.ones(3),
    }
    report = specdiag.load_report(specdiag.analyze(state, device="cpu").save(tmp_path / "r.json"))
    record = report[name]
    assert report.alpha_at(name) == pytest.approx(record.square_alpha, rel=1e-12)
    assert record.square_alpha < report.alpha_at(name, aspect=2) < report.alpha_at(name, aspect=4)
    for wrong, sentence in (
        (lambda: report.alpha_at(name, aspect=5), "is more than"),
        (lambda: report.alpha_at(name, aspect=0.5), "aspect=0.5"),
        (lambda: report.alpha_at("conv.weight"), "pools 4 slices"),
        (lambda: report.alpha_at("other"), "no matrix 'other'"),
    ):
        with pytest.raises(UsageError, match=sentence):
            wrong()
    bare = specdiag.load_report(report.save(tmp_path / "bare.json", spectra=False))
    with pytest.raises(UsageError, match="carries no eigenvalues"):
        bare.alpha_at(name)


@pytest.mark.parametrize("kind", ["F32", "BF16"])
def test_live_accelerator_and_saved_agree(kind, monkeypatch):
    """All take one function of eigenvalues and living shape; live float32 arithmetic alone adds its rounding."""
    w = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 80, 200)))
    held = w.to({"F32": torch.float32, "BF16": torch.bfloat16}[kind])
    raw = (held.view(torch.uint16) if kind == "BF16" else held).numpy()
    storage = FLOAT_TYPES[kind]
    (on_device,) = solve([raw], [storage], "cpu", "float64")
    here = judge_square(spectrum(raw, storage)).fit
    there = judge_square(on_device).fit
    assert here is not None
    assert there is not None
    assert there.alpha == pytest.approx(here.alpha, rel=1e-9)
    assert exponents([held], "square")[0] == pytest.approx(here.alpha, rel=1e-4)
    monkeypatch.setattr(live_alpha, "solve", lambda stacks, storage, route: spectrum(raw, storage))
    assert exponents([held], "square")[0] == here.alpha
