"""NormWatch: what it logs against numpy, parts that add up, decay in force, several optimizers, resumes, and its cost."""

import json

import numpy as np
import pytest
import torch
from live_models import Decoder, Q, train, weights
from live_optimizers import adamw
from several_ranks import run_ranks
from torch import nn

from specdiag import UsageError
from specdiag.dynamics.norm_log import load_norm_log
from specdiag.optim import AWD, AdaDecay, AlphaDecay, NormWatch, RenormalizedAdamW, Scion
from specdiag.trajectories.metric_log import read_log

PARTS = ("norm_change_decay", "norm_change_parallel", "norm_change_perpendicular")

pytestmark = pytest.mark.usefixtures("one_thread")


def logged(watch, module=Q):
    return {e.metric: e.value for e in watch.latest if e.module == module}


class Both:
    """Steps several helpers together."""

    def __init__(self, *told):
        self.told = told

    def step(self, step):
        for each in self.told:
            each.step(step)


def one_step(optimizer, model, watch, *more):
    """Weights before and after a step that is logged, as numpy, and the gradient."""
    before = {n: w.double().numpy() for n, w in weights(model).items()}
    torch.manual_seed(0)
    model(torch.randint(80, (2, 8))).loss.backward()
    gradients = {n: p.grad.double().numpy().copy() for n, p in model.named_parameters() if p.grad is not None}
    for each in (watch, *more):
        each.step(0)
    for held in optimizer if isinstance(optimizer, list) else [optimizer]:
        held.step()
    return before, {n: w.double().numpy() for n, w in weights(model).items()}, gradients


def test_every_number_of_a_step_by_hand():
    model = Decoder().double()
    optimizer = adamw(model, betas=(0.9, 0.99))
    watch = NormWatch(model, optimizer)
    before, after, gradients = one_step(optimizer, model, watch)
    w, new, g = before[Q], after[Q], gradients[Q]
    u = g / (np.abs(g) + 1e-8)  # Adam's first step, bias corrected
    assert new == pytest.approx((1 - 1e-3) * w - 1e-2 * u)
    norm, found = np.linalg.norm(w), logged(watch)
    by_hand = {
        "frobenius_norm": norm,
        "weight_rms": np.sqrt(np.mean(w**2)),
        "gradient_norm": np.linalg.norm(g),
        "lr": 1e-2,
        "weight_decay": 0.1,
        "decay_per_step": 1e-3,
        "update_norm": 1e-2 * np.linalg.norm(u),
        "update_rms": np.sqrt(np.mean(u**2)),
        "update_ratio": 1e-2 * np.linalg.norm(u) / norm,
        "cos_update": -np.sum(u * w) / np.linalg.norm(u) / norm,
        "angle": np.arccos(np.sum(w * new) / norm / np.linalg.norm(new)),
        "norm_change": np.linalg.norm(new) - norm,
        "norm_change_decay": -1e-3 * norm,
        "norm_change_parallel": -1e-2 * np.sum(u * w) / norm,
    }
    assert {name: found[name] for name in by_hand} == pytest.approx(by_hand, rel=1e-9)
    assert sum(found[name] for name in PARTS) == pytest.approx(by_hand["norm_change"], rel=1e-9)
    across = -1e-2 * u - by_hand["norm_change_parallel"] * w / norm
    kept = 0.999 * norm + by_hand["norm_change_parallel"]
    assert found["norm_change_perpendicular"] == pytest.approx(np.hypot(kept, np.linalg.norm(across)) - kept, rel=1e-6)
    sigma = np.linalg.svd(w, compute_uv=False)[0]
    assert sigma * 0.9 < found["spectral_norm"] <= sigma
    assert found["stable_rank"] == pytest.approx((norm / found["spectral_norm"]) ** 2)


