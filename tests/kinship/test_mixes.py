"""Mixes of two parents: their shares in each layer, whatever the form of the mix."""

import pytest
from lineage_forms import changed
from related_models import llama, opened, tuned

import specdiag

ROUNDED = 0.01
"""Bilinear parts of the change between parents, which the fit leaves out."""


@pytest.fixture(scope="module")
def parents():
    base = llama()
    return tuned(base, 0.05, seed=1), tuned(base, 0.05, seed=2)


def linear(first, second, share):
    return {name: share * value + (1 - share) * second[name] for name, value in first.items()}


def mixes(*states):
    return specdiag.lineage(*map(opened, states), device="cpu").mixes


@pytest.mark.parametrize("share", [0.1, 0.5, 0.7])
def test_a_linear_merge(parents, share):
    (mix,) = mixes(*parents, linear(*parents, share))
    assert (mix.model, mix.parents) == ("C", ("A", "B"))
    assert mix.shares == pytest.approx((share, 1 - share), abs=ROUNDED)
    assert mix.unexplained < 0.05
    assert [layer.layer for layer in mix.layers] == list(range(5))
    assert all(layer.shares[0] == pytest.approx(share, abs=ROUNDED) for layer in mix.layers)


def test_the_order_of_the_sources_does_not_matter(parents):
    (mix,) = mixes(parents[1], linear(*parents, 0.3), parents[0])
    assert (mix.model, mix.parents) == ("B", ("A", "C"))
    assert mix.shares == pytest.approx((0.7, 0.3), abs=ROUNDED)


def test_another_form_of_the_merge(parents):
    plain, other = (mixes(*parents, state)[0] for state in (linear(*parents, 0.3), changed(linear(*parents, 0.3))))
    assert other.shares == pytest.approx(plain.shares, abs=1e-6)
    assert other.unexplained == pytest.approx(plain.unexplained, abs=1e-6)


def test_layers_of_both(parents):
    first, second = parents
    mixed = {n: v if any(f".layers.{i}." in n for i in (0, 1)) else second[n] for n, v in first.items()}
    (mix,) = mixes(first, second, mixed)
    assert [round(layer.shares[0], 6) for layer in mix.layers] == [1, 1, 0, 0, 0]
    assert mix.shares == pytest.approx((0.4, 0.6), abs=1e-6)
    assert mix.unexplained < 1e-6


def test_no_mix_among_fine_tunes_and_their_base(parents):
    assert not mixes(*parents, llama())
    assert not mixes(*parents, tuned(llama(), 0.05, seed=3))
    assert not mixes(*parents, llama(1))
    assert not mixes(parents[0], parents[0], parents[0])


def test_four_sources(parents):
    found = specdiag.lineage(*map(opened, (*parents, llama(1), linear(*parents, 0.3))), device="cpu")
    assert [(mix.model, mix.parents) for mix in found.mixes] == [("D", ("A", "B"))]
    assert found.between("A", "C").verdict == "no relation shown"
    assert found.between("D", "B").verdict == "derived"
    with pytest.raises(KeyError):
        found.between("A", "A")


def test_copies_of_one_model_are_no_mix_of_each_other():
    base = llama()
    rounded = {name: value.half().float() for name, value in base.items()}
    name = next(name for name in base if "layers.3.mlp.down_proj" in name)
    assert mixes(base, base | {name: 1.01 * base[name]}, rounded) == ()
