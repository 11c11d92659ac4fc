"""`specdiag lineage`: answers, formats, exit codes, sources of all kinds, and the kept spectra."""

import csv
import io
import json
import struct

import pytest
from adapter_files import LORA
from adapter_files import write as write_adapter
from command import outcome
from models import write_checkpoint
from related_models import LAYERS, D, config, llama, tuned

import specdiag
from specdiag.kinship import lineage as verb


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    base = llama()
    states = {"base": base, "tuned": tuned(base, 0.03), "stranger": llama(1)}
    first, second = tuned(base, 0.05, seed=1), tuned(base, 0.05, seed=2)
    states |= {"first": first, "second": second, "mix": {n: (3 * v + second[n]) / 4 for n, v in first.items()}}
    for name, state in states.items():
        write_checkpoint(folder / name, {n: v.float() for n, v in state.items()}, config=config())
    write_checkpoint(folder / "narrow", {n: v.float() for n, v in llama(width=36).items()},
                     config=config(hidden_size=36, head_dim=12))  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("other", "answer", "code"),
    [
        ("base", "Same function: the layers of A and B differ by no more than rounding does.", 0),
        ("tuned", "Derived: A comes from B, B from A, or both from a third model.", 0),
        ("stranger", "No relation shown: A and B differ as much as unequal layers do.", 0),
        ("narrow", "Not comparable: A has width 48 and B 36.", 4),
    ],
)
def test_the_answer_comes_first(folders, other, answer, code):
    exit_code, out, err = outcome("lineage", folders / "base", folders / other)
    assert out.splitlines()[0] == answer
    assert exit_code == code
    assert "provisional" in " ".join(out.split())
    assert f"B: {folders / other}" in " ".join(err.split("\n"))
    assert ("next: specdiag compare" in err) == (code == 0)


def test_several_models_and_a_mix(folders):
    code, out, _ = outcome("lineage", *(folders / n for n in ("first", "second", "stranger", "mix")), width=140)
    assert code == 0
    assert "Mix: D is close to 0.75 A + 0.25 B" in out
    assert "Distances of attention" in out
    assert out.count("No relation shown") == 3


def test_all_prints_the_layers(folders):
    _, out, _ = outcome("lineage", folders / "base", folders / "tuned", "--all")
    assert "Layers of A and B" in out
    assert out.count("yes") == LAYERS


def test_formats(folders, tmp_path):
    arguments = ("lineage", folders / "base", folders / "tuned", folders / "stranger")
    data = json.loads(outcome(*arguments, "-f", "json")[1])
    assert [r["verdict"] for r in data["relations"]] == ["derived", "no relation shown", "no relation shown"]
    assert len(data["relations"][0]["layers"]) == LAYERS
    assert data["thresholds"]["basis"].startswith("provisional")
    rows = list(csv.DictReader(io.StringIO(outcome(*arguments, "-f", "csv")[1])))
    assert [(r["a"], r["b"], r["verdict"]) for r in rows][:2] == [
        ("A", "B", "derived"),
        ("A", "C", "no relation shown"),
    ]
    assert float(rows[0]["attention"]) == pytest.approx(data["relations"][0]["attention"])
    assert outcome(*arguments, "-f", "md")[1].startswith("| a | b | verdict |")
    saved = tmp_path / "found.json"
    code, out, _ = outcome(*arguments, "-o", saved)
    assert (code, out.startswith("Derived")) == (0, True)
    assert json.loads(saved.read_bytes())["relations"] == data["relations"]


