"""Typical values of `specdiag explain` are those that the commands of this repository give."""

from statistics import median

import pytest
from command import invoke

import specdiag
from specdiag.views.terms import _sections, terms


def typical(command, name):
    return next(term.typical for term in terms(name) if term.command == command)


@pytest.fixture(scope="module")
def changes(asset):
    """Attention and MLP of rxnfp's two fine-tunes beside their base."""
    folder = asset("rxnfp")
    return [
        specdiag.compare(folder / "bert_pretrained", folder / name, device="cpu")
        for name in ("bert_ft", "bert_ft_10k_25s")
    ]


def test_every_typical_value_belongs_to_a_name():
    for section, said in _sections().items():
        command, _, kind = section.partition(" ")
        for name, values in said.items() if kind == "typical" else ():
            assert typical(command, name) == values


def test_those_of_compare(changes):
    models = [
        [m.delta for m in found.modules if m.family in ("attention", "mlp") and m.delta is not None]
        for found in changes
    ]
    deltas = [delta for model in models for delta in model]
    assert [len(model) for model in models] == [72, 72]
    moved = [[d.relative_change for d in model] for model in models]
    low, high, (most, less) = min(map(min, moved)), max(map(max, moved)), map(median, moved)
    assert typical("compare", "relative change").startswith(f"{100 * low:.0f} to {100 * high:.0f} % ")
    medians = f"the median {100 * less:.0f} % in one and {100 * most:.0f} % in the other"
    assert medians in typical("compare", "relative change")
    assert typical("compare", "cosine").startswith(f"{min(d.cosine for d in deltas):.2f} to 1 ")
    ranks = [d.stable_rank for d in deltas]
    assert typical("compare", "stable rank of change").startswith(f"{min(ranks):.0f} to {max(ranks):.0f} ")
    held = [100 * d.energy(8) for d in deltas]
    assert typical("compare", "in rank 8").startswith(f"{min(held):.0f} to {max(held):.0f} %")
    angles = [a for d in deltas for a in (d.subspaces.left_angle, d.subspaces.right_angle)]
    assert typical("compare", "angles").startswith(f"{min(angles):.0f} to {max(angles):.0f} degrees")
    roles = [r.abs_alpha for found in changes for r in found.roles if r.family in ("attention", "mlp")]
    assert typical("compare", "|d alpha|").startswith(f"{min(roles):.3f} to {max(roles):.3f}")


def test_those_of_recommend(minilm):
    plan = specdiag.recommend(specdiag.analyze(minilm, device="cpu"), weight_decay=0.1)
    assert typical("recommend", "shape_share").startswith(f"{plan.shape_share:.2f} ")
    assert typical("recommend", "agreement").startswith(f"{plan.agreement:.2f} ")
    assert typical("recommend", "tail_shift").startswith(f"{plan.tail_shift:.2f} ")


def test_those_of_simulate():
    table = invoke("simulate", "--lr", "3e-4", "--weight-decay", "0.1", "--steps", "20000").stdout
    for name in ("steps to 1 %", "1/(2 eta)", "timescale"):
        assert typical("simulate", name).split()[0].rstrip(":") in table
