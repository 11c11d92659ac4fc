"""Where a number lies among those of other models: only with five of them, and never as a fault."""

from dataclasses import replace

import pytest
from models import llama_state
from reference_models import SIDE, checkpoint, record, report

import specdiag
from specdiag.records import Settings
from specdiag.reference.peers import Peers
from specdiag.reference.ranges import NEEDED
from specdiag.views.answer import answer

VALUES = ([1.4, 1.6], [1.5, 1.7], [1.5, 1.9], [1.6, 1.8], [1.7, 2.0])


def reference(n):
    return specdiag.build_reference([report(values, i) for i, values in enumerate(VALUES[:n])])


def standing(model, n=NEEDED):
    return Peers.of(model, reference(n)).standing(model.records)


def test_five_models_are_needed():
    model = report([1.5, 1.75], 9)
    assert NEEDED == 5
    assert standing(model, 4) == "no comparable reference (4 decoders, 5 needed)"
    assert standing(model, 1) == "no comparable reference (1 decoder, 5 needed)"
    assert standing(model, 5) == "2 of 2 matrices lie within the square_alpha of 5 decoders of 2 parameters"


def test_five_models_of_a_role_are_needed():
    models = [report(values, i) for i, values in enumerate(VALUES)]
    models[0] = replace(models[0], records=tuple(record(i, 1.5, role="k", name=f"k{i}") for i in range(2)))
    model = report([1.5, 1.75], 9)
    found = Peers.of(model, specdiag.build_reference(models))
    assert found.place(model.records[0], "square_alpha") is None
    assert found.standing(model.records) == "no comparable reference (4 decoders, 5 needed)"


def test_roles_of_different_numbers_of_models_are_counted_apart():
    seven = [*VALUES, [1.5, 1.6], [1.5, 1.6]]
    models = [report(values, i) for i, values in enumerate(seven)]
    models[0] = replace(models[0], records=(*models[0].records, record(0, 1.5, role="k", name="k", digest="k")))
    models[1:6] = [
        replace(m, records=(*m.records, record(0, 1.5, role="k", name="k", digest=f"{m.source}"))) for m in models[1:6]
    ]
    towers = [
        replace(m, records=(*m.records, record(0, 1.5, component="vision", name="v", digest=f"v{m.source}")))
        for m in models
    ]
    text = Peers.of(models[0], specdiag.build_reference(models)).standing(models[0].records)
    assert text.startswith("2 of 3 matrices lie within the square_alpha of 5 to 6 other decoders of 2 parameters")
    text = Peers.of(towers[0], specdiag.build_reference(towers)).standing(towers[0].records)
    assert "of 5 to 6 other decoders of 2 parameters and 6 other vision models of 2 parameters" in text


def test_matrices_too_small_for_an_exponent_have_no_reference():
    model = replace(report([1.5], 9), records=(record(0, 1.5, rows=32, n_eigenvalues=32, square_alpha=None),))
    assert standing(model) == "no comparable reference (no whole matrix of attention or MLP has a square_alpha)"


def test_a_number_outside_is_named_with_the_range():
    text = standing(report([1.5, 2.5], 9))
    assert text.startswith("1 of 2 matrices lie within the square_alpha of 5 decoders")
    assert text.endswith("outside: layer 1 q 2.5 (1.4 to 2)")


def test_what_is_shown_decides():
    """A value that reads like the end of the range is within it, whatever the last bits are."""
    model = report([1.4 - 1e-9, 2 + 1e-9, 1.39], 9)
    places = [Peers.of(model, reference(5)).place(r, "square_alpha") for r in model.records]
    assert [place.is_within for place in places] == [True, True, False]


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        (None, "config.json names no architecture: its class is not known"),
        ("Novel", "Novel: its class is not known"),
        ("BertModel", "0 encoders, 5 needed"),
    ],
)
def test_models_of_another_class_or_none(architecture, reason):
    assert standing(report([1.5], 9, architecture)) == f"no comparable reference ({reason})"


def test_rho_needs_the_same_tail():
    model = report([1.5], 9)
    assert Peers.of(model, reference(5)).place(model.records[0], "rho") is not None
    other = replace(model, settings=Settings(tail_fraction=0.25))
    assert Peers.of(other, reference(5)).place(model.records[0], "rho") is None
    assert Peers.of(other, reference(5)).place(model.records[0], "square_alpha") is not None


