"""simulate --check: predicted norms beside logged ones, on noise where the model holds and on a run that learns."""

import json
import math

import msgspec
import numpy as np
import pytest
import tiny_run
import torch
import torch.nn.functional as F
from command import outcome
from plain_run import decoder_trainer
from torch import nn

import specdiag
from specdiag import SourceError, UsageError, plot
from specdiag.decay.schedules import cosine
from specdiag.dynamics.alignment import alignments
from specdiag.dynamics.norm_log import NormLog, load_norm_log
from specdiag.dynamics.reported_settings import with_settings
from specdiag.dynamics.run_check import check_run, expected_norms, sentences
from specdiag.optim import AdaDecay, NormWatch, RenormalizedAdamW, Scion
from specdiag.train import NormWatchCallback
from specdiag.trajectories.load import load_trajectory
from specdiag.trajectories.metric_log import entry

pytestmark = pytest.mark.usefixtures("one_thread")


class Matrices(nn.Module):
    """Names of a decoder, weights to walk at random."""

    def __init__(self, side=64):
        super().__init__()
        torch.manual_seed(0)
        attention = nn.ModuleDict({f"{n}_proj": nn.Linear(side, side, bias=False) for n in "qk"})
        self.layers = nn.ModuleList([nn.ModuleDict({"self_attn": attention})])


def on_noise(build, out, steps=600, every=20, lr=None, side=64, drift=0.0):
    """A run whose gradients are noise, with a part along the weights if asked for."""
    model = Matrices(side)
    optimizer = build(model.parameters())
    watch = NormWatch(model, optimizer, every=every, out=out)
    draws = torch.Generator().manual_seed(1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] if lr is None else lr(step + 1)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=draws) - drift * p.detach() / p.detach().square().mean().sqrt()
        watch.step(step)
        optimizer.step()
    watch.finish()
    return load_norm_log(out)


def run(*args, width=220):
    return outcome(*args, width=width)


BUILT = {
    "adamw": (lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.5), 0.03),
    "adamw-renormalized": (lambda p: RenormalizedAdamW(p, lr=1e-2, weight_decay=0.5), 0.04),
    "sgdm": (lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1), 0.03),
    "muon": (lambda p: torch.optim.Muon(p, lr=1e-2, weight_decay=0.5), 0.08),
    "scion-spectral": (lambda p: Scion(p, lr=5e-3, radius=10.0, lmo="spectral"), 0.05),
    "scion-sign": (lambda p: Scion(p, lr=5e-3, radius=10.0, lmo="sign"), 0.03),
}


@pytest.mark.parametrize("name", BUILT)
def test_on_noise_the_prediction_holds_for_each_optimizer(name, tmp_path):
    build, near = BUILT[name]
    check = check_run(on_noise(build, tmp_path))
    assert {m.optimizer for m in check.modules} == {name}
    for m in check.modules:
        assert abs(m.change) > 2 * near, "a norm that does not move shows nothing"
        assert abs(m.worst_error) < near
        assert m.n == 30
        assert m.alignment is None or not m.alignment.flagged


def test_a_schedule_is_followed_through_the_log(tmp_path):
    lr = cosine(2e-2, 600)
    log = on_noise(lambda p: torch.optim.AdamW(p, lr=2e-2, weight_decay=0.5), tmp_path, lr=lr)
    check = check_run(log)
    assert all(abs(m.worst_error) < 0.03 for m in check.modules)
    told = specdiag.simulate(
        "adamw", lr=2e-2, weight_decay=0.5, steps=600, lr_shape="cosine", shape=(64, 64),
        initial_norm=check.modules[0].first, at=[600],
    )  # fmt: skip
    assert check.modules[0].predicted == pytest.approx(told.at(600).frobenius_norm, rel=5e-3)


def test_momentum_alone_is_not_flagged_and_a_drift_is(tmp_path):
    def build(p):
        return torch.optim.AdamW(p, lr=1e-2, weight_decay=0.5)

    noise = alignments(on_noise(build, tmp_path / "a"))
    drifting = alignments(on_noise(build, tmp_path / "b", drift=0.1))
    for still, moved in zip(noise, drifting, strict=True):
        assert still.cosine > 0.05
        assert abs(still.cosine - still.cosine_of_momentum) < 0.03
        assert not still.flagged
        assert moved.flagged
        assert moved.share > 0.5
    check = check_run(load_norm_log(tmp_path / "b"))
    assert all(m.error < -0.1 for m in check.modules)
    assert any("between update and weights" in s for s in sentences(check))


