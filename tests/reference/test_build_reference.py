"""Ranges of several models: quantiles of all their matrices, with every independent model counted once."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import llama_state
from msgspec.structs import replace as changed
from reference_models import checkpoint, record, report

import specdiag
from specdiag.checkpoint.model_card import read_card
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError, UsageError
from specdiag.records import Settings
from specdiag.reference.ranges import PROBABILITIES

VALUES = st.lists(st.floats(1, 9), min_size=1, max_size=6)


def of_square_alpha(found):
    (only,) = (r for r in found.ranges if r.metric == "square_alpha")
    return only


@given(st.lists(VALUES, min_size=1, max_size=6))
def test_quantiles_are_those_of_all_matrices(models):
    found = of_square_alpha(specdiag.build_reference([report(values, i) for i, values in enumerate(models)]))
    pooled = sorted(value for values in models for value in values)
    assert (found.n_matrices, found.models) == (len(pooled), tuple(range(len(models))))
    for p, quantile in zip(PROBABILITIES, found.quantiles, strict=True):
        place = p * (len(pooled) - 1)
        low, high = pooled[int(place)], pooled[min(int(place) + 1, len(pooled) - 1)]
        assert quantile == pytest.approx(low + (place - int(place)) * (high - low), rel=1e-12)


def test_the_metrics_go_by_the_number_of_eigenvalues():
    found = specdiag.build_reference([report([1.5], 0)])
    assert {r.metric: r.quantiles[0] for r in found.ranges} == {
        "square_alpha": 1.5, "rho": 0.5, "stable_rank/n": 0.25, "mp_spikes/n": 0.0625,
    }  # fmt: skip


def left_out(*sources):
    return [source.left_out for source in specdiag.build_reference(list(sources)).sources]


def test_models_of_one_shape_that_were_trained_apart_are_several(tmp_path):
    assert left_out(*(checkpoint(tmp_path / str(i), i) for i in range(3))) == [None, None, None]


def test_a_fine_tune_counts_once(tmp_path):
    base = llama_state(seed=1)
    noise = llama_state(seed=2)
    tuned = {name: w + 0.3 * noise[name] for name, w in base.items()}
    one, other, two = (checkpoint(tmp_path / n, i, s) for n, i, s in (("a", 1, None), ("b", 3, None), ("c", 0, tuned)))
    reasons = left_out(one, other, two)
    assert reasons == [None, None, f"the same model as {one}: their weights have the cosine 0.96"]
    found = specdiag.build_reference([one, two])
    alone = specdiag.build_reference([one])
    assert found.ranges == alone.ranges
    assert [len(f.sources) for f in (found, alone)] == [2, 1]


def test_a_copy_counts_once_even_with_layers_left_out(tmp_path):
    deep, shallow = llama_state(layers=3, seed=1), llama_state(layers=1, seed=5)
    shallow |= {name: w for name, w in deep.items() if ".layers.0." in name}
    one, two = (checkpoint(tmp_path / n, 0, s) for n, s in (("a", deep), ("b", shallow)))
    assert left_out(one, two)[1] == f"the same model as {one}: they have equal matrices"


def test_reports_of_one_shape_count_once_with_the_remedy():
    one, two = report([1.5, 1.6], 0), report([1.9, 2.0], 0)
    assert left_out(one, two)[1].endswith("a report does not tell a fine-tune: name both checkpoints")
    assert left_out(one, report([1.9, 2.0], 1)) == [None, None]


@pytest.mark.parametrize(
    "card", ["base_model: org/base", "base_model:\n- org/other\n- 'org/base'", "base_model: [org/Base]"]
)
def test_models_that_name_one_base_count_once(tmp_path, card):
    one = checkpoint(tmp_path / "a", 1, card=f"---\nlicense: mit\n{card}\ntags:\n- x\n---\n# A model")
    two = checkpoint(tmp_path / "b", 2, llama_state(width=128, seed=2))
    (two / "config.json").write_text('{"architectures": ["LlamaModel"], "_name_or_path": "org/base"}')
    assert left_out(one, two)[1] == f"the same model as {one}: both say that they are, or come from, org/base"
    found = specdiag.build_reference([one]).sources[0]
    assert "org/base" in [base.lower() for base in found.base]
    assert found.licence == "mit"


@pytest.mark.parametrize(
    "card", ["", "no front matter", "---\nbase_model: org/base", "---\n---\n", "---\nbase_model:\n---\n"]
)
def test_cards_that_say_nothing(tmp_path, card):
    folder = checkpoint(tmp_path / "a", 1, card=card)
    assert read_card(open_checkpoint(folder)) == ((), None)


def test_a_path_is_no_name_of_a_base(tmp_path):
    folders = [checkpoint(tmp_path / str(i), i) for i in range(2)]
    for folder in folders:
        (folder / "config.json").write_text('{"architectures": ["LlamaModel"], "_name_or_path": "/home/me/model"}')
    assert left_out(*folders) == [None, None]


def test_what_is_left_out_has_its_reason():
    good = report([1.5], 0)
    odd = {
        "not all of its matrices were analysed": replace(report([1.5], 1), complete=False),
        "no transformer: it has no whole matrix of attention": replace(
            report([1.5], 2), records=(record(0, 1.5, role="up", family="mlp"),)
        ),
        "its class is not known, for no config.json beside it names its architecture": report([1.5], 3, None),
        "the class of the architecture Novel is not known": report([1.5], 4, "Novel"),
        "its alpha is not that of Hill's estimator at 0.5: analyse it without options of the tail": replace(
            report([1.5], 5), settings=Settings(tail="ks")
        ),
    }
    found = specdiag.build_reference([*odd.values(), good])
    assert [source.left_out for source in found.sources] == [*odd, None]
    assert of_square_alpha(found).models == (len(odd),)


def test_the_updates_of_an_adapter_are_no_model():
    updates = replace(report([1.5], 1), records=(record(0, 1.5, n_eigenvalues=8, stable_rank=2.0, mp_spikes=1),))
    with pytest.raises(SourceError, match="no source can be used: model-1: no transformer"):
        specdiag.build_reference([updates])


def test_sources_of_no_use():
    with pytest.raises(UsageError, match="sources= is a list"):
        specdiag.build_reference("org/name")
    with pytest.raises(UsageError, match="of at least one"):
        specdiag.build_reference([])


def test_a_vision_tower_has_its_own_class():
    both = [record(0, 1.5), record(1, 1.9, component="vision", name="vision_tower.layers.1.q_proj.weight")]
    model = replace(report([1.5], 0, "NovelForConditionalGeneration"), records=tuple(both))
    found = of_square_alpha(specdiag.build_reference([model]))
    assert (found.model_class, found.n_matrices, found.quantiles[0]) == ("vision", 1, 1.9)


def test_cross_attention_stands_apart():
    rows = (record(0, 1.5), changed(record(0, 1.9), name="cross", cross_attention=True, digest="c"))
    found = specdiag.build_reference([replace(report([1.5], 0), records=rows)])
    assert {(r.cross_attention, r.n_matrices) for r in found.ranges} == {(False, 1), (True, 1)}


def test_rotated_rows_of_queries_do_not_hide_a_copy(tmp_path):
    base = llama_state(seed=1)
    order = np.random.default_rng(0).permutation(64)
    copy = {n: (w[order] if "q_proj" in n or "k_proj" in n else w).astype("f2") for n, w in base.items()}
    one, two = checkpoint(tmp_path / "a", 1), checkpoint(tmp_path / "b", 0, copy)
    assert left_out(one, two)[1] == f"the same model as {one}: their weights have the cosine 1.00"


def test_models_of_which_no_matrix_lies_alike_count_once(tmp_path):
    """Only queries: their rows may be in another order, so that nothing tells a copy from a second model."""
    states = [{n: w for n, w in llama_state(layers=3, seed=i).items() if "q_proj" in n} for i in range(2)]
    one, two = (checkpoint(tmp_path / str(i), i, state) for i, state in enumerate(states))
    assert left_out(one, two)[1].endswith("their layers have the same shapes, and no matrix of theirs can be compared")
