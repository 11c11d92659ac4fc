"""The command: verdict first, exit codes, formats, and names that mean harm."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command import outcome
from merged_models import PLANTED, base_state, factors, merged, save, save_adapter
from models import write_checkpoint


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    state = base_state()
    pairs = factors(state)
    save(tmp_path / "base", state)
    save_adapter(tmp_path / "adapter", pairs)
    save(tmp_path / "right", merged(state, pairs))
    save(tmp_path / "wrong", PLANTED["unscaled"][0](state, pairs))
    return tmp_path


def test_verified(folder: Path) -> None:
    code, out, err = outcome("verify", "base", "adapter", "right", "-o", "v.json", width=160)
    assert (code, out.splitlines()[0][:45]) == (0, "VERIFIED: right: 6 updates at strength 1.000,"), err
    assert len(out.splitlines()[0]) <= 80
    saved = json.loads((folder / "v.json").read_text())
    assert saved["verdict"] == "verified"
    assert len(saved["tensors"]) == 19
    assert {row["outcome"] for row in saved["tensors"]} <= {"equal", "rounded", "within rounding"}


def test_not_verified(folder: Path) -> None:
    code, out, _ = outcome("verify", "base", "adapter", "wrong", width=200)
    assert code == 1
    first, *rest = out.splitlines()
    assert first == "NOT VERIFIED: wrong: the adapter was applied with another scale (6 of 6 modules)"
    assert "strength 0.500: the scale was about 1 instead of 2, the product without a scale" in "\n".join(rest)
    assert "Compared 19 tensors: 13 equal, 6 differ" in out
    code, out, _ = outcome("verify", "base", "adapter", "wrong", "--all", "-f", "md")
    assert (code, out.count("| wrong scale |"), out.count("| equal |")) == (1, 6, 13)


def test_cannot_be_told_is_no_success(folder: Path) -> None:
    pairs = {m: (a, 0 * b) for m, (a, b) in factors(base_state()).items()}
    save_adapter(folder / "empty", pairs)
    code, out, _ = outcome("verify", "base", "empty", "base")
    assert (code, out.partition(":")[0]) == (1, "CANNOT BE TOLD")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["base"], 2, "name two models, ORIGINAL CONVERTED, or three, BASE ADAPTER MERGED: 1 were named"),
        (["base", "base", "right"], 2, "base is no adapter"),
        (["base", "adapter"], 2, "adapter is an adapter: give its base model before it, and the merged model after it"),
        (["base", "nowhere/at/all"], 3, "nowhere/at/all"),
        (["base", "right", "-o", "x.csv"], 2, "'x.csv' would hold JSON"),
        (["base", "right", "--stream"], 2, "stream goes with a model on the hub"),
    ],
)
def test_refusals(folder: Path, arguments: list[str], code: int, sentence: str) -> None:
    found, out, err = outcome("verify", *arguments)
    assert (found, out) == (code, "")
    assert sentence in err


def test_hostile_names_are_printed_as_they_show(folder: Path) -> None:
    name = "\x1b[31mlayers.0|<b>`x`.q_proj.weight"
    for where, seed in (("a", 0), ("b", 1)):
        write_checkpoint(folder / where, {name: np.random.default_rng(seed).standard_normal((8, 8)).astype("f4")})
    for form in ("table", "md", "json"):
        code, out, err = outcome("verify", "a", "b", "-f", form)
        assert code == 1
        assert "\x1b" not in out + err
    assert "<b>" not in outcome("verify", "a", "b", "-f", "md")[1]


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    state = base_state()
    state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"][:199]
    save(folder / "cut", state)
    code, out, _ = outcome("verify", "base", "cut", width=200)
    assert code == 1
    assert "the shapes are 200x64 and 199x64" in out
