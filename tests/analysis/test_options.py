"""Options of opening and of an analysis: each is applied or refused, whatever function takes it, and never dropped."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hub_stand_in import HubStandIn, Repo
from huggingface_hub import constants
from models import random_state, write_checkpoint

import specdiag
from specdiag.analysis.settings import make_settings
from specdiag.analysis.source import open_source
from specdiag.checkpoint.opening import Opening
from specdiag.errors import UsageError
from specdiag.records import TAIL_NAMES
from specdiag.spectra.tail_rules import TAIL_RULES

QUERY = "model.layers.0.self_attn.q_proj.weight"
EXPERT = "model.layers.0.mlp.experts.{}.up_proj.weight"
QUICK = {"device": "cpu", "jobs": 1}


def weights(scale: float = 1.0, experts: int = 0) -> dict[str, np.ndarray]:
    names = [QUERY, QUERY.replace("q_proj", "o_proj"), *(EXPERT.format(i) for i in range(experts))]
    shapes = dict.fromkeys(names, (16, 16)) | {"model.layers.0.input_layernorm.weight": (16,)}
    return {name: scale * values for name, values in random_state(shapes).items()}


@pytest.fixture
def folder(tmp_path):
    write_checkpoint(tmp_path / "model", weights(), config=None)
    return write_checkpoint(tmp_path / "model", weights(10.0), config=None, name="other.safetensors")


@pytest.fixture
def hub(monkeypatch, tmp_path, folder):
    (folder / "other.safetensors").unlink()
    with HubStandIn({"org/m": Repo({p.name: p.read_bytes() for p in folder.iterdir()})}) as stand_in:
        stand_in.replace_the_real_one(monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        yield


def test_compare_reads_the_file_that_is_named(folder):
    best, other = (specdiag.compare(folder, folder, weights=False, **QUICK, **kw) for kw in ({}, {"file": "other.safetensors"}))  # fmt: skip
    assert other.before.files == other.after.files == ("other.safetensors",)
    assert other[QUERY].before.frobenius_norm == pytest.approx(10 * best[QUERY].before.frobenius_norm, rel=1e-6)


@pytest.mark.parametrize("call", [specdiag.analyze, specdiag.audit, lambda s, **kw: specdiag.compare(s, s, **kw)])
def test_a_revision_of_a_local_folder_is_refused(folder, call):
    with pytest.raises(UsageError, match="is for models on the hub"):
        call(folder, revision="v9", **QUICK)


def test_audit_and_compare_stream(hub, folder, tmp_path):
    audit = specdiag.audit("org/m", stream=True, **QUICK)
    assert (audit.coverage.n_matrices, audit.coverage.n_others) == (2, 1)
    assert len(specdiag.compare("org/m", "org/m", stream=True, **QUICK).modules) == 2
    assert len(specdiag.compare(folder, "org/m", stream=True, **QUICK).modules) == 2
    assert specdiag.audit("org/m", baseline=folder, stream=True, **QUICK).baseline is not None
    assert not list((tmp_path / "hf").rglob("*.safetensors"))
    with pytest.raises(UsageError, match="stream goes with a model on the hub, and neither side is one"):
        specdiag.compare(folder, folder, stream=True, **QUICK)


@pytest.mark.parametrize("option", [{"role_map": "nope.toml"}, {"experts": 3}, {"seed": 5}])
@pytest.mark.parametrize("call", [specdiag.analyze, specdiag.audit, lambda s, **kw: specdiag.compare(s, s, **kw)])
def test_what_is_open_cannot_be_opened_otherwise(folder, call, option):
    (name,) = option
    with pytest.raises(UsageError, match=f"{name}=.* is chosen when a checkpoint is opened"):
        call(open_source(folder), **option, **QUICK)


@pytest.mark.parametrize("option", [{"revision": "v9"}, {"file": "x.safetensors"}, {"base": "org/m"}, {"stream": True}])
@pytest.mark.parametrize("source", ["open", "state dict", "model"])
def test_what_is_in_memory_has_no_place(folder, source, option):
    sources = {"open": open_source(folder), "state dict": {QUERY: torch.ones(8, 8)}, "model": torch.nn.Linear(8, 8)}
    with pytest.raises(UsageError, match="in memory"):
        specdiag.analyze(sources[source], **option, **QUICK)


def test_an_open_checkpoint_keeps_and_states_its_options(tmp_path):
    write_checkpoint(tmp_path, weights(experts=4), config=None)
    checkpoint = open_source(tmp_path, experts=2, seed=3)
    assert checkpoint.opening == Opening(experts=2, seed=3)
    for report in (specdiag.analyze(checkpoint, **QUICK), specdiag.analyze(checkpoint, experts=2, seed=3, **QUICK)):
        assert (report.settings.experts, report.settings.seed, len(report)) == (2, 3, 4)
    with pytest.raises(UsageError, match="seed=0 is chosen when"):
        specdiag.analyze(checkpoint, seed=0, **QUICK)


def test_the_other_side_of_a_report_samples_the_same_experts(tmp_path):
    write_checkpoint(tmp_path, weights(experts=4), config=None)
    report = specdiag.analyze(tmp_path, experts=2, seed=3, **QUICK)
    found = specdiag.compare(report, tmp_path, **QUICK)
    assert len(found.modules) == 4
    assert {m.after.key for m in found.modules} == {r.key for r in report}
    assert (found.settings_after.experts, found.settings_after.seed) == (2, 3)


@pytest.mark.parametrize(
    "call",
    [specdiag.audit, specdiag.recommend, lambda s, **kw: specdiag.compare(s, s, **kw), specdiag.trajectory,
     lambda s, **kw: specdiag.watch(s, **kw)],
)  # fmt: skip
def test_a_misspelt_option_is_named_with_what_was_meant(tmp_path, call):
    report = specdiag.analyze({QUERY: torch.randn(8, 8)}, **QUICK)
    source = tmp_path if call is specdiag.trajectory else report
    with pytest.raises(UsageError, match="there is no option tial: did you mean tail"):
        call(source, tial="hill")
    with pytest.raises(UsageError, match="there is no option colour: there are base"):
        specdiag.recommend(report, colour="red")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"jobs": -3}, "jobs=-3: give a whole number of at least 1"),
        ({"jobs": 0}, "jobs=0"),
        ({"jobs": "4"}, "jobs='4'"),
        ({"jobs": True}, "jobs=True"),
        ({"memory": "8G"}, "memory='8G': give a whole number of at least 1, in bytes"),
        ({"memory": -1}, "memory=-1"),
        ({"tail_fraction": math.nan}, "tail_fraction=nan is not between 0 and 1"),
        ({"tail_fraction": 1.0}, "tail_fraction=1.0 is not between 0 and 1"),
        ({"seed": -1}, "seed=-1: give a whole number of at least 0"),
        ({"seed": 0.5}, "seed=0.5"),
        ({"seed": 2**64}, "seed=18446744073709551616"),
        ({"experts": 0}, "experts=0: give a whole number of at least 1"),
        ({"include": 3}, "include=3: give a text or several"),
        ({"exclude": [None]}, "exclude=None: give a text"),
        ({"roles": "queries"}, "unknown roles='queries'; roles are q, k"),
        ({"tail": "hil"}, "unknown tail='hil'; choose from hill, "),
        ({"method": None}, "unknown method=None; choose from gram, svd"),
        ({"dtype": "half"}, "unknown dtype='half'; choose from auto, float32, float64"),
        ({"cache": 5}, "cache=5: give a path"),
        ({"role_map": b"x"}, "role_map=b'x': give a path"),
        ({"partial_reports": [1]}, "partial_reports=1: give a SpectralReport"),
        ({"ranks": 2}, "ranks=2: give a Ranks"),
        ({"progress": 1}, "progress=1: give a function, or None"),
    ],
)
def test_every_door_checks_every_value(option, said):
    state = {QUERY: torch.randn(8, 8)}
    for call in (specdiag.analyze, specdiag.recommend, specdiag.audit, lambda s, **kw: specdiag.compare(s, s, **kw)):
        with pytest.raises(UsageError) as refused:
            call(state, **{"device": "cpu"} | option)
        assert str(refused.value).startswith(said)
    if "progress" not in option and not option.keys() & {"partial_reports", "ranks"}:
        with pytest.raises(UsageError):
            specdiag.watch("nowhere", **option)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"lr_schedule": "cosine"}, "unknown lr_schedule='cosine'; choose from constant, to zero"),
        ({"clip": (5,)}, "clip=(5,): give two numbers"),
        ({"clip": (5, 101)}, "clip=(5, 101) must be percentiles"),
        ({"clip": (math.nan, 5)}, "clip=nan: give a number"),
        ({"preserve_mean": "yes"}, "preserve_mean='yes': give True or False"),
        ({"weight_decay": math.inf}, "weight_decay=inf: give a number of at least 0"),
        ({"weight_decay": True}, "weight_decay=True"),
        ({"lr": "1e-3"}, "lr='1e-3'"),
        ({"steps_left": 10.5}, "steps_left=10.5: give a whole number"),
        ({"s2": math.nan}, "s2=nan"),
        ({"schedule": "adamc"}, "schedule='adamc': give a DecaySchedule"),
        ({"basis": ["alpha"]}, "unknown basis=['alpha']; choose from alpha"),
    ],
)
def test_plans_are_made_of_checked_numbers_alone(option, said):
    report = specdiag.analyze({QUERY: torch.randn(8, 8)}, **QUICK)
    with pytest.raises(UsageError) as refused:
        specdiag.recommend(report, **{"weight_decay": 0.1, "lr": 1e-3, "steps_left": 1000} | option)
    assert str(refused.value).startswith(said)


def test_numbers_of_numpy_and_torch_are_saved_as_plain_ones(tmp_path):
    report = specdiag.analyze({QUERY: torch.randn(8, 8)}, seed=np.int64(3), tail_fraction=np.float32(0.5), **QUICK)
    assert specdiag.load_report(report.save(tmp_path / "r.json")).settings == report.settings
    plan = specdiag.recommend(report, weight_decay=np.float32(0.5), s2=torch.tensor(2.0), lr=np.float64(1e-3))
    assert specdiag.load_plan(plan.save(tmp_path / "p.json")) == plan


def test_the_closed_lists_are_those_of_the_engine():
    assert tuple(TAIL_RULES) == TAIL_NAMES
    assert make_settings(device="cpu", roles="q", seed=4).seed == 4


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
def test_a_run_may_have_checkpoints_of_any_suffix(tmp_path, suffix):
    for step in (1, 2):
        torch.save({QUERY: torch.randn(8, 8)}, tmp_path / f"step{step}{suffix}")
    assert [s.step for s in specdiag.trajectory(tmp_path, **QUICK).steps] == [1, 2]
