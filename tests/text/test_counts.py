"""Counts in a sentence."""

from __future__ import annotations

import pytest

from specdiag.text.counts import counted


@pytest.mark.parametrize(("n", "text"), [(0, "0 tensors"), (1, "1 tensor"), (2, "2 tensors")])
def test_a_noun_agrees_with_its_number(n: int, text: str) -> None:
    assert counted(n, "tensor") == text
