"""The audit lists numbers outside of the reference ranges as info, never as a warning."""

import pytest
from reference_models import report

import specdiag

NAME = "model.layers.1.self_attn.q_proj.weight"
VALUES = ([1.4, 1.6], [1.5, 1.7], [1.5, 1.9], [1.6, 1.8], [1.7, 2.0])


def audited(n, values=(1.5, 2.5)):
    ranges = specdiag.build_reference([report(each, i) for i, each in enumerate(VALUES[:n])])
    return specdiag.audit(report(values, 9), reference=ranges)


def told(found):
    return [(f.check, f.severity, f.module, f.value) for f in found.findings if f.check == "reference_range"]


def test_a_number_outside_is_a_fact():
    found = audited(5)
    value = "square_alpha 2.5 (1.4 to 2), outside the range of 5 decoders of 2 parameters"
    assert told(found) == [("reference_range", "info", NAME, value)]
    assert found.counts["warn"] == found.counts["fail"] == 0
    assert found.verdict == "pass"


def test_numbers_within_are_checked_and_not_told():
    found = audited(5, (1.5, 1.9))
    assert told(found) == []
    assert "reference_range" in found.coverage.checks


@pytest.mark.parametrize("n", [1, 4])
def test_fewer_than_five_models_say_nothing(n):
    found = audited(n)
    assert told(found) == []
    lacking = f"{n} decoder{'s' if n > 1 else ''}, 5 needed"
    assert found.coverage.not_checked["reference_range"] == f"no comparable reference: {lacking}"


def test_what_comes_with_specdiag_is_taken_where_nothing_is_named():
    found = specdiag.audit(report((1.5, 2.5), 9))
    assert found.coverage.not_checked["reference_range"] == "no comparable reference: 1 decoder, 5 needed"
