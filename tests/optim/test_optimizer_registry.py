"""The table of optimizers: every entry builds, learns and is in the docs; kinds of parameters and presets are the published ones."""

import json
import re
from pathlib import Path

import pytest
import torch
from live_models import Decoder, Q, decays_of_a_step, train, weights

from specdiag import UsageError
from specdiag.live.attaching import attach
from specdiag.live.parameter_kinds import trained_parameters
from specdiag.optim import (
    AWD,
    METHODS,
    AdaDecay,
    AlphaDecay,
    ModuleAdaDecay,
    RenormalizedAdamW,
    Scion,
    optimizers,
    scion_groups,
)  # fmt: skip
from specdiag.optim.decay_semantics import decay_semantics
from specdiag.optim.layout import layout
from specdiag.optim.registry import markdown

DOCS = Path(__file__).parents[2] / "docs" / "optimizers.md"

pytestmark = pytest.mark.usefixtures("one_thread")


class Image(torch.nn.Module):
    """timm's names."""

    def __init__(self):
        super().__init__()
        self.cls_token = torch.nn.Parameter(torch.zeros(1, 1, 16))
        self.pos_embed = torch.nn.Parameter(torch.zeros(1, 5, 16))
        self.patch_embed = torch.nn.ModuleDict({"proj": torch.nn.Conv2d(3, 16, 4, 4)})
        block = {"qkv": torch.nn.Linear(16, 48), "proj": torch.nn.Linear(16, 16)}
        self.blocks = torch.nn.ModuleList([torch.nn.ModuleDict({"attn": torch.nn.ModuleDict(block)})])
        self.norm = torch.nn.LayerNorm(16)
        self.head = torch.nn.Linear(16, 10)


def test_the_docs_hold_the_table():
    found = re.search(r"<!-- optimizers -->\n(.*)\n<!-- /optimizers -->", DOCS.read_text(), re.DOTALL)
    assert found is not None
    assert found[1] == markdown()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_every_parameter_and_takes_a_ratio(name):
    runs = []
    for attached in (False, True):
        model = Decoder().double()
        built = optimizers(name, model, lr=2**-8 if "scion" in name else 1e-2)
        assert {p for each in built for group in each.param_groups for p in group["params"]} == set(model.parameters())
        train(model, built, 2)
        if attached:
            wanted = dict(model.named_parameters())[Q]
            for each in built:
                attach(each, "ratio", "test", lambda p, _, wanted=wanted: 2.0 if p is wanted else 1.0)
        train(model, built, 1, start=2)
        runs.append(weights(model))
    plain, ours = runs
    assert all(torch.equal(plain[n], ours[n]) for n in plain if n != Q)
    assert not torch.equal(plain[Q], ours[Q])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_is(name):
    method = METHODS[name]
    assert method.formula
    assert method.source
    assert method.disagreements.endswith(".")
    json.dumps(dict(method.defaults))
    assert {"lr", "weight_decay"} <= set(method.defaults)


@pytest.mark.parametrize("name", ["adamw", "sgd", "renormalized-adamw", "awd", "muon"])
def test_biases_norms_and_embeddings_have_no_decay(name):
    for tied in (False, True):
        model = Decoder(layers=1, tied=tied)
        built = optimizers(name, model, weight_decay=0.25)
        seen = {}
        for each in built:
            by_name = decays_of_a_step(each, model)
            train(model, each, 1)
            seen |= by_name
        decayed = {n for n, decay in seen.items() if decay}
        head = set() if tied else {"lm_head.weight"}
        assert decayed == {n for n, p in model.layers.named_parameters("layers") if p.ndim == 2} | head


