"""The wiring of each architecture against transformers: what it allows to change leaves the logits and the function."""

from functools import cache

import numpy as np
import pytest
import torch
from changes_of_form import Changes
from msgspec.structs import replace
from wired_models import KINDS, logits, random_model

from specdiag.analysis.source import open_source
from specdiag.function import effective
from specdiag.function.attention import plane_strengths, scoring
from specdiag.function.blocks import find_blocks
from specdiag.function.folding import fold_reader
from specdiag.function.matrices import function_of
from specdiag.function.mlp import strengths

SAME, INVARIANT = 1e-5, 1e-9
"""Relative: transformers computes norms, rotary angles and softmax in float32."""


@cache
def first_logits(kind):
    return logits(kind, random_model(kind))


def blocks_of(model):
    blocks, _ = find_blocks(open_source(model))
    return blocks


def changed(kind, **wiring):
    """Change a model by its wiring, or by one that differs."""
    model = random_model(kind)
    blocks = blocks_of(model)
    n_rotated = wiring.pop("n_rotated", blocks[0].attention.n_rotated)
    return model, Changes(kind, model, [replace(block.wiring, **wiring) for block in blocks], n_rotated)


def difference(kind, model):
    before, after = first_logits(kind), logits(kind, model)
    return float((after - before).abs().max() / before.abs().max())


def spectra(model):
    """Singular values of every matrix of the function, and of the balanced form but for its scale, by layer and role."""
    function = function_of(open_source(model))
    forms = [("function", m) for m in function.rows] + [("balanced", m) for m in function.balanced.values()]
    found = {}
    for form, matrix in forms:
        module = matrix.module
        key = (
            form,
            module.component,
            module.layer,
            module.role,
            module.cross_attention,
            None if module.form == "stored" else module.head,
        )
        sigma = torch.linalg.svdvals(matrix.load()).numpy()
        found.setdefault(key, []).append(sigma if form == "function" else sigma / sigma[0])
    return {key: np.array(sorted(values, key=lambda v: v.sum())) for key, values in found.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_changes_of_form_change_neither_logits_nor_function(kind):
    model, changes = changed(kind)
    before = spectra(model)
    changes.all()
    assert difference(kind, model) < SAME
    after = spectra(model)
    assert before.keys() == after.keys()
    for key, values in before.items():
        assert after[key] == pytest.approx(values, rel=0, abs=INVARIANT * values.max()), key


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mixtral", "gpt2"])
def test_a_turned_stream_changes_neither_logits_nor_function(kind):
    model, changes = changed(kind)
    before = spectra(model)
    changes.turn_stream()
    assert difference(kind, model) < SAME
    after = spectra(model)
    for key, values in before.items():
        assert after[key] == pytest.approx(values, rel=0, abs=INVARIANT * values.max()), key


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_of_every_block_is_found(kind):
    blocks, notes = find_blocks(open_source(random_model(kind)))
    sides = 2 if kind in ("whisper", "t5", "bart", "mbart", "clip") else 1
    assert len(blocks) == 2 * sides
    assert all(block.attention is not None and block.mlps for block in blocks)
    assert len(blocks[0].mlps) == (4 if kind in ("mixtral", "qwen3_moe") else 1)
    assert (blocks[0].router is not None) == (kind in ("mixtral", "qwen3_moe"))
    crossed = [block.cross is not None for block in blocks]
    assert crossed == ([False, False, True, True] if sides == 2 and kind != "clip" else [False] * len(blocks))
    assert not notes


@pytest.mark.parametrize(
    ("kind", "wrong", "change", "least"),
    [
        pytest.param("llama", {"rope": "interleaved"}, "mix_scores", 0.1, id="llama rotates halves"),
        pytest.param("llama", {"n_rotated": 0}, "mix_scores", 0.1, id="rotated heads cannot be mixed"),
        pytest.param("gptj", {"rope": "half"}, "mix_scores", 0.1, id="gptj rotates pairs"),
        pytest.param("gpt_neox", {"n_rotated": 12}, "mix_scores", 0.1, id="neox rotates a part of each head"),
        pytest.param("gemma2", {"gain": "g"}, "fold", 0.1, id="gemma adds one to its gains"),
        pytest.param(
            "olmo2",
            {"attn_in": "post_attention_layernorm", "mlp_in": "post_feedforward_layernorm"},
            "fold",
            0.1,
            id="norms of olmo2 stand behind",
        ),
        pytest.param("gpt2", {}, "scale_neurons", 0.01, id="neurons of gpt2 cannot be rescaled"),
        pytest.param("llama", {}, "shift_writers", 0.1, id="rms norm sees the mean"),
        pytest.param("qwen2", {"n_rotated": 0}, "move_biases", 0.1, id="rotated key biases count"),
    ],
)
def test_wrong_wiring_changes_logits(kind, wrong, change, least):
    model, changes = changed(kind, **wrong)
    with torch.no_grad():
        for layer in changes.layers:
            if change == "scale_neurons":
                changes.neurons(layer, scaled=True)
            else:
                getattr(changes, change)(layer)
    assert difference(kind, model) > least


def test_an_entry_changed_is_seen():
    model = random_model("llama")
    before = spectra(model)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[3, 5] += 0.01
    after = spectra(model)
    assert difference("llama", model) > 1e-4
    moved = [key for key, values in before.items() if np.abs(after[key] - values).max() > 1e-5 * values.max()]
    assert {(key[3], key[-1]) for key in moved} == {("qk", 0), ("q", None), ("k", None)}


@pytest.mark.parametrize(
    ("kind", "total"),
    [("llama", 1389.587784), ("gpt2", 657.069859), ("gpt_neox", 759.265660), ("bert", 660.149943)],
)
def test_the_sum_of_all_invariants(kind, total):
    """Derived elsewhere from the same random models, gpt_neox without key biases of rows that are not rotated."""
    source = open_source(random_model(kind))
    found = sum(float(torch.linalg.svdvals(row.load()).sum()) for row in function_of(source).rows)
    for block in find_blocks(source)[0]:
        if block.attention.n_rotated:
            q, k = block.attention.q, block.attention.k
            heads = scoring(
                fold_reader(q.read(), block.attention.norm.read()),
                fold_reader(k.read(), block.attention.norm.read()),
                block.attention.heads,
                rope=block.wiring.rope,
                n_rotated=block.attention.n_rotated,
            )
            found += float(plane_strengths(heads).sum())
        for mlp in block.mlps:
            if mlp.gate is not None:
                found += float(
                    strengths(effective.read(mlp.up, mlp.norm, "cpu"), effective.write(block, mlp, "cpu")).sum()
                )
    assert found == pytest.approx(total, abs=1e-6)
