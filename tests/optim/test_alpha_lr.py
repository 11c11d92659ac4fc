"""AlphaLR on live optimizers: the released code's ratios, moved over some steps, kept on resume."""

import copy
import logging
import warnings
from statistics import fmean

import numpy as np
import pytest
import torch
from live_models import Decoder, alike, train, weights
from live_optimizers import OPTIMIZERS, adamw

from specdiag.errors import UsageError
from specdiag.live.attaching import rates_in_force
from specdiag.optim import AlphaDecay, AlphaLR, NormWatch

pytestmark = pytest.mark.usefixtures("one_thread")


def released(alphas, s1, s2):
    """`tb_linear_map` of the released code, by the same NumPy function."""
    values = np.array(list(alphas.values()))
    return dict(zip(alphas, np.interp(values, [values.min(), values.max()], [s1, s2]), strict=True))


def trained(**options):
    model = Decoder()
    optimizer = adamw(model)
    train(model, optimizer, 2)
    return model, optimizer, AlphaLR(model, optimizer, **options)


def test_ratios_move_to_those_of_the_released_code():
    model, optimizer, rates = trained(blend=4, every=100)
    seen = []
    for step in range(6):
        rates.step(step)
        seen.append(rates.ratios)
        optimizer.step()
    wanted = released(rates.alphas, 1.0, 5.0)
    for step, ratios in enumerate(seen):
        done = min(1.0, (step + 1) / 4)
        assert {n: ratios[n] for n in wanted} == pytest.approx({n: 1 + (r - 1) * done for n, r in wanted.items()})
    assert seen[-1]["embed_tokens.weight"] == seen[-1]["lm_head.weight"] == 5.0
    assert rates_in_force(optimizer)[model.embed_tokens.weight] == 5.0
    assert set(seen[-1]) == {n for n, p in model.named_parameters() if p.ndim == 2}


def test_without_embeddings_and_with_a_tied_head():
    _, _, rates = trained(blend=1, embeddings=False)
    rates.step(0)
    assert not {"embed_tokens.weight", "lm_head.weight"} & set(rates.ratios)
    model = Decoder(tied=True)
    rates = AlphaLR(model, adamw(model), blend=1)
    rates.step(0)
    assert [n for n in rates.ratios if "layers" not in n] == ["embed_tokens.weight"]


def test_layers_have_one_ratio_and_a_preserved_mean_is_1():
    model, _, rates = trained(blend=1, per="layer", preserve_mean=True)
    rates.step(0)
    by_layer = {}
    for name, alpha in rates.alphas.items():
        by_layer.setdefault(name.split(".")[1], []).append(alpha)
    means = {layer: fmean(alphas) for layer, alphas in by_layer.items()}
    assert len({rates.ratios[n] for n in rates.alphas if n.startswith("layers.0")}) == 1
    low, high = sorted(means, key=means.get)
    counts = {n: p.numel() for n, p in model.named_parameters() if n in rates.ratios}
    assert sum(counts[n] * r for n, r in rates.ratios.items()) / sum(counts.values()) == pytest.approx(1)
    first, last = (next(r for n, r in rates.ratios.items() if n.startswith(f"layers.{x}")) for x in (low, high))
    assert last / first == pytest.approx(5)


def test_nothing_is_measured_from_until_on():
    model, optimizer, rates = trained(every=1, blend=1, until=3)
    found = []
    for step in range(6):
        train(model, optimizer, 1, decay=rates, start=step)
        found.append(rates.alphas)
    assert found[0] != found[1] != found[2]
    assert found[2] == found[3] == found[5]


@pytest.mark.parametrize("mode", ["sweep", "round-robin", "background"])
def test_a_resumed_run_is_bitwise_the_same(mode):
    def made():
        model = Decoder()
        optimizer = adamw(model)
        return model, optimizer, AlphaLR(model, optimizer, every=3, blend=5, mode=mode)

    model, optimizer, rates = made()
    train(model, optimizer, 4, decay=rates)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), rates.state_dict()))
    other, own, resumed = made()
    other.load_state_dict(saved[0])
    own.load_state_dict(saved[1])
    resumed.load_state_dict(saved[2])
    assert resumed.ratios == rates.ratios
    train(model, optimizer, 5, decay=rates, start=4)
    train(other, own, 5, decay=resumed, start=4)
    assert alike(weights(model), weights(other))
    rates.detach()
    resumed.detach()


def test_with_alpha_decay_the_effective_decay_is_the_product_of_both_ratios():
    models = []
    for split in (False, True):
        model = Decoder().double()
        optimizer = adamw(model)
        decay, rates = AlphaDecay(model, optimizer, measure_first=True), AlphaLR(model, optimizer, blend=1)
        decay.step(0)
        rates.step(0)
        if split:
            decay.detach()
            rates.detach()
            groups = [
                {"params": [p], "lr": 1e-2 * rates.ratios.get(n, 1), "weight_decay": 0.1 * decay.ratios.get(n, 1)}
                for n, p in model.named_parameters()
            ]
            optimizer = torch.optim.AdamW(groups)
        train(model, optimizer, 1)
        models.append(weights(model))
    assert max(float((models[0][n] - models[1][n]).abs().max()) for n in models[0]) < 1e-12


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_with_equal_ratios_a_run_is_bitwise_what_it_is_without(make):
    found = []
    for attached in (False, True):
        model = Decoder()
        optimizer = make(model)
        rates = AlphaLR(model, optimizer, s1=1.0, s2=1.0, blend=1) if attached else None
        train(model, optimizer, 3, decay=rates)
        found.append(weights(model))
    assert alike(*found)


def test_the_watched_rate_is_the_one_that_acts():
    model, optimizer, rates = trained(blend=1)
    watch = NormWatch(model, optimizer, every=1)
    rates.step(0)
    watch.step(0)
    train(model, optimizer, 1)
    logged = {e.module: e.value for e in watch.latest if e.metric == "lr" and e.module in rates.ratios}
    assert logged == pytest.approx({n: 1e-2 * r for n, r in rates.ratios.items()})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"blend": 0}, "blend=0"),
        ({"until": -1}, "until=-1"),
        ({"per": "head"}, "per='head'"),
        ({"s1": 2.0, "s2": 1.0}, "s1 2.0 and s2 1.0"),
        ({"preserve_mean": 1.5}, "preserve_mean=1.5"),
        ({"every": 0}, "every=0"),
    ],
)
def test_options_are_checked(options, words):
    model = Decoder()
    with pytest.raises(UsageError, match=words):
        AlphaLR(model, adamw(model), **options)


def test_a_rate_of_zero_is_named_and_a_schedule_that_warms_up_is_not():
    model = Decoder()
    with pytest.warns(UserWarning, match="learning rate of all 14 Parameters is 0"):
        AlphaLR(model, adamw(model, lr=0.0))
    optimizer = adamw(model)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AlphaLR(model, optimizer)


def test_a_state_of_other_settings_is_named(caplog):
    _, _, rates = trained()
    rates.step(0)
    _, _, other = trained(s2=3.0)
    with caplog.at_level(logging.WARNING, logger="specdiag"):
        other.load_state_dict(rates.state_dict())
    assert "AlphaLR goes on with other settings: s2 5.0 -> 3.0" in caplog.text
