"""Plans on optimizers: groups for a new one, ratios inside the steps of a live one."""

from typing import Any

import msgspec
import pytest
import torch
from live_models import Decoder, ForTrainer, decays_of_a_step, train
from torch import nn

import specdiag
from specdiag import UsageError
from specdiag.decay.plan_groups import param_groups
from specdiag.records import Source
from specdiag.views.plan_export import export_plan

pytestmark = pytest.mark.usefixtures("one_thread")


def a_plan(ratios, sizes, base=0.1, **columns):
    return specdiag.DecayPlan(
        source=Source(kind="memory", location="Decoder"), report_digest="", rule="linear", basis="alpha", tail="hill",
        s1=0.67, s2=3.0, base_weight_decay=base, mean_ratio=1.0, mean_ratio_weighted=1.0,
        entries=tuple(
            specdiag.PlanEntry(name=n, family="mlp", n_parameters=sizes[n], ratio=r) for n, r in ratios.items()
        ),
        **columns,
    )  # fmt: skip


def plan_of(model, **ratios):
    """A plan with these ratios, by a piece of the name, and 1 elsewhere."""
    plan = specdiag.recommend(model, weight_decay=0.1)
    entries = []
    for entry in plan.entries:
        ratio = next((r for piece, r in ratios.items() if piece in entry.name), 1.0)
        entries.append(msgspec.structs.replace(entry, ratio=ratio, weight_decay=ratio * 0.1))
    return msgspec.structs.replace(plan, entries=tuple(entries))


def by_name(model, groups):
    names = {p: name for name, p in model.named_parameters()}
    return {names[p]: group["weight_decay"] for group in groups for p in group["params"]}


def test_groups_have_the_decays_of_the_plan():
    model = Decoder()
    plan = specdiag.recommend(model, weight_decay=0.1)
    groups = plan.param_groups(model, lr=1e-3)
    decays = by_name(model, groups)
    assert {name: decays[name] for name in plan.ratios} == {e.name: e.weight_decay for e in plan.entries}
    assert decays["lm_head.weight"] == 0.1
    assert decays["embed_tokens.weight"] == decays["norm.weight"] == decays["layers.0.self_attn.q_proj.bias"] == 0
    assert set(decays) == {name for name, _ in model.named_parameters()}
    assert {group["lr"] for group in groups} == {1e-3}
    assert torch.optim.AdamW(groups, lr=1e-3)


class Heads(nn.Module):
    """An attention of TransformerLens: a bias for each head, of two axes."""

    def __init__(self) -> None:
        super().__init__()
        for name in "QKV":
            setattr(self, f"W_{name}", nn.Parameter(torch.randn(4, 64, 16)))
            setattr(self, f"b_{name}", nn.Parameter(torch.zeros(4, 16)))
        self.W_O = nn.Parameter(torch.randn(4, 16, 64))


def test_biases_of_two_axes_have_no_decay():
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.ModuleDict({"attn": Heads()}) for _ in range(2)])})
    plan = specdiag.recommend(model, weight_decay=0.1)
    exported: dict[str, Any] = {}
    exec(export_plan(plan, "torch"), exported)
    for groups in (plan.param_groups(model), exported["param_groups"](model, lr=1e-3)):
        decays = by_name(model, groups)
        assert {name.rpartition(".")[2] for name, decay in decays.items() if decay == 0} == {"b_Q", "b_K", "b_V"}


def test_equal_decays_share_a_group_and_frozen_parameters_are_left_out():
    model = Decoder()
    model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    groups = plan_of(model, q_proj=2.0).param_groups(model)
    assert [group["weight_decay"] for group in groups] == [0.2, 0.1, 0.0]
    assert "layers.0.mlp.up_proj.weight" not in by_name(model, groups)
    assert all("lr" not in group for group in groups)


def test_another_base_and_none():
    model = Decoder()
    plan = msgspec.structs.replace(plan_of(model, q_proj=2.0), base_weight_decay=None)
    assert by_name(model, plan.param_groups(model, weight_decay=0.5))["layers.0.self_attn.q_proj.weight"] == 1.0
    with pytest.raises(UsageError, match=r"no base weight decay.*weight_decay=0\.1"):
        plan.param_groups(model)


def test_a_tied_head_counts_once_and_is_an_embedding():
    model = Decoder(tied=True)
    groups = plan_of(model).param_groups(model)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert by_name(model, groups)["embed_tokens.weight"] == 0


def test_names_with_and_without_a_base_model_prefix_and_wrappers():
    model = Decoder()
    outer = torch.nn.Module()
    outer.model = model
    plan, outer_plan = plan_of(model, q_proj=2.0), plan_of(outer, q_proj=2.0)
    assert next(iter(outer_plan.ratios)).startswith("model.layers.")
    expected = by_name(model, plan.param_groups(model))
    assert by_name(model, outer_plan.param_groups(model)) == expected
    assert by_name(model, plan.param_groups(outer)) == expected
    assert by_name(model, plan.param_groups(torch.compile(model, backend="eager"))) == expected
    assert by_name(model, plan.param_groups(torch.nn.DataParallel(model))) == expected


def test_two_ways_to_fit_are_refused():
    model = torch.nn.Module()
    model.a, model.b = Decoder(), Decoder()
    with pytest.raises(UsageError, match=r"several ways.*a\.layers\.0.* or b\.layers\.0"):
        plan_of(Decoder()).param_groups(model)