def optimizers():
    def of(kind, **options):
        return lambda model: kind(model.parameters(), **options)

    return {
        "adamw": of(torch.optim.AdamW, lr=1e-3, weight_decay=0.1),
        "adam": of(torch.optim.Adam, lr=1e-3, weight_decay=0.1),
        "sgd": of(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
        "renormalized": of(RenormalizedAdamW, lr=1e-3, weight_decay=0.1),
        "awd": of(AWD, lr=0.1),
        "adadecay": of(AdaDecay, lr=0.1, weight_decay=0.1),
        "scion": of(Scion, lr=1e-2, radius=2.0),
    }


@pytest.mark.parametrize("name", optimizers())
def test_parts_add_up_to_the_change_whatever_the_optimizer(name):
    model = Decoder()
    optimizer = optimizers()[name](model)
    watch = NormWatch(model, optimizer)
    before, after, _ = one_step(optimizer, model, watch)
    matrices = {e.module for e in watch.latest if e.module}
    assert len(matrices) == 14
    for key in matrices:
        found = logged(watch, key)
        norms = np.linalg.norm(before[key]), np.linalg.norm(after[key])
        assert found["norm_change"] == pytest.approx(norms[1] - norms[0], rel=1e-5, abs=1e-9)
        assert sum(found[part] for part in PARTS) == pytest.approx(found["norm_change"], rel=1e-6, abs=1e-12)
        assert found["norm_change_perpendicular"] >= -1e-12
        removed = {"adamw": 1e-4, "renormalized": 1e-4, "scion": 1e-2}.get(name, 0.0)
        assert found["decay_per_step"] == pytest.approx(removed)
        update = after[key] - (1 - removed) * before[key]
        assert found["update_norm"] == pytest.approx(np.linalg.norm(update), rel=1e-4)


@pytest.mark.parametrize("watch_first", [True, False])
def test_the_ratio_that_is_in_force_is_the_decay_that_is_taken_off(watch_first):
    model = Decoder()
    optimizer = adamw(model, lr=0.1)
    made = []
    for watches in (watch_first, not watch_first):
        made.append(NormWatch(model, optimizer) if watches else AlphaDecay(model, optimizer, measure_first=True))
    watch, decay = made if watch_first else reversed(made)
    if watch_first:
        decay.step(0)
        before, after, gradients = one_step(optimizer, model, watch)
    else:
        before, after, gradients = one_step(optimizer, model, watch, decay)
    ratio, found = decay.ratios[Q], logged(watch)
    assert ratio != 1
    assert found["weight_decay"] == pytest.approx(0.1 * ratio)
    assert found["decay_per_step"] == pytest.approx(0.01 * ratio)
    w, g = before[Q], gradients[Q]
    assert after[Q] - (1 - 0.01 * ratio) * w == pytest.approx(-0.1 * g / (np.abs(g) + 1e-8), abs=1e-6)
    assert found["update_rms"] == pytest.approx(np.sqrt(np.mean((g / (np.abs(g) + 1e-8)) ** 2)), rel=1e-5)
    assert logged(watch, "lm_head.weight")["weight_decay"] == pytest.approx(0.1)


def test_it_changes_no_bit_and_logs_when_it_should(tmp_path):
    plain, seen = Decoder(), Decoder()
    train(plain, adamw(plain), 7)
    optimizer = adamw(seen)
    watch = NormWatch(seen, optimizer, every=3, out=tmp_path)
    train(seen, optimizer, 7, decay=watch)
    watch.finish()
    assert all(torch.equal(a, b) for a, b in zip(weights(plain).values(), weights(seen).values(), strict=True))
    log = load_norm_log(tmp_path)
    assert [s for s, _ in log.series("frobenius_norm")[Q]] == [0, 3, 6, 7]
    assert [s for s, _ in log.series("cos_update")[Q]] == [0, 3, 6]
    last = log.series("frobenius_norm")[Q][-1][1]
    assert last == pytest.approx(float(seen.get_parameter(Q).detach().norm()), rel=1e-6)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    (module,) = [m for m in log.modules if m.key == Q]
    assert (module.optimizer, module.betas, module.decay, module.n_values) == ("adamw", (0.9, 0.999), "decoupled", 4096)


def test_two_optimizers_make_one_step_of_the_log(tmp_path):
    model = Decoder()
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    taken = set(matrices)
    both = [
        torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1),
        torch.optim.AdamW([p for p in model.parameters() if p not in taken], lr=1e-3, weight_decay=0.2),
    ]
    watch = NormWatch(model, both, every=2, out=tmp_path)
    train(model, both, 3, decay=watch)
    assert logged(watch)["decay_per_step"] == pytest.approx(1e-3)
    assert logged(watch, "lm_head.weight")["decay_per_step"] == pytest.approx(2e-4)
    found = logged(watch, "")
    norms = {e.module: e.value for e in watch.latest if e.metric == "frobenius_norm"}
    hidden = [v for n, v in norms.items() if n.startswith("layers")]
    assert found["frobenius_norm_geomean"] == pytest.approx(np.exp(np.mean(np.log(hidden))))
    sigma = {e.module: e.value for e in watch.latest if e.metric == "spectral_norm" and e.module.startswith("layers")}
    shapes = {n: model.get_parameter(n).shape for n in sigma}
    scaled = [np.log(v * np.sqrt(shapes[n][1] / shapes[n][0])) for n, v in sigma.items()]
    assert found["spectral_norm_geomean"] == pytest.approx(np.exp(np.mean(scaled)))
    assert {e.step for e in watch.latest} == {2}
    names = {m.optimizer for m in load_norm_log(tmp_path).modules}
    assert names == {"muon", "adamw"}