def train_on_text(out, steps, every=10, seed=0):
    torch.manual_seed(seed)
    data, model = tiny_run.stdlib_bytes(), tiny_run.TinyModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1.0)
    watch = NormWatch(model, optimizer, every=every, out=out)
    draws = torch.Generator().manual_seed(seed)
    for step in range(steps):
        starts = torch.randint(len(data) - 33, (8,), generator=draws)
        batch = torch.stack([data[s : s + 33] for s in starts])
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        watch.step(step)
        optimizer.step()
    watch.finish()


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learned")
    train_on_text(folder, 200)
    return folder


def test_a_run_on_text(learned):
    check = check_run(load_norm_log(learned))
    found = {m.module: m for m in check.modules}
    head = found["lm_head.weight"]
    assert head.alignment.flagged
    assert head.alignment.cosine > 0.2
    assert head.error < -0.1
    assert abs(found["layers.1.self_attn.o_proj.weight"].error) < 0.1
    assert all(m.steps_to_balance is None or m.steps_to_balance > 200 for m in check.modules)
    said = list(sentences(check))
    assert "cannot be in their balance yet" in " ".join(said)
    assert any(s.startswith("lm_head.weight: mean cosine +") for s in said)
    assert check.median_error() == pytest.approx(np.median([abs(m.error) for m in check.modules]))
    errors = [e for e in check.errors if e.module == "lm_head.weight"]
    assert [e.step for e in errors] == list(range(10, 201, 10))
    assert errors[-1].relative == head.error


def test_the_command(learned, tmp_path):
    code, out, err = run("simulate", "--check", learned)
    assert (code, err) == (0, "")
    assert "lm_head.weight" in out
    assert "along W" in out
    assert "Nothing is fitted" in out
    code, out, _ = run("simulate", "--check", learned, "-f", "json", "-o", tmp_path / "check.json")
    assert code == 0
    found = json.loads((tmp_path / "check.json").read_bytes())
    assert found["schema"] == 1
    assert len(found["modules"]) == 15
    code, out, _ = run("simulate", "--check", learned, "-f", "csv")
    header, first, *_ = out.splitlines()
    assert header == "step,module,metric,predicted,logged,relative"
    step, _, metric, predicted, logged, relative = first.split(",")
    assert (step, metric) == ("10", "frobenius_norm")
    assert float(predicted) / float(logged) - 1 == pytest.approx(float(relative))
    code, narrow, _ = run("simulate", "--check", learned, width=80)
    assert code == 0
    assert "error" in narrow


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lr", "1e-3"], "has its own lr, decay and optimizer in its log: leave out --lr"),
        (["-o", "x.png"], "the figure is 'specdiag plot norms"),
    ],
)
def test_what_the_command_refuses(learned, more, message):
    code, _, err = run("simulate", "--check", learned, *more)
    assert code == 2
    assert message in err


def test_a_run_without_norms(tmp_path):
    assert run("simulate", "--check", tmp_path)[0] == 3
    with pytest.raises(SourceError, match="holds no norms"):
        load_norm_log(tmp_path)


def test_checkpoints_with_the_settings_that_are_told(tmp_path):
    tiny_run.train(tmp_path)
    specdiag.trajectory(tmp_path, jobs=1)
    code, _, err = run("simulate", "--check", tmp_path)
    assert code == 2
    assert "do not say how they were trained: add --lr, --weight-decay, --steps" in err
    settings = ["--lr", "3e-3", "--weight-decay", "0.1", "--steps", "60"]
    code, out, err = run("simulate", "--check", tmp_path, *settings, "-f", "json")
    assert (code, err) == (0, "")
    found = {m["module"]: m for m in json.loads(out)["modules"]}
    assert found["layers.0.self_attn.o_proj.weight"]["last_step"] == 60
    assert abs(found["layers.0.self_attn.o_proj.weight"]["error"]) < 0.1
    by_library = specdiag.simulate(
        "adamw", lr=3e-3, weight_decay=0.1, steps=60, shape=(64, 64), at=[60],
        initial_norm=found["layers.0.self_attn.o_proj.weight"]["first"],
    )  # fmt: skip
    assert found["layers.0.self_attn.o_proj.weight"]["predicted"] == pytest.approx(
        by_library.at(60).frobenius_norm, rel=0.05
    )
    for more, message in (
        (["--shape", "64"], "leave out --shape"),
        (["--weight-decay", "0.2"], "give --weight-decay once"),
        (["--optimizer", "sgdm"], "follow its gradients"),
    ):
        code, _, err = run("simulate", "--check", tmp_path, *settings, *more)
        assert code == 2
        assert message in err
    with pytest.raises(UsageError, match="less than the run's last checkpoint"):
        with_settings(load_trajectory(tmp_path), lr=1e-3, weight_decay=0.1, steps=50)
    assert run("plot", "norms", tmp_path, "--lr", "3e-3", "--weight-decay", "0.1", "-o", tmp_path / "n.svg")[0] == 0
    assert "needs both" in run("plot", "norms", tmp_path, "--lr", "3e-3", "-o", tmp_path / "n.svg")[2]