def test_a_plan_that_does_not_fit_is_refused_with_the_difference():
    plan = plan_of(Decoder())
    with pytest.raises(UsageError, match=r"plan of Decoder.*the model lacks layers\.1\.self_attn\.q_proj\.weight"):
        plan.param_groups(Decoder(layers=1))
    with pytest.raises(UsageError, match=r"up_proj\.weight \(plan 8192 values, model 6144\)"):
        plan.param_groups(Decoder(mlp=96))
    with pytest.raises(UsageError, match=r"the plan ends before layers\.2\..* and 3 more"):
        plan.param_groups(Decoder(layers=3))
    with pytest.raises(UsageError, match="names like 'weight'"):
        plan.apply(torch.optim.AdamW(Decoder().parameters()), torch.nn.Linear(3, 3))


def test_what_include_and_exclude_leave_out_is_no_difference():
    model = Decoder()
    plan = specdiag.recommend(model, weight_decay=0.1, exclude="layers.0.self_attn.*")
    assert by_name(model, plan.param_groups(model))["layers.0.self_attn.q_proj.weight"] == 0.1


def test_parts_may_be_fewer_than_the_parameter_holds():
    model = torch.nn.Sequential(torch.nn.Linear(64, 192, bias=False))
    plan = a_plan({"0.weight": 2.0}, {"0.weight": 64 * 64})
    with pytest.raises(UsageError, match="plan 4096 values, model 12288"):
        param_groups(plan, model)
    (entry,) = plan.entries
    plan = msgspec.structs.replace(plan, entries=(msgspec.structs.replace(entry, part_values={"q": 2.0}),))
    assert param_groups(plan, model)[0]["weight_decay"] == 0.2


def test_a_plan_of_chosen_modules_may_end_anywhere():
    model = Decoder()
    plan = specdiag.recommend(model, weight_decay=0.1, exclude="layers.1.*")
    assert plan.exclude == ("layers.1.*",)
    param_groups(plan, model)
    with pytest.raises(UsageError, match=r"the plan ends before layers\.1"):
        param_groups(msgspec.structs.replace(plan, exclude=()), model)


def test_three_ways_to_apply_a_plan_give_the_same_decays(tmp_path):
    from transformers import Trainer, TrainingArguments

    model = ForTrainer()
    plan = plan_of(model, q_proj=2.0, down_proj=0.5)
    expected = by_name(model, plan.param_groups(model))

    built = torch.optim.AdamW(plan.param_groups(model, lr=1e-3))
    plain = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if expected[name_of(model, p)] > 0]},
            {"params": [p for p in model.parameters() if expected[name_of(model, p)] == 0], "weight_decay": 0.0},
        ],
        lr=1e-3,
        weight_decay=0.1,
    )
    plan.apply(plain, model)
    given = torch.optim.AdamW(plan.param_groups(model, lr=1e-3))
    arguments = TrainingArguments(
        tmp_path, max_steps=1, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True, logging_strategy="no"
    )
    data = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 8
    in_trainer = decays_of_a_step(given, model)
    Trainer(model, arguments, train_dataset=data, optimizers=(given, None)).train()
    for optimizer in (built, plain):
        seen = decays_of_a_step(optimizer, model)
        optimizer.step()
        assert seen == expected
    assert in_trainer == expected


def test_applying_keeps_groups_state_and_schedulers_and_replaces_a_former_plan():
    model = Decoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    train(model, optimizer, 2, scheduler)
    groups = optimizer.param_groups
    plan_of(model, q_proj=2.0).apply(optimizer, model)
    plan_of(model, q_proj=3.0).apply(optimizer, model)
    seen = decays_of_a_step(optimizer, model)
    train(model, optimizer, 2, scheduler)
    assert optimizer.param_groups is groups
    assert len(groups) == 1
    assert groups[0]["weight_decay"] == 0.1
    assert seen["layers.0.self_attn.q_proj.weight"] == pytest.approx(0.3)
    assert seen["layers.0.self_attn.k_proj.weight"] == 0.1


def test_an_optimizer_over_another_model_is_refused():
    model = Decoder()
    with pytest.raises(UsageError, match=r"the optimizer lacks layers\.0.* built over this model"):
        plan_of(model).apply(torch.optim.AdamW(Decoder().parameters()), model)


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(UsageError, match="'nothing' matches none of"):
        specdiag.recommend(specdiag.analyze(Decoder()), include="nothing")


def name_of(model, parameter):
    return next(name for name, p in model.named_parameters() if p is parameter)


def test_ratios_of_a_plan_are_not_multiplied_twice():
    model = Decoder()
    plan = plan_of(model, q_proj=2.0)
    optimizer = torch.optim.AdamW(plan.param_groups(model, lr=1e-3))
    with pytest.raises(UsageError, match=r"made by plan\.param_groups, and AlphaDecay would multiply"):
        specdiag.optim.AlphaDecay(model, optimizer)
    with pytest.raises(UsageError, match=r"and DecayPlan\.apply would multiply"):
        plan.apply(optimizer, model)
    with pytest.raises(UsageError, match="takes an optimizer and then a model"):
        plan.apply(model, optimizer)