@pytest.mark.parametrize("tied", [True, False])
def test_sign_norm_of_what_gives_the_logits(tied):
    model = Decoder(tied=tied)
    optimizer = adamw(model)
    watch = NormWatch(model, optimizer)
    before, _, _ = one_step(optimizer, model, watch)
    name = "embed_tokens.weight" if tied else "lm_head.weight"
    found = {e.module: e.value for e in watch.latest if e.metric == "sign_norm"}
    assert found == pytest.approx({name: 64 * np.abs(before[name]).max()})


def test_without_gradient_nothing_decays_and_a_zero_gradient_is_no_direction():
    model = Decoder()
    optimizer = adamw(model)
    watch = NormWatch(model, optimizer)
    watch.step(0)
    model.get_parameter(Q).grad = torch.zeros_like(model.get_parameter(Q))
    optimizer.step()
    frozen, still = logged(watch, "lm_head.weight"), logged(watch)
    assert (frozen["decay_per_step"], frozen["norm_change"], frozen["update_norm"]) == (0, 0, 0)
    assert "gradient_norm" not in frozen
    assert still["decay_per_step"] == pytest.approx(1e-3)
    assert still["norm_change"] == pytest.approx(-1e-3 * still["frobenius_norm"], rel=1e-4)
    assert "cos_update" not in frozen
    assert "cos_update" not in still


def test_a_skipped_step_is_logged_when_it_comes():
    model = Decoder()
    optimizer = adamw(model)
    watch = NormWatch(model, optimizer, every=5)
    watch.step(0)  # and a gradient scaler skips the step
    assert watch.latest == ()
    torch.manual_seed(0)
    model(torch.randint(80, (2, 8))).loss.backward()
    watch.step(1)
    optimizer.step()
    assert {e.step for e in watch.latest} == {1}
    watch.step(2)
    optimizer.step()
    assert {e.step for e in watch.latest} == {1}


def test_a_step_that_fails_leaves_nothing_behind():
    model = Decoder()
    optimizer = adamw(model)
    watch = NormWatch(model, optimizer, every=1)

    def failing():
        raise RuntimeError("out of memory")

    watch.step(0)
    with pytest.raises(RuntimeError):
        optimizer.step(failing)
    _, after, _ = one_step(optimizer, model, watch)
    assert logged(watch)["norm_change"] == pytest.approx(np.linalg.norm(after[Q]) - logged(watch)["frobenius_norm"])


def test_nan_is_logged_as_none(tmp_path):
    model = Decoder()
    optimizer = adamw(model)
    watch = NormWatch(model, optimizer, out=tmp_path)
    with torch.no_grad():
        model.get_parameter(Q)[0, 0] = torch.nan
    one_step(optimizer, model, watch)
    assert logged(watch)["frobenius_norm"] is None
    assert logged(watch)["spectral_norm"] is None
    assert logged(watch, "lm_head.weight")["frobenius_norm"] > 0
    assert load_norm_log(tmp_path).series("frobenius_norm").keys() == {e.module for e in watch.latest} - {"", Q}


