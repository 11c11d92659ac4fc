"""The meaning of each number: one entry for every column, in docs/reading.md and by `specdiag explain`."""

import re
from pathlib import Path

import pytest
from command import execute

from specdiag.records import ModuleRecord
from specdiag.views.reading import entries, find, reading_page

PAGE = (Path(__file__).parents[2] / "docs" / "reading.md").read_text()
IDENTITY = {
    "name", "part", "form", "role", "family", "layer", "head", "component", "cross_attention", "recognised", "rows", "cols", "n_slices",
    "storage_dtype", "dequantized", "parametrized", "tail", "k", "xmin", "n_clipped", "digest", "method",
    "compute_dtype",
}  # fmt: skip
"""Columns that say what a row is and how it was computed: docs/numbers.md lists them."""


def test_every_number_has_one_entry():
    explained = [name for entry in entries() for name in (entry.column, *entry.also)]
    assert len(explained) == len(set(explained))
    assert {*ModuleRecord.__struct_fields__} - IDENTITY <= {*explained}
    assert not IDENTITY & {*explained}


def test_the_page_is_made_of_them():
    assert reading_page() in PAGE


@pytest.mark.parametrize(
    ("asked", "found"), [("alpha", "alpha"), ("null", "alpha_null"), ("Sigma_max", "spectral_norm")]
)
def test_columns_and_heads_are_found(asked, found):
    assert find(asked).column == found


def test_a_column_that_is_not_there():
    done = execute("explain", "stable_rnak", env={"COLUMNS": "200"})
    assert done.returncode == 2
    assert "no column or check is called 'stable_rnak': did you mean stable_rank" in done.stderr
    done = execute("explain", "\x1b?", env={"COLUMNS": "200"})
    assert r"no column or check is called '\x1b?': choose from square_alpha, " in done.stderr


def test_without_a_name_the_names_are_listed():
    done = execute("explain", env={"COLUMNS": "100"})
    assert done.returncode == 0
    assert re.search("^Numbers of a report +square_alpha, ", done.stdout)
    assert re.search("^Checks of the audit +nonfinite, ", done.stdout, re.MULTILINE)
    assert "next: specdiag explain NAME" in done.stderr


def test_command():
    done = execute("explain", "square_alpha", env={"COLUMNS": "60"})
    assert done.returncode == 0
    assert done.stdout.startswith("square_alpha\n\nMeaning  Tail exponent (alpha) of a square cut")
    assert max(map(len, done.stdout.splitlines())) <= 61
    assert execute("explain", "charm").returncode == 2
