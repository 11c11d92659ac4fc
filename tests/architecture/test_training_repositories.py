"""The second yardstick of roles: what public training repositories call their tensors, family by family."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path

from specdiag.architecture.roles import modules

MODELS = tomllib.loads((Path(__file__).parents[1] / "data" / "training_repositories.toml").read_text())["model"]
REQUIRED = 0.98


def expand(pattern):
    """Every name that a pattern stands for."""
    pieces = [
        [str(n) for n in range(int(span[1]), int(span[2]) + 1)]
        if (span := re.fullmatch(r"(\d+)-(\d+)", piece))
        else piece.split(",")
        for piece in re.split(r"[{}]", pattern)
    ]
    return ["".join(chosen) for chosen in itertools.product(*pieces)]


def tensors(model):
    """Shape and family by name."""
    found = {}
    for line in model["tensors"].strip().splitlines():
        pattern, shape, family = line.split()
        for name in expand(pattern):
            assert name not in found, name
            found[name] = (tuple(map(int, shape.split("x"))), family)
    return found


def wrong(model):
    """Names whose family is not that of the table, with what was found."""
    expected = tensors(model)
    parts = modules({name: shape for name, (shape, _) in expected.items()}).parts
    found = {name: {part.module.family for part in parts.get(name, ())} for name in expected}
    return {
        name: found[name]
        for name, (_, family) in expected.items()
        if found[name] != (set() if family == "-" else {family})
    }


def test_patterns_expand():
    assert expand("h.{0-2}.c_{q,proj}.weight")[:3] == ["h.0.c_q.weight", "h.0.c_proj.weight", "h.1.c_q.weight"]
    assert expand("wte.weight") == ["wte.weight"]


def test_the_table_has_the_styles_of_many_repositories():
    assert len({model["repository"] for model in MODELS}) >= 25
    assert all(model["licence"] and model["file"] for model in MODELS)


def test_families_are_right(record_property):
    n = sum(family != "-" for model in MODELS for _, family in tensors(model).values())
    failed = {f"{model['repository']}: {name}": found for model in MODELS for name, found in wrong(model).items()}
    share = 1 - len(failed) / n
    record_property("share", share)
    assert share >= REQUIRED, f"{n - len(failed)} of {n} matrices have the right family ({share:.2%}): {failed}"