def test_the_figure_has_the_predictions(learned, tmp_path):
    log = load_norm_log(learned)
    figure = plot.norms(log, roles=("o", "head"))
    assert len(figure.axes) == 4
    lines = {line.get_label(): line for line in figure.axes[0].lines if not line.get_label().startswith("_")}
    dashed = [line for line in figure.axes[0].lines if line.get_label() == "predicted"]
    assert len(dashed) == 2
    own = [e for e in expected_norms(log) if "o_proj" in e.module]
    measured = np.median([log.series("frobenius_norm")[e.module][0][1] for e in own])
    assert dashed[0].get_ydata()[-1] == pytest.approx(np.median([e.course[-1].value for e in own]) / measured)
    assert "balance possible" not in lines
    assert "the run ends before it, at 200" in figure.get_supxlabel()
    longer = msgspec.structs.replace(log, rows=(*log.rows, entry(4000, "lm_head.weight", "frobenius_norm", 20.0)))
    axes = plot.norms(longer, roles="head").axes[0]
    (vertical,) = [line for line in axes.lines if line.get_label() == "balance possible"]
    head = next(e for e in expected_norms(longer) if e.module == "lm_head.weight")
    assert vertical.get_xdata()[0] == head.steps_to_balance
    code, _, err = run("plot", "norms", learned, "--lr", "1", "-o", tmp_path / "x.png")
    assert code == 2
    assert "has its own lr" in err
    assert run("plot", "norms", learned, "-o", tmp_path / "x.png")[0] == 0


def test_what_no_model_covers_is_named(tmp_path):
    log = on_noise(lambda p: AdaDecay(p, lr=0.1), tmp_path, steps=20)
    with pytest.raises(UsageError, match="no model covers what its optimizer does"):
        check_run(log)
    log = on_noise(BUILT["adamw"][0], tmp_path / "b", steps=40)
    first, second = log.modules
    mixed = msgspec.structs.replace(log, modules=(first, msgspec.structs.replace(second, optimizer=None)))
    check = check_run(mixed)
    assert check.left_out == {second.key: "no model covers what its optimizer does"}
    assert any(s.startswith("1 left out") for s in sentences(check))


def test_norms_without_decay_have_no_balance(tmp_path):
    log = on_noise(lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.0), tmp_path)
    for m in check_run(log).modules:
        assert (m.balance, m.steps_to_balance) == (None, None)
        assert abs(m.error) < 0.02


def test_a_log_that_starts_late(tmp_path):
    log = on_noise(BUILT["adamw"][0], tmp_path, side=128)
    late = NormLog(
        run="late", every=20, modules=log.modules, rows=tuple(r for r in log.rows if r.step >= 200)
    )  # fmt: skip
    check = check_run(late)
    assert all(m.n == 20 and abs(m.worst_error) < 0.015 for m in check.modules)
    assert math.isclose(check.modules[0].first, dict(log.series("frobenius_norm")[check.modules[0].module])[200])


# The Trainer


def a_trainer(folder, callback, **options):
    return decoder_trainer(folder, callback, lr_scheduler_type="cosine", **options)


def test_the_callback_logs_and_goes_on(tmp_path):
    a_trainer(tmp_path / "a", NormWatchCallback(every=2)).train()
    a_trainer(tmp_path / "b", NormWatchCallback(every=2)).train()
    log = load_norm_log(tmp_path / "a")
    key = "layers.0.self_attn.q_proj.weight"
    assert [s for s, _ in log.series("frobenius_norm")[key]] == [0, 2, 4, 6]
    assert dict(log.series("lr")[key])[0] == pytest.approx(1e-3)
    assert check_run(log).modules
    (tmp_path / "b" / "specdiag_norms" / "specdiag_log.jsonl").unlink()
    resumed = a_trainer(tmp_path / "b", NormWatchCallback(every=2))
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-3"))
    again = load_norm_log(tmp_path / "b")
    assert [r for r in log.rows if r.step >= 4] == list(again.rows)


def test_two_callbacks_are_refused(tmp_path):
    trainer = a_trainer(tmp_path, NormWatchCallback(), steps=1)
    trainer.add_callback(NormWatchCallback())
    with pytest.raises(UsageError, match="several NormWatchCallbacks"):
        trainer.train()