def test_bfloat16_weights_say_what_rounding_left_of_the_step():
    model = Decoder().bfloat16()
    optimizer = adamw(model, lr=0.5)
    watch = NormWatch(model, optimizer)
    before, after, _ = one_step(optimizer, model, watch)
    assert logged(watch)["norm_change"] == pytest.approx(np.linalg.norm(after[Q]) - np.linalg.norm(before[Q]), rel=1e-9)


def test_a_fused_matrix_is_logged_by_its_parts():
    class Gpt(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte = nn.Embedding(80, 48)
            self.h = nn.ModuleList([nn.ModuleDict({"attn": nn.ModuleDict({"c_attn": nn.Linear(48, 144)})})])

    model = Gpt()
    optimizer = adamw(model)
    watch = NormWatch(model, optimizer)
    watch.step(0)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = model.h[0]["attn"]["c_attn"].weight.detach().clone()
    optimizer.step()
    name = "h.0.attn.c_attn.weight"
    parts = {e.module: e.value for e in watch.latest if e.metric == "frobenius_norm" and e.module.startswith(name)}
    assert parts.keys() == {f"{name}[{part}]" for part in "qkv"}
    assert sum(v**2 for v in parts.values()) == pytest.approx(float(before.norm()) ** 2, rel=1e-5)


def test_an_interrupted_run_logs_what_an_uninterrupted_one_does(tmp_path):
    def start(folder, model):
        optimizer = adamw(model)
        return optimizer, NormWatch(model, optimizer, every=2, out=tmp_path / folder)

    whole = Decoder()
    optimizer, watch = start("a", whole)
    train(whole, optimizer, 8, decay=watch)
    half = Decoder()
    optimizer, watch = start("b", half)
    train(half, optimizer, 5, decay=watch)
    saved = json.loads(json.dumps(watch.state_dict())), half.state_dict(), optimizer.state_dict()
    again = Decoder(seed=1)
    again.load_state_dict(saved[1])
    optimizer, watch = start("b", again)
    optimizer.load_state_dict(saved[2])
    watch.load_state_dict(saved[0])
    train(again, optimizer, 3, decay=watch, start=5)
    logs = [read_log(tmp_path / run / "specdiag_norms" / "specdiag_log.jsonl") for run in "ab"]
    assert logs[0] == logs[1]


def test_steps_are_counted_where_nobody_says_them():
    model = Decoder()
    optimizer = adamw(model)
    watch = NormWatch(model, optimizer, every=2)
    for _ in range(4):
        watch.step()
        optimizer.step()
    assert {e.step for e in watch.latest} == {2}


def test_what_is_refused():
    model = Decoder()
    with pytest.raises(UsageError, match="every=0"):
        NormWatch(model, adamw(model), every=0)
    with pytest.raises(UsageError, match="unknown roles='queue'"):
        NormWatch(model, adamw(model), roles="queue")
    with pytest.raises(UsageError, match="no weight matrix of this Decoder matches"):
        NormWatch(model, adamw(model), include="nothing.*")
    with pytest.raises(UsageError, match="no step hooks"):
        NormWatch(model, object())
    with pytest.raises(UsageError, match="held by the optimizer"):
        NormWatch(model, adamw(Decoder()))
    chosen = NormWatch(model, adamw(model), roles=("q", "head"), exclude="layers.1.*")
    assert [m.key for m in chosen._matrices] == [Q, "lm_head.weight"]


WORKER = """
import sys, torch, torch.distributed as dist
from live_models import Decoder, train
from specdiag.optim import NormWatch
torch.set_num_threads(1)
dist.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(Decoder())
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
watch = NormWatch(model, optimizer, every=2, out=sys.argv[1] + f"/{dist.get_rank()}")
train(model, optimizer, 4, decay=watch)
watch.finish()
dist.destroy_process_group()
"""


def test_of_two_ranks_the_first_one_writes(tmp_path):
    run_ranks(WORKER, tmp_path)
    log = load_norm_log(tmp_path / "0")
    assert [s for s, _ in log.series("frobenius_norm")[Q]] == [0, 2, 4]
    assert not (tmp_path / "1").exists()
