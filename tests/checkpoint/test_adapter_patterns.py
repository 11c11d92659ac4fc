"""Patterns and numbers of adapter_config.json: those of PEFT mean what they mean there, the rest is refused in time."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from specdiag.checkpoint.adapters.config import AdapterConfig
from specdiag.checkpoint.adapters.patterns import Patterns
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError

ATOMS = ("a", "b", r"\.", ".", "[ab]", "[^a]", r"\d", r"\w", "0", "(a|b)", "(?:ab|a)", "^", "$", "(a*)", "(b.)", "-")
REPEATS = ("", "", "", "*", "+", "?", "{2}", "{1}", "{1,2}", "{,2}", "{1,}", "{,}", "{}", "{a}", "*?", "{1}?")
MODULE = "model.layers.0.self_attn.q_proj"


def test_what_fits_is_what_peft_takes() -> None:
    rng, checked = random.Random(0), 0
    for _ in range(4000):
        pattern = "".join(rng.choice(ATOMS) + rng.choice(REPEATS) for _ in range(rng.randrange(1, 6)))
        module = "".join(rng.choice("ab.0-") for _ in range(rng.randrange(8)))
        try:
            fits = re.match(rf"(.*\.)?({pattern})$", module) is not None
        except re.error:
            with pytest.raises(SourceError, match="cannot be followed"):
                Patterns({pattern: 1}).first(module, None)
            continue
        assert Patterns({pattern: 1}).first(module, None) == (1 if fits else None), (pattern, module)
        checked += 1
    assert checked > 2000


@pytest.mark.parametrize(
    ("patterns", "rank"),
    [
        ({"q_proj": 1}, 1),
        ({"k_proj": 1}, 9),
        ({"_proj": 1}, 9),
        ({"self_attn.q_proj": 1, "q_proj": 2}, 1),
        ({"q_proj": 2, "self_attn.q_proj": 1}, 2),
        ({".*q_proj": 3, "q_proj": 1}, 3),
        ({"k_proj": 1, r"layers\.\d+\..*_proj": 3}, 3),
        ({f"^{MODULE}$": 4}, 4),
        ({"^q_proj": 4}, 9),
        ({r"model\.layers\.(0|1)\.self_attn\.(q|v)_proj": 5}, 5),
        ({"self.attn.q_proj": 6}, 6),
        ({r"self\.attn\.q_proj": 6}, 9),
        ({}, 9),
    ],
)
def test_the_first_that_fits_decides(patterns: dict[str, int], rank: int) -> None:
    assert Patterns(patterns).first(MODULE, 9) == rank


@pytest.mark.parametrize(
    "pattern",
    ["([a-z_.0-9]+)+x!", "(.*)*(.*)*(.*)*x!", "((((.*)*)*)*)*!", "(a?){60}" + "a" * 60, "(q|q|q_?)*(_|p|roj)*!"],
)
def test_patterns_that_would_never_end(pattern: str) -> None:
    assert Patterns({pattern: 1}).first("model.layers." + "a" * 50 + ".q_proj", None) in (1, None)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"(?=a)b", "cannot be followed"),
        (r"(a)\1", "cannot be followed"),
        (r"(?i)a", "cannot be followed"),
        ("(" * 5000 + ")" * 5000, "cannot be followed"),
        ("a" * 20_000, "'a{100}... \\(20000 characters\\)'"),
        ("(" * 7 + "a?)" + "{60})" * 6, "too many ways"),
        ("(" * 6 + "(|^)" + "{60})" * 6, "too many ways"),
        ("a{500}", "cannot be followed"),
    ],
)
def test_patterns_that_are_refused(pattern: str, why: str) -> None:
    with pytest.raises(SourceError, match=why):
        Patterns({pattern: 1}).first("a" * 500, None)


def test_many_patterns_for_many_modules() -> None:
    names = [f"model.layers.{i}.self_attn.{n}_proj" for i in range(300) for n in "qkvo"]
    patterns = Patterns({name: place for place, name in enumerate(names)})
    assert [patterns.first(name, None) for name in names] == list(range(1200))
    some = Patterns({f".*{number}x": 1 for number in range(2000)})
    with pytest.raises(SourceError, match="too many ways"):
        list(map(some.first, names, names))


def write(folder: Path, **settings: Any) -> Path:
    name = f"base_model.model.{MODULE}."
    rng = np.random.default_rng(0)
    save_file(
        {
            f"{name}lora_A.weight": rng.standard_normal((4, 16), np.float32),
            f"{name}lora_B.weight": rng.standard_normal((16, 4), np.float32),
        },
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "org/base"} | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "alpha", [10**400, -(10**400), float("nan"), float("inf"), float("-inf"), 1e300, "16", [16], {}, True, "x" * 9999]
)
@pytest.mark.parametrize("key", ["lora_alpha", "alpha_pattern"])
def test_no_number_that_a_scale_can_be_made_of(tmp_path: Path, key: str, alpha: object) -> None:
    write(tmp_path, **{key: alpha if key == "lora_alpha" else {"q_proj": alpha}})
    with pytest.raises(SourceError, match=f"adapter_config.json says {key} .*no number that a scale") as caught:
        open_checkpoint(tmp_path)
    assert len(str(caught.value)) < 400


def test_negative_and_absent_scales(tmp_path: Path) -> None:
    (negative,) = open_checkpoint(write(tmp_path, lora_alpha=-8)).matrices
    (positive,) = open_checkpoint(write(tmp_path, lora_alpha=8)).matrices
    assert np.array_equal(negative.tensor.read(None), -positive.tensor.read(None))
    assert AdapterConfig({"r": 8}).scale("q_proj", 8) is None


@pytest.mark.parametrize("rank", [10**400, -1, "4", 4.0, [4], True, 1 << 31])
@pytest.mark.parametrize("settings", ["r", "rank_pattern", "init_r"])
def test_no_rank(tmp_path: Path, settings: str, rank: object) -> None:
    more: dict[str, Any] = {"rank_pattern": {"q_proj": rank}} if settings == "rank_pattern" else {settings: rank}
    write(tmp_path, **more, **({"peft_type": "ADALORA"} if settings == "init_r" else {}))
    with pytest.raises(SourceError, match=f"adapter_config.json says {settings} .*which is no rank"):
        open_checkpoint(tmp_path)


def test_what_ada_lora_kept_is_found_by_its_module() -> None:
    kept = {f"{MODULE}.lora_E": [True, False, True], f"{MODULE}x.lora_E": [True], "model": [False]}
    config = AdapterConfig({"peft_type": "ADALORA", "init_r": 6, "rank_pattern": kept})
    assert [config.rank(name) for name in (MODULE, f"{MODULE}x", "model", "q_proj")] == [2, 1, 2, 6]


def test_parameters_and_tokens_are_found_by_the_ends_of_modules() -> None:
    config = AdapterConfig(
        {
            "target_parameters": ["experts.up_proj", "q_proj.weight"],
            "trainable_token_indices": {"embed_tokens": [1, 2], "wte": [True], "wpe": [10**400]},
        }
    )
    found = [config.targets_parameter(name) for name in ("mlp.experts", "experts", "my_experts", "self_attn.q_proj")]
    assert found == [True, True, False, False]
    assert [config.tokens(name) for name in ("model.embed_tokens", "wte", "wpe", "embed")] == [(1, 2), None, None, None]
