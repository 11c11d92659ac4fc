"""Counts as people write them."""

import pytest

from specdiag.text.counts import parse_count


@pytest.mark.parametrize(
    ("text", "count"),
    [("20B", 2e10), ("7e9", 7e9), ("135m", 135e6), ("1.3 T", 1.3e12), ("500,000", 5e5), ("2k", 2e3), ("3G", 3e9), (".5b", 5e8)],
)  # fmt: skip
def test_counts(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "B", "20X", "-3", "nan", "1e", "20 B B", "1/2"])
def test_no_counts(text):
    with pytest.raises(ValueError, match="is no count: write 20B"):
        parse_count(text)