@pytest.mark.parametrize("name", ["adamc", "sgdc"])
def test_corrected_methods_follow_the_lr(name):
    model = Decoder(layers=1)
    (optimizer,) = optimizers(name, model, lr=0.1, weight_decay=0.25)
    seen = decays_of_a_step(optimizer, model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    train(model, optimizer, 1, scheduler)
    assert seen[Q] == 0.125
    assert seen["lm_head.weight"] == 0.25


def test_muon_has_the_hidden_matrices_and_adamw_the_rest():
    model = Decoder(layers=1)
    muon, adamw = optimizers("muon", model)
    assert type(muon) is torch.optim.Muon
    assert {p.ndim for p in muon.param_groups[0]["params"]} == {2}
    assert len(muon.param_groups[0]["params"]) == 6
    assert model.lm_head.weight in set(adamw.param_groups[0]["params"])
    train(model, [muon, adamw], 2, decay=AlphaDecay(model, [muon, adamw], measure_first=True))


def test_the_presets_are_the_published_ones():
    """Radii of decay-methods 4.1; C^2 of check case C3, and of the paper's table 4 for ViT."""
    groups = {group["place"]: group for group in scion_groups(Decoder(layers=1), "nanogpt", corrected=True)}
    found = {place: (group["lmo"], group["radius"], group["target_norm"]) for place, group in groups.items()}
    assert found == {
        "input": ("sign", 3000, None),
        "hidden": ("spectral", 50, pytest.approx(5.79833984375)),
        "output": ("sign", 3000, None),
        "bias": ("bias-rms", 50, pytest.approx(5.79833984375)),
    }
    assert {group["lr"] for group in groups.values()} == {2**-12}
    hidden = next(group for group in scion_groups(Decoder(), "vit", corrected=True) if group["place"] == "hidden")
    assert (hidden["radius"], hidden["lr"]) == (25, 8e-5)
    assert hidden["target_norm"] == pytest.approx(0.475)
    (scionc,) = optimizers("scionc", Decoder(layers=1), preset="vit", target_norm=1.1875)
    targets = {group["place"]: group["target_norm"] for group in scionc.param_groups}
    assert {group["momentum"] for group in scionc.param_groups} == {0.9}
    assert optimizers("scion", Decoder(), momentum=0.5)[0].param_groups[0]["momentum"] == 0.5
    assert targets == {"input": 1.1875, "hidden": 1.1875, "bias": 1.1875, "output": None}


def test_a_tied_head_is_the_output():
    kinds = {each.name: each.kind for each in trained_parameters(Decoder(layers=1, tied=True))}
    assert kinds["embed_tokens.weight"] == "output"
    assert "input" not in kinds.values()


def test_a_vision_transformer_of_other_names():
    model = Image()
    kinds = {each.name: each.kind for each in trained_parameters(model)}
    assert {n for n, kind in kinds.items() if kind == "output"} == {"head.weight"}
    assert {n for n, kind in kinds.items() if kind == "input"} == {"pos_embed", "patch_embed.proj.weight"}
    assert kinds["cls_token"] == kinds["norm.weight"] == kinds["head.bias"] == "bias"
    by_parameter = {p: group for group in scion_groups(model, "vit") for p in group["params"]}
    assert by_parameter[model.patch_embed["proj"].weight]["lmo"] == "spectral-conv"
    assert by_parameter[model.pos_embed]["lmo"] == "bias-rms"
    assert by_parameter[model.head.weight]["radius"] == 500
    Scion(scion_groups(model, "vit"))


def test_matrices_that_are_stored_the_other_way_are_turned():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=1, n_embd=8, n_head=2, vocab_size=20, n_positions=4, bos_token_id=1, eos_token_id=1
    )
    model = transformers.GPT2LMHeadModel(config)
    by_parameter = {p: group for group in scion_groups(model) for p in group["params"]}
    assert by_parameter[model.transformer.h[0].mlp.c_fc.weight]["transpose"] is True
    assert by_parameter[model.transformer.wte.weight]["transpose"] is False
    assert by_parameter[model.transformer.wte.weight]["place"] == "output"


def test_kinds_can_be_overridden_and_mistakes_are_reported():
    model = Decoder(layers=1)
    kinds = {each.name: each.kind for each in trained_parameters(model, {"*.o_proj.*": "output"})}
    assert kinds["layers.0.self_attn.o_proj.weight"] == "output"
    with pytest.raises(
        UsageError, match=r"'pooler\.\*' matches none of 11 parameters; their names look like 'embed_tokens"
    ):
        trained_parameters(model, {"pooler.*": "hidden"})
    with pytest.raises(UsageError, match=r"is given no place but 'middle'; choose from input, hidden"):
        trained_parameters(model, {"*": "middle"})
    with pytest.raises(UsageError, match="Decoder has no parameter that is trained"):
        trained_parameters(model.requires_grad_(False))


def test_the_layout_names_every_layer_and_what_nobody_trains():
    model = Decoder()
    (scion,) = optimizers("scionc", model)
    printed = layout(model, scion)
    assert printed in DOCS.read_text()
    (adamw,) = optimizers("adamw", Decoder())
    lines = layout(model, torch.optim.AdamW(model.layers.parameters(), lr=1e-3)).splitlines()
    assert lines[0].split() == ["optimizer", "lr", "decay", "tensors", "values", "such", "as"]
    assert lines[2].split() == ["none", "4", "10368", "embed_tokens.weight"]
    assert "0.01" in layout(model, adamw)


def test_unknown_names_and_options_are_refused():
    model = Decoder(layers=1)
    with pytest.raises(UsageError, match="unknown optimizer='lion'; choose from adam, adamw, adamc"):
        optimizers("lion", model)
    with pytest.raises(UsageError, match="adamw has no option 'momentum'; it has lr, weight_decay, beta1"):
        optimizers("adamw", model, momentum=0.9)
    with pytest.raises(UsageError, match="unknown preset='llama'; choose from nanogpt, vit"):
        optimizers("scion", model, preset="llama")
    with pytest.raises(UsageError, match=r"weight_decay=-0\.1"):
        optimizers("adamw", model, weight_decay=-0.1)
    with pytest.raises(UsageError, match="model=None: give a Module"):
        optimizers("adamw", None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="model=None: give a Module"):
        scion_groups(None, "nanogpt")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="has no hidden matrix for Muon"):
        optimizers("muon", torch.nn.LayerNorm(4))


