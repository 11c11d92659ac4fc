"""A "fine-tune" in which nothing changed: decided over every tensor, in any storage."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from adapter_files import LORA, lora, write
from audited_models import CONFIG, found, llama, name
from models import EMBED, HEAD, PLACES, tensors, write_checkpoint

import specdiag
from specdiag.auditing.same_values import difference
from specdiag.checkpoint.arrays import with_tensors
from specdiag.checkpoint.memory import from_state_dict
from specdiag.report import SpectralReport

GAIN = "model.layers.1.input_layernorm.weight"
IDENTICAL = ("baseline_identical", None)


def model() -> dict[str, torch.Tensor]:
    return tensors(llama(1, layers=3))


def gaps(audit) -> set[str]:
    return {f.check for f in audit.findings} | (
        {"not made"} if "baseline_identical" in audit.coverage.not_checked else set()
    )


def resharded(folder, state):
    half = len(state) // 2
    parts = {
        "model-00001-of-00002.safetensors": list(state)[:half],
        "model-00002-of-00002.safetensors": list(state)[half:],
    }
    for file, names in parts.items():
        write_checkpoint(folder, {key: state[key] for key in names}, CONFIG, file)
    return folder


def torch_file(folder, state):
    folder.mkdir()
    torch.save(state, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize(
    "saved",
    [
        lambda folder, state: write_checkpoint(folder, state, CONFIG),
        resharded,
        torch_file,
        lambda folder, state: write_checkpoint(folder, {f"base.{key}": value for key, value in state.items()}, CONFIG),
        lambda folder, state: write_checkpoint(folder, {k: v for k, v in state.items() if k != HEAD}, CONFIG),
        lambda folder, state: write_checkpoint(
            folder, state | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, CONFIG
        ),
        lambda folder, state: write_checkpoint(folder, {k: v.bfloat16() for k, v in state.items()}, CONFIG),
        lambda folder, state: write_checkpoint(folder, {k: v.half() for k, v in state.items()}, CONFIG),
        lambda folder, state: write_checkpoint(folder, {k: v.double() for k, v in state.items()}, CONFIG),
    ],
    ids=["same", "resharded", "torch", "renamed", "headless", "buffer", "bfloat16", "float16", "float64"],
)  # fmt: skip
def test_nothing_changed(tmp_path, saved):
    before = write_checkpoint(tmp_path / "a", model(), CONFIG)
    audit = specdiag.audit(saved(tmp_path / "b", model()), baseline=before, device="cpu")
    (finding,) = [f for f in audit.findings if f.check == "baseline_identical"]
    assert (finding.severity, finding.module) == ("fail", None)
    assert "specdiag verify" in finding.advice


@pytest.mark.parametrize("key", [GAIN, "model.norm.weight", EMBED, HEAD, name(2, PLACES[4])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_value_changed(tmp_path, key, dtype):
    before = write_checkpoint(tmp_path / "a", model(), CONFIG)
    state = {k: v.to(dtype) for k, v in model().items()}
    state[key].reshape(-1)[7] *= 1.1
    audit = specdiag.audit(write_checkpoint(tmp_path / "b", state, CONFIG), baseline=before, device="cpu")
    assert not gaps(audit) & {"baseline_identical", "not made"}


def test_a_merge_that_lost_its_adapter(tmp_path):
    """The adapter is empty, or it was dropped on the way; with the adapter there is no finding."""
    base = write_checkpoint(tmp_path / "base", model(), CONFIG)
    target = name(1, PLACES[0]).removesuffix(".weight")
    full = lora(target, 64, 64)
    empty = {key: value * (0 if "lora_B" in key else 1) for key, value in full.items()}
    for folder, held, expected in (("full", full, False), ("empty", empty, True)):
        adapter = write(tmp_path / folder, held, LORA)
        audit = specdiag.audit(adapter, base=base, baseline=base, device="cpu")
        assert (IDENTICAL in found(audit)) is expected
    grown = model() | {"model.layers.3.self_attn.q_proj.weight": torch.zeros(64, 64)}
    assert IDENTICAL not in found(specdiag.audit(grown, baseline=base, device="cpu"))


def test_what_a_fine_tune_in_float32_of_a_bfloat16_model_moves_is_a_change():
    """Upwards nothing is rounded: a change of less than the last digit of bfloat16 counts."""
    before = {k: v.bfloat16() for k, v in model().items()}
    after = {k: v.float() for k, v in before.items()}
    assert IDENTICAL in found(specdiag.audit(after, baseline=before, device="cpu"))
    after[EMBED] = after[EMBED] * (1 + 2**-10)
    assert IDENTICAL not in found(specdiag.audit(after, baseline=before, device="cpu"))


def test_where_it_is_not_decided(tmp_path):
    state = model()
    before = write_checkpoint(tmp_path / "a", state, CONFIG)
    after = write_checkpoint(tmp_path / "b", state, CONFIG)

    def reason(source, baseline, **options):
        audit = specdiag.audit(source, baseline=baseline, **options)
        assert "baseline_identical" not in gaps(audit)
        return audit.coverage.not_checked["baseline_identical"]

    report = specdiag.analyze(before, device="cpu")
    norms = "no matrix differs, and norm gains and biases are not in a report"
    assert norms in reason(after, report, device="cpu")
    assert norms in reason(report, report)
    assert "only a selection of the matrices was asked for" in reason(after, before, roles="q", device="cpu")
    blank = SpectralReport(
        source=report.source, settings=report.settings, summary=report.summary, provenance=report.provenance,
        records=tuple(type(r)(**{f: getattr(r, f) for f in r.__struct_fields__} | {"digest": None}) for r in report.records),
        skipped=report.skipped, complete=True,
    )  # fmt: skip
    assert "hold no digest of" in reason(blank, report)
    assert reason(after, before, thresholds={"baseline_identical": {"enabled": False}}, device="cpu") == "switched off"
    softer = specdiag.audit(
        after, baseline=before, thresholds={"baseline_identical": {"severity": "info"}}, device="cpu"
    )
    assert [f.severity for f in softer.findings if f.check == "baseline_identical"] == ["info"]
    state[EMBED] = state[EMBED] * 2
    changed = specdiag.audit(write_checkpoint(tmp_path / "c", state, CONFIG), baseline=report, device="cpu")
    assert "baseline_identical" in changed.coverage.checks  # a report suffices where a matrix differs


def test_values_are_compared_to_the_last_digit_of_the_coarser_type():
    rng = np.random.default_rng(0)
    wide = torch.from_numpy(rng.standard_normal(4096) * np.exp(rng.uniform(-9, 3, 4096)))
    wide[:3] = torch.tensor([float("nan"), float("inf"), 0.0])

    def stored(values):
        return from_state_dict(with_tensors({"w": values})).stored[0]

    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        nearest = wide.to(dtype)
        cut = wide.float().view(torch.int32).bitwise_and(-65536).view(torch.float32).bfloat16()
        assert difference(stored(wide), stored(nearest)) is None
        assert difference(stored(wide.float()), stored(cut)) is None
        other = nearest.clone()
        other[9] = float(other[9]) * 1.03
        found = difference(stored(wide), stored(other))
        assert (found.n_different, found.n_values) == (1, 4096)
        assert difference(stored(nearest), stored(other)).n_different == 1
    assert difference(stored(torch.tensor([1e6])), stored(torch.tensor([1e6]).half())).n_different == 1  # inf
    assert difference(stored(torch.tensor([1.0])), stored(torch.tensor([float("nan")]))).n_different == 1
