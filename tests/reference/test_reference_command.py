"""`specdiag reference build`, and `--reference` of analyze, report, audit and compare."""

import json

import pytest
from command import outcome
from models import llama_state
from reference_models import checkpoint, report


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five decoders m0 to m4, and `five.json` and `four.json` of them."""
    root = tmp_path_factory.mktemp("models")
    models = [checkpoint(root / f"m{i}", i) for i in range(5)]
    for name, n in (("five", 5), ("four", 4)):
        code, _, err = outcome("reference", "build", *models[:n], "-o", root / f"{name}.json")
        assert code == 0, err
    return root


def test_build_says_what_counts_and_what_does_not(tmp_path, folder):
    unknown = report([1.5], 1, None).save(tmp_path / "u.json", spectra=False)
    out = tmp_path / "r.json"
    code, said, err = outcome("reference", "build", folder / "m0", folder / "m0", "-o", out)
    assert (code, f"written: {out}" in err) == (0, True)
    first, second = said.splitlines()
    assert first == f"decoder, roles q, k, v, o, gate, up, down: {folder}/m0 (107 k); 5 are needed for a comparison"
    assert second == f"left out: {folder}/m0: the same model as {folder}/m0: they have equal matrices"
    code, said, err = outcome("reference", "build", unknown, "-o", tmp_path / "none.json")
    assert (code, said, (tmp_path / "none.json").exists()) == (3, "", False)
    assert "no source can be used: model-1: its class is not known" in err


def test_build_refuses_what_makes_no_sense(tmp_path, folder):
    saved = report([1.5], 0).save(tmp_path / "r.json", spectra=False)
    for arguments, problem in (
        ((saved, "-o", saved), "is the SOURCE itself"),
        ((saved, "--jobs", 1, "-o", tmp_path / "x.json"), "is a saved report, taken as it is: --jobs"),
        ((saved, "-o", tmp_path / "x.csv"), "'x.csv' would hold JSON"),
        ((saved,), "Missing option"),
    ):
        code, _, err = outcome("reference", "build", *arguments)
        assert code == 2
        assert problem in err


def test_analyze(folder):
    checkpoint(folder / "other", 9)
    asked = ("analyze", folder / "other", "-o", folder / "m1.json", "--reference")
    code, said, _ = outcome(*asked, folder / "five.json")
    assert code == 0
    assert "Reference " in said
    assert " of 14 matrices lie within the square_alpha of 5 decoders of 107 k parameters" in said
    assert "no comparable reference (4 decoders, 5 needed)" in outcome(*asked, folder / "four.json")[1]
    code, said, err = outcome("analyze", folder / "m1.json", "-f", "json", "--reference", folder / "five.json")
    assert (code, said) == (2, "")
    assert "--reference is for the answer above the tables" in err
    assert outcome("analyze", folder / "m1.json", "--reference", folder / "m1.json")[0] == 3
    assert outcome("analyze", folder / "m1", "--dry-run", "--reference", folder / "five.json")[0] == 2


def test_the_others(folder):
    odd = llama_state(seed=5)  # a copy of a reference would not be held against it
    name = "model.layers.1.self_attn.o_proj.weight"
    odd[name] = (odd[name] ** 5).astype("f4")
    model, five = checkpoint(folder / "odd", 5, odd), folder / "five.json"
    code, said, _ = outcome("compare", folder / "m1", model, "--reference", five, "--subspace", 0)
    assert code == 0
    assert "12 of 14 matrices lie within the square_alpha of 5 decoders" in said
    assert ", layer 1 o 1.57 (" in said
    code, said, _ = outcome("audit", model, "--reference", five, "-f", "json", "--no-reference-model")
    told = [f for f in json.loads(said)["findings"] if f["check"] == "reference_range"]
    assert {(f["severity"], f["module"]) for f in told} >= {("info", name)}
    assert {f["severity"] for f in told} == {"info"}
    page = folder / "odd.html"
    code, _, err = outcome("report", model, "--reference", five, "-o", page)
    assert code == 0, err
    assert ", layer 1 o 1.57 (" in page.read_text()
    assert "Among 5 decoders of 107 k parameters: square_alpha" in page.read_text()
