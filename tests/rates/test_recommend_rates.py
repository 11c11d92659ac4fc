"""Plans of learning rates: LLR's numbers by NumPy's function, what shapes explain, and the plan applied."""

import json

import numpy as np
import pytest
import torch
from command import invoke
from live_models import Decoder, train, weights
from live_optimizers import adamw

import specdiag
from specdiag.errors import SourceError, UsageError
from specdiag.optim import AlphaLR

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def report():
    model = Decoder(layers=3, mlp=160)
    train(model, adamw(model), 3)
    return specdiag.analyze(model)


def test_ratios_are_those_of_the_released_map(report):
    plan = specdiag.recommend_rates(report, lr=2e-3)
    measured = [entry for entry in plan.entries if entry.value is not None]
    values = np.array([report[entry.name].alpha for entry in measured])
    wanted = np.interp(values, [values.min(), values.max()], [1.0, 5.0])
    assert [entry.ratio for entry in measured] == pytest.approx(list(wanted))
    ends = {entry.name: entry.ratio for entry in plan.entries if entry.value is None}
    assert ends == {"embed_tokens.weight": 5.0, "lm_head.weight": 5.0}
    assert all(entry.lr == pytest.approx(entry.ratio * 2e-3) for entry in plan.entries)
    nulls = np.array([report[entry.name].alpha_null for entry in measured])
    random = np.interp(nulls, [nulls.min(), nulls.max()], [1.0, 5.0])
    assert [entry.random_ratio for entry in measured] == pytest.approx(list(random))
    assert plan.shape_share == pytest.approx(np.corrcoef(wanted, random)[0, 1] ** 2)
    counts = [entry.n_parameters for entry in plan.entries]
    assert plan.mean_ratio == pytest.approx(np.average([entry.ratio for entry in plan.entries], weights=counts))


def test_per_layer_shapes_cancel_and_a_preserved_mean_is_1(report):
    plan = specdiag.recommend_rates(report, per="layer", preserve_mean=True, embeddings=False)
    assert plan.shape_share == 0
    assert plan.mean_ratio == pytest.approx(1)
    assert len({entry.ratio for entry in plan.entries if entry.layer == 1}) == 1
    assert plan.headline.startswith("Untested")


def test_random_weights_get_a_plan_of_shapes_that_is_refused():
    plan = specdiag.recommend_rates(Decoder(layers=3, mlp=512, seed=3))
    assert plan.shape_share > 0.5
    assert plan.headline.startswith("Do not use this plan:")


def test_a_plan_of_shapes_names_the_option_that_cancels_them(tmp_path):
    path = specdiag.analyze(Decoder(layers=3, mlp=512, seed=3)).save(tmp_path / "random.specdiag.json")
    first = invoke("recommend", path, "--what", "lr", width=120).stdout.splitlines()[0]
    assert first.endswith("of it is explained by shape. Shapes cancel with --per layer.")


def test_a_live_rule_starts_where_the_plan_stands():
    model = Decoder(layers=3, mlp=160)
    rates = AlphaLR(model, adamw(model), blend=1)
    rates.step(0)
    plan = specdiag.recommend_rates(model)
    assert rates.ratios == pytest.approx(plan.ratios, rel=1e-4)


def test_groups_and_a_live_optimizer_are_the_same_run(report, tmp_path):
    plan = specdiag.load_rates(specdiag.recommend_rates(report, lr=1e-2).save(tmp_path / "rates.json"))
    assert plan == specdiag.recommend_rates(report, lr=1e-2)
    first, second = Decoder(layers=3, mlp=160).double(), Decoder(layers=3, mlp=160).double()
    groups = plan.param_groups(first)
    assert sum(len(group["params"]) for group in groups) == len(list(first.parameters()))
    assert {group["lr"] for group in groups} >= {1e-2, 5e-2}
    optimizer = adamw(second)
    plan.apply(optimizer, second)
    train(first, torch.optim.AdamW(groups, weight_decay=0.1), 4)
    train(second, optimizer, 4)
    ours, expected = weights(second), weights(first)
    assert max(float((ours[name] - expected[name]).abs().max()) for name in ours) < 1e-9
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [({"per": "head"}, "per='head'"), ({"basis": "rho"}, "basis='rho'"), ({"lr": -1}, "lr=-1"), ({"s1": 9}, "s1 9")],
)
def test_options_are_checked(report, options, words):
    with pytest.raises(UsageError, match=words):
        specdiag.recommend_rates(report, **options)


def test_a_plan_of_decays_is_no_plan_of_rates(report, tmp_path):
    path = specdiag.recommend(report).save(tmp_path / "plan.json")
    with pytest.raises(SourceError, match=r"is a decay plan, not a plan of learning rates: make one with"):
        specdiag.load_rates(path)


def test_a_plan_that_does_not_fit_is_refused(report):
    with pytest.raises(UsageError, match="does not fit this model: other sizes"):
        specdiag.recommend_rates(report, lr=1.0).param_groups(Decoder(layers=3))
    with pytest.raises(UsageError, match="no base learning rate"):
        specdiag.recommend_rates(report).param_groups(Decoder(layers=3, mlp=160))


def test_the_command(report, tmp_path):
    path = report.save(tmp_path / "run.specdiag.json")
    shown = invoke("recommend", path, "--what", "lr", "--lr", "3e-4", width=120)
    assert shown.output.splitlines()[0].startswith(("Do not use this plan", "Untested"))
    assert "The mean rate becomes" in shown.output
    out = tmp_path / "rates.json"
    invoke("recommend", path, "--what", "lr", "--per", "layer", "--preserve-mean", "--no-embeddings", "-o", out)
    plan = specdiag.load_rates(out)
    assert plan.per == "layer"
    assert plan.preserve_mean
    assert not plan.embeddings
    rows = json.loads(invoke("recommend", path, "--what", "lr", "--export", "json").stdout)["rate_entries"]
    assert {row["name"] for row in rows} <= {record.name for record in report.records}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--what", "lr", "--rule", "sqrt"], "--rule is of weight decay: leave it out with --what lr"),
        (["--what", "lr", "--weight-decay", "0.1"], "--weight-decay is of weight decay"),
        (["--what", "lr", "--export", "torch"], "--export torch is of weight decay"),
        (["--per", "layer"], "--per belongs to --what lr"),
        (["--no-embeddings"], "--embeddings belongs to --what lr"),
    ],
)
def test_options_of_the_other_are_refused(report, tmp_path, arguments, words):
    path = report.save(tmp_path / "run.specdiag.json")
    done = invoke("recommend", path, *arguments, width=200)
    assert done.exit_code == 2
    assert words in done.stderr