def test_usage(folders, tmp_path):
    code, _, err = outcome("lineage", folders / "base")
    assert (code, "name two models or more" in err) == (2, True)
    assert outcome("lineage", folders / "base", folders / "tuned", "-f", "csv", "--all")[0] == 2
    assert outcome("lineage", folders / "base", folders / "tuned", "--stream")[0] == 2
    assert outcome("lineage", folders / "base", folders / "tuned", "--device", "abacus")[0] == 2
    code, _, err = outcome("lineage", folders / "base", folders / "tuned", "--memory", "1K")
    assert (code, "needs about" in err) == (2, True)
    report = tmp_path / "base.specdiag.json"
    specdiag.analyze(folders / "base").save(report)
    code, _, err = outcome("lineage", report, folders / "base")
    assert (code, "is a saved report" in err) == (2, True)
    with pytest.raises(specdiag.UsageError, match="two sources or more, not 1"):
        specdiag.lineage(folders / "base")


def test_sources_that_cannot_be_read(folders, tmp_path):
    assert outcome("lineage", folders / "base", tmp_path / "nothing")[0] == 3
    broken = write_checkpoint(tmp_path / "broken", llama(), config=config())
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    assert outcome("lineage", folders / "base", broken)[0] == 3


def test_an_adapter_needs_its_base(folders, tmp_path):
    import torch

    rng = torch.Generator().manual_seed(0)
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    tensors = {}
    for i in range(LAYERS):
        tensors[name.format(i, "A")] = 0.02 * torch.randn(2, D, generator=rng)
        tensors[name.format(i, "B")] = 0.02 * torch.randn(D, 2, generator=rng)
    adapter = write_adapter(tmp_path / "adapter", tensors, LORA | {"r": 2, "lora_alpha": 2})
    code, out, _ = outcome("lineage", folders / "base", adapter)
    assert code == 4
    assert "an adapter without its base model" in " ".join(out.split())
    code, out, _ = outcome("lineage", folders / "base", adapter, "--base", folders / "base")
    assert code == 0
    assert out.startswith(("Derived", "Same function"))


def test_the_newest_checkpoint_of_a_run_is_taken(folders, tmp_path):
    for step, name in ((10, "base"), (20, "stranger")):
        write_checkpoint(tmp_path / "run" / f"checkpoint-{step}",
                         {n: v.float() for n, v in (llama() if name == "base" else llama(1)).items()}, config=config())  # fmt: skip
    assert outcome("lineage", folders / "base", tmp_path / "run")[1].startswith("No relation shown")


def test_the_same_source_twice(folders):
    found = specdiag.lineage(folders / "base", folders / "base", device="cpu")
    assert "A and B are the same source." in found.notes
    assert found.relations[0].worst == 0


def test_spectra_are_kept_by_the_files(folders, tmp_path, monkeypatch):
    copied = write_checkpoint(tmp_path / "copy", {n: v.float() for n, v in llama().items()}, config=config())
    sources = (copied, folders / "stranger")
    first = specdiag.lineage(*sources, device="cpu", cache=tmp_path / "cache")

    def refuse(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr(verb, "take_fingerprint", refuse)
    assert specdiag.lineage(*sources, device="cpu", cache=tmp_path / "cache").relations == first.relations
    write_checkpoint(copied, {n: v.float() for n, v in llama(1).items()}, config=config())
    with pytest.raises(AssertionError, match="measured again"):
        specdiag.lineage(*sources, device="cpu", cache=tmp_path / "cache")
    monkeypatch.undo()
    for entry in (tmp_path / "cache").rglob("*.result"):
        entry.write_bytes(entry.read_bytes()[:-8] + struct.pack("<d", 1.5))
    again = specdiag.lineage(*sources, device="cpu", cache=tmp_path / "cache")
    assert again.relations[0].verdict == "same function"


def test_a_result_in_a_shell_and_a_notebook(folders):
    found = specdiag.lineage(folders / "base", folders / "tuned", device="cpu")
    assert repr(found) == "Lineage(A and B: derived)"
    assert "derived" in found._repr_html_()
    assert found.to_dataframe()["n_carrying"].tolist() == [LAYERS]


def test_progress_ends_at_the_whole(folders):
    seen = []
    specdiag.lineage(folders / "base", folders / "tuned", device="cpu", progress=lambda p: seen.append(p.fraction))
    assert seen[-1] == 1
    assert all(0 < fraction <= 1 for fraction in seen)