def test_embeddings_and_updates_are_not_held_against_anything():
    peers = Peers.of(report([1.5], 9), reference(5))
    assert peers.place(record(0, 1.5), "square_alpha") is not None
    for odd in ({"family": "embedding", "role": "embed"}, {"family": "other", "role": "other"}, {"n_eigenvalues": 8}):
        assert peers.place(record(0, 1.5, **odd), "square_alpha") is None


def test_the_answer_has_it_as_one_fact():
    facts = answer(report([1.5, 2.5], 9), reference(5)).facts
    assert [subject for subject, _ in facts].count("Reference") == 1
    assert "outside: layer 1 q" in dict(facts)["Reference"]


def test_the_page_says_it_of_every_matrix():
    model = report([1.5, 2.5], 9)
    page = specdiag.html_report(model, audit=specdiag.audit(model, reference=reference(5)), reference=reference(5))
    assert page.count("Among 5 decoders of 2 parameters: ") == 2
    assert "square_alpha 2.5, outside of 1.4 to 2; rho 0.5, within 0.5 to 0.5; " in page
    assert "Among 4 decoders" not in specdiag.html_report(model, reference=reference(4))


def test_a_model_is_not_held_against_itself():
    """Or all of its own numbers would lie within."""
    models = [report(values, i) for i, values in enumerate([*VALUES, [1.4, 2.5]])]
    found = specdiag.build_reference(models)
    text = Peers.of(models[5], found).standing(models[5].records)
    assert text.startswith("1 of 2 matrices lie within the square_alpha of 5 other decoders of 2 parameters; outside: ")
    assert text.endswith(" 2.5 (1.4 to 2)")
    assert standing(models[4]) == "no comparable reference (4 other decoders, 5 needed)"


def test_real_checkpoints(tmp_path):
    folders = [checkpoint(tmp_path / str(i), i) for i in range(6)]
    found = specdiag.build_reference(folders)
    model = specdiag.analyze(folders[2])
    text = Peers.of(model, found).standing(model.records)
    assert " of 14 matrices lie within the square_alpha of 5 other decoders of 107 k parameters" in text


def several_roles(shift, at, **changed):
    """A report of two matrices in each of four roles, all values shifted; `changed` gives other ones by role."""
    rows = tuple(
        record(
            i,
            changed.get(role, [1.5, 1.7])[i] + shift,
            SIDE + at,
            role=role,
            name=f"{role}{i}",
            digest=f"{role}{i} {at}",
        )
        for role in "qkvo"
        for i in range(2)
    )
    return replace(report([1.5, 1.7], at), records=rows)


def test_a_damaged_copy_is_not_held_against_its_original():
    models = [several_roles(0.03 * i, i) for i in range(6)]
    found = specdiag.build_reference(models)
    copy, stranger = several_roles(0.06, 8, o=[1.4, 1.9]), several_roles(0.06, 9, o=[1.4, 1.9], v=[1.4, 1.9])
    assert Peers.of(copy, found).own == 2
    assert "5 other decoders" in Peers.of(copy, found).standing(copy.records)
    assert Peers.of(stranger, found).own is None


def test_a_copy_without_layers_is_not_held_against_its_original(tmp_path):
    found = specdiag.build_reference([checkpoint(tmp_path / str(i), i) for i in range(6)])
    fewer = {name: w for name, w in llama_state(seed=2).items() if "layers.0." not in name}
    copy, stranger = checkpoint(tmp_path / "copy", 0, fewer), checkpoint(tmp_path / "stranger", 7)
    assert Peers.of(specdiag.analyze(copy), found).own == 2
    assert Peers.of(specdiag.analyze(stranger), found).own is None


def test_what_all_sources_share_makes_no_copy():
    models = [several_roles(0.0, i, q=[1.5, 1.7 + 0.1 * i]) for i in range(6)]
    stranger = several_roles(0.0, 9, q=[1.5, 1.72])
    assert Peers.of(stranger, specdiag.build_reference(models)).own is None