def test_the_module_variant_of_ada_decay():
    model = Decoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    decay = ModuleAdaDecay(model, optimizer, every=2)
    seen = decays_of_a_step(optimizer, model)
    train(model, optimizer, 1, decay=decay)
    assert set(decay.ratios.values()) == {1.0}
    train(model, optimizer, 1, decay=decay, start=1)
    assert {n: seen[n] for n in decay.ratios} == pytest.approx({n: 0.1 * r for n, r in decay.ratios.items()})
    first = [ratio for name, ratio in decay.ratios.items() if name.startswith("layers.0")]
    assert min(first) < 0.7
    assert max(first) > 1.5
    with pytest.raises(UsageError, match="ModuleAdaDecay already sets the decay"):
        AlphaDecay(model, optimizer)
    decay.detach()
    again = ModuleAdaDecay(model, optimizer)
    again.load_state_dict(json.loads(json.dumps(decay.state_dict())))
    assert again.ratios == decay.ratios
    with pytest.raises(UsageError, match="is of other modules"):
        again.load_state_dict({"ratios": {}})
    with pytest.raises(UsageError, match="every=0 must be"):
        ModuleAdaDecay(model, optimizer, every=0)


def test_muon_is_torchs_and_what_torch_says_of_it():
    """decay-methods M1 and M2: matrices alone, Jordan's factor 1.414 and Moonlight's 0.4 for 4 x 2, one step of each."""
    with pytest.raises(ValueError, match="2D"):
        torch.optim.Muon([torch.nn.Parameter(torch.zeros(3))])
    steps = {}
    for adjust, factor in (("original", 2**0.5), ("match_rms_adamw", 0.4)):
        model = torch.nn.Sequential(torch.nn.Linear(2, 4, bias=False), torch.nn.Linear(4, 2, bias=False))
        hidden = model[0].weight
        with torch.no_grad():
            hidden.copy_(torch.eye(4, 2))
        (muon, *_) = optimizers("muon", model, lr=0.1, weight_decay=0.1, adjust_lr_fn=adjust)
        assert muon.param_groups[0]["params"] == [hidden]
        hidden.grad = torch.tensor([[1.0, 2.0]]).repeat(4, 1)
        muon.step()
        steps[adjust] = (0.99 * torch.eye(4, 2) - hidden.detach()) / (0.1 * factor)
    first = 0.99 * torch.eye(4, 2) - 0.1 * 2**0.5 * steps["original"]
    expected = torch.tensor([0.9686, -0.0428, 0.9472, -0.0214])
    torch.testing.assert_close(first[[0, 0, 1, 2], [0, 1, 1, 0]], expected, rtol=0, atol=2e-2)
    torch.testing.assert_close(steps["original"], steps["match_rms_adamw"], rtol=0, atol=1e-5)


class Adam2(torch.optim.Adam):
    """A subclass, as users write them."""


class Lion(torch.optim.Optimizer):
    """As packages other than torch have it."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1, "weight_decay": 0.1, "betas": (0.9, 0.99)})


@pytest.mark.parametrize(
    ("make", "decay", "simulated"),
    [
        (lambda p: torch.optim.AdamW(p), "decoupled", "adamw"),
        (lambda p: torch.optim.AdamW(p, amsgrad=True), "decoupled", None),
        (lambda p: torch.optim.Adam(p), "coupled", "adamw"),
        (lambda p: torch.optim.Adam(p, weight_decay=0.1), "coupled", None),
        (lambda p: torch.optim.SGD(p, momentum=0.9), "coupled", "sgdm"),
        (lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True), "coupled", None),
        (lambda p: torch.optim.RMSprop(p), "coupled", None),
        (lambda p: torch.optim.Adafactor(p), "decoupled", None),
        (lambda p: Adam2(p, weight_decay=0.1), "coupled", None),
        (lambda p: Lion(p), "decoupled", "lion"),
        (lambda p: torch.optim.Muon(p), "decoupled", "muon"),
        (lambda p: torch.optim.Muon(p, adjust_lr_fn="match_rms_adamw"), "decoupled", None),
        (lambda p: AWD(p), "coupled", None),
        (lambda p: AdaDecay(p), "by weight", None),
        (lambda p: RenormalizedAdamW(p), "decoupled", "adamw-renormalized"),
        (lambda p: Scion(p), "decoupled", "scion-spectral"),
        (lambda p: Scion(p, transpose=True), "decoupled", None),
    ],
)
def test_records_say_how_an_optimizer_decays_and_as_what_it_is_simulated(make, decay, simulated):
    shape = torch.Size((4, 6))
    optimizer = make([torch.nn.Parameter(torch.zeros(shape))])
    if "decoupled_weight_decay" in optimizer.param_groups[0] and decay == "coupled":
        assert not optimizer.param_groups[0]["decoupled_weight_decay"]
    found = decay_semantics(optimizer, optimizer.param_groups[0], shape)
    assert (found.decay, found.optimizer) == (decay, simulated)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_record_of_each_class_that_it_makes(name):
    built = optimizers(name, Decoder(layers=1))
    assert {type(each).__name__ for each in built} == {rule.name for rule in METHODS[name].updates}
