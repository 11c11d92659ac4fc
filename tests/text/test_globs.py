"""Names in sentences and globs on names: one form of each, everywhere."""

import ast
from pathlib import Path

import pytest

from specdiag.errors import UsageError
from specdiag.text.globs import check_globs, chosen, fits
from specdiag.text.names import listed

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("names", "most", "text"),
    [
        ([], 3, ""),
        (["a"], 3, "a"),
        ("abc", 3, "a, b, c"),
        ("abcd", 3, "a, b, c and 1 more"),
        (range(5), 2, "0, 1 and 3 more"),
        (["red\x1b[31m", "a\nb"], 5, r"red\x1b[31m, a\nb"),
    ],
)
def test_names_are_listed_safely_and_the_rest_counted(names, most, text):
    assert listed(iter(names), most) == text


def test_a_pattern_is_held_against_every_name_of_a_tensor():
    names = ("attn.c_attn.weight[q]", "attn.c_attn.weight")
    assert fits(iter(names), iter(["*.nothing", "*c_attn.weight"]))
    assert fits(names, ["attn.c_attn.weight[q]"])  # as a glob, [q] is the letter q
    assert not fits(["attn.c_attn.weightq[k]"], ["attn.c_attn.weight[q]"])
    assert not fits(["ATTN"], ["attn"])
    assert not fits(names, [])


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [((), (), True), (["h.*"], (), True), (["g.*"], (), False), ((), ["h.*"], False), (["h.*"], ["*.w"], False)],
)
def test_exclusion_goes_before_inclusion(include, exclude, expected):
    assert chosen(iter(["h.0.w"]), include, exclude) is expected


def test_a_pattern_without_a_match_is_refused_with_an_example():
    tensors = [("h.0.w[q]", "h.0.w"), ("h.1.w",)]
    check_globs("include", ["h.0.w", "*.1.*"], tensors, "matrices")
    with pytest.raises(UsageError) as caught:
        check_globs("include", ["h.*", "z\x1b*"], tensors, "matrices")
    assert str(caught.value) == r"include='z\x1b*' matches none of 2 matrices; their names look like 'h.0.w[q]'"
    with pytest.raises(UsageError, match=r"^exclude='x' matches none of 0 matrices$"):
        check_globs("exclude", ["x"], [], "matrices")


def test_nothing_else_matches_globs():
    for path in [*(ROOT / "specdiag").rglob("*.py"), *(ROOT / "cli").glob("*.py")]:
        modules = {n.module for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)}
        assert "fnmatch" not in modules or path.name == "globs.py", path
