"""The summary of a saved report keeps the bounds of measured ones, or the report is refused in a sentence."""

import json

import pytest
from models import lcg_state

import specdiag
from specdiag.errors import SourceError


@pytest.fixture(scope="module")
def report():
    places = ("self_attn.q_proj", "mlp.up_proj")
    names = [f"model.layers.{i}.{place}.weight" for i in range(3) for place in places]
    return specdiag.analyze(lcg_state(names), device="cpu")


def with_summary(report, path, *keys, value):
    content = json.loads(report.to_json())
    part = content["summary"]
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("keys", "value", "problem"),
    [
        (("n_parameters",), 1 << 61, "n_parameters is 2305843009213693952"),
        (("n_matrices",), -1, "n_matrices is -1"),
        (("statuses", "ok"), -3, "'ok' is counted -3 times"),
        (("balance_range",), None, "balance_sd and balance_range do not go together"),
        (("roles", 0, "n_alpha"), 4, "attention q: n_alpha is 4"),
        (("roles", 0, "alpha_min"), None, "attention q: alpha has the minimum, median and maximum"),
        (("roles", 0, "square_alpha"), 0.5, "attention q: square_alpha is 0.5"),
        (("contrasts", 0, "n_layers"), -2000, "contrast of all by alpha: n_layers is -2000"),
        (("contrasts", 0, "n_positive"), 4, "n_positive is 4"),
        (("contrasts", 0, "p"), 1.5, "p is 1.5"),
        (("contrasts", 0, "low"), 1e9, "its interval is"),
        (("contrasts", 0, "random_n_positive"), None, "what random matrices give is"),
    ],
)
def test_an_impossible_summary_is_refused(report, tmp_path, keys, value, problem):
    path = with_summary(report, tmp_path / "a.json", *keys, value=value)
    with pytest.raises(SourceError, match="is damaged") as refused:
        specdiag.load_report(path)
    assert problem in str(refused.value)


def test_a_contrast_that_is_there_twice_is_refused(report, tmp_path):
    contrasts = json.loads(report.to_json())["summary"]["contrasts"]
    path = with_summary(report, tmp_path / "a.json", "contrasts", value=contrasts + contrasts[:1])
    with pytest.raises(SourceError, match="a role or a contrast is there twice"):
        specdiag.load_report(path)
