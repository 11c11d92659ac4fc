"""Numbers of `--function` and verdicts before and after changes of form at random, on whole models.

    python benchmarks/function_freedoms.py                      # five minutes for SmolLM2; --only minilm,gpt2

SmolLM2-135M (every third layer) and MiniLM with their weights (`tests/assets.py`), a GPT-2 and a Mixtral built from
configurations with random weights, all in float64. The freedoms that the wiring allows are drawn
(`tests/changes_of_form.py`). In all but MiniLM, whose norms stand behind its writers, the residual stream is turned
besides; there channels, which belong to the basis, are left out of the findings. Prints a table: the largest change of
any number of a row of the function, relative to the largest of its column in its layer and role, and the same of the
balanced form of stored rows, whether the findings of `audit --alarms` on directions, channels and scores are the same,
and what `lineage` says.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import specdiag
from specdiag.analysis.source import open_source
from specdiag.function.blocks import find_blocks

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from assets import fetch
from changes_of_form import Changes
from wired_models import random_model

Numbers = dict[tuple[object, ...], list[float]]
VERDICTS = ("removed_direction", "shared_direction", "massive_channel", "score_bound")
"""Beginnings of the checks whose findings belong to the function; ranges of outputs are those of the stored form."""
TURNED = ("smollm2", "gpt2", "mixtral")
_LARGER = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}


def smollm2() -> Any:
    """Load the real model."""
    import transformers

    folder = fetch("smollm2-gguf")
    (file,) = folder.glob("*.gguf")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float64)
    model.model.layers = model.model.layers[::3]
    model.config.num_hidden_layers = len(model.model.layers)
    return model.eval()


def minilm() -> Any:
    """Load the real model."""
    import transformers
    from safetensors.torch import load_file

    folder = fetch("minilm")
    model = transformers.BertForMaskedLM(transformers.BertConfig.from_pretrained(folder)).double().eval()
    model.bert.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    return model


MODELS = {
    "smollm2": ("llama", smollm2),
    "minilm": ("bert", minilm),
    "gpt2": ("gpt2", lambda: random_model("gpt2", n_embd=128, n_head=2, n_inner=256, n_layer=9)),
    "mixtral": ("mixtral", lambda: random_model("mixtral", **_LARGER, intermediate_size=192)),
}


def numbers(model: Any) -> tuple[Numbers, Numbers]:
    """Collect every number of the function, and the balanced form of stored rows, by layer, role and column."""
    report = specdiag.analyze(model, function=True, dtype="float64", jobs=1)
    function: Numbers = defaultdict(list)
    for row in report.function:
        for column in row.__struct_fields__:
            value = getattr(row, column)
            if isinstance(value, float) and np.isfinite(value):
                function[row.component, row.layer, row.role, column].append(value)
    balanced: Numbers = defaultdict(list)
    for row in report:
        if row.square_alpha is not None and row.gauge_shift is not None:
            balanced[row.layer, row.role].append(row.square_alpha + row.gauge_shift)
    return function, balanced


def largest_change(before: Numbers, after: Numbers) -> tuple[float, tuple[object, ...]]:
    """Find the largest relative change and its place; heads and experts in the order of size."""
    if {k: len(v) for k, v in before.items()} != {k: len(v) for k, v in after.items()}:
        raise SystemExit("the rows before and after are not the same")
    changes = {
        key: float(np.abs(np.sort(values) - np.sort(after[key])).max() / max(np.abs(values).max(), 1e-300))
        for key, values in before.items()
    }
    worst = max(changes, key=lambda key: changes[key])
    return changes[worst], worst


def findings(model: Any, checks: tuple[str, ...]) -> list[tuple[str, str]]:
    """List the findings of checks whose names begin so, by check and module."""
    audit = specdiag.audit(model, alarms=True)
    return sorted((f.check, str(f.module)) for f in audit.findings if f.check.startswith(checks))


def main() -> None:
    """Print a row for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(MODELS))
    names = parser.parse_args().only.split(",")
    torch.set_num_threads(1)
    print("| model | numbers | largest change | where | balanced form | findings | lineage |")
    print("|---|---|---|---|---|---|---|")
    for name in names:
        kind, load = MODELS[name]
        model = load()
        blocks, _ = find_blocks(open_source(model))
        changed = copy.deepcopy(model)
        changes = Changes(kind, changed, [b.wiring for b in blocks], blocks[0].attention.n_rotated)  # pyright: ignore
        changes.all()
        checks = VERDICTS
        if name in TURNED:
            changes.turn_stream()
            checks = tuple(check for check in VERDICTS if check != "massive_channel")
        before, after = numbers(model), numbers(changed)
        change, where = largest_change(before[0], after[0])
        even, _ = largest_change(before[1], after[1])
        own, other = findings(model, checks), findings(changed, checks)
        (pair,) = specdiag.lineage(model, changed, device="cpu").relations
        same = "the same" if own == other else f"{own} became {other}"
        n = sum(map(len, before[0].values()))
        place = " ".join(str(part) for part in where if part is not None)
        print(
            f"| {name} | {n} | {change:.1e} | {place} | {even:.1e} | {len(own)}, {same} | {pair.verdict} |", flush=True
        )


if __name__ == "__main__":
    main()
