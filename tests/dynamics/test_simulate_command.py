"""simulate: what a simulation holds, and what the command prints of it."""

import csv
import io
import math

import msgspec
import pytest
from command import outcome, python

import specdiag
from specdiag.dynamics.checking import compare_norms
from specdiag.dynamics.records import Simulation, load_simulation
from specdiag.dynamics.updates import OPTIMIZERS
from specdiag.dynamics.wording import headline
from specdiag.errors import UsageError
from specdiag.trajectories.metric_log import append_log, entry, read_log


def run(*args):
    return outcome("simulate", *args, width=220)


# The record


def test_a_simulation():
    found = specdiag.simulate(
        "adamw", lr=1e-3, weight_decay=0.1, steps=20_000, lr_shape="cosine", shape=(100, 50), batch_tokens=5e5
    )
    assert isinstance(found, Simulation)
    assert (found.balance.timescale, found.balance.norm_time) == pytest.approx((10_000, 5_000))
    assert found.balance.timescale_tokens == pytest.approx(5e9)
    assert found.balance.steps_to_steady == 19_167
    assert len(found.course) == 201
    assert all(p.frobenius_norm == pytest.approx(p.rms * math.sqrt(5000)) for p in found.course)
    assert found.setting.betas == (0.9, 0.999)
    assert msgspec.json.decode(found.to_json(), type=Simulation) == found
    assert found.course[-1].steady_rms is None
    assert found.simulated_shape is None


def test_stochastic_is_seeded_and_near():
    choice = {"lr": 0.02, "weight_decay": 0.5, "steps": 600, "stochastic": True, "shape": (300, 200)}
    one, two, other = (specdiag.simulate("adamw", seed=seed, **choice) for seed in (1, 1, 2))
    assert one == two != other
    assert one.simulated_shape == (4096,)
    assert one.course[-1].simulated_rms == pytest.approx(one.course[-1].rms, rel=0.03)


@pytest.mark.parametrize("name", ["scion-spectral", "muon", "scion-sign", "sgdw"])
def test_a_part_of_a_large_tensor_stands_for_it(name):
    found = specdiag.simulate(
        name, lr=0.1, weight_decay=0.1, steps=500, shape=(640, 320), stochastic=True, gradient_rms=0.3, initial_rms=0
    )
    assert found.course[-1].simulated_rms == pytest.approx(found.course[-1].rms, rel=0.08 if name == "muon" else 0.03)
    assert math.prod(found.simulated_shape) < 640 * 320


def test_the_start_can_be_a_norm():
    found = specdiag.simulate(lr=1e-3, weight_decay=0.1, steps=10, shape=(10, 10), initial_norm=5)
    assert found.setting.initial_rms == pytest.approx(0.5)
    assert found.course[0].frobenius_norm == pytest.approx(5)


def test_predicted_beside_logged(tmp_path):
    name = "layers.0.mlp.up_proj.weight"
    found = specdiag.simulate(lr=1e-3, weight_decay=0.1, steps=1000, shape=(64, 16), at=[0, 250, 1000])
    predicted = found.log_entries(name)
    assert [(e.step, e.module, e.metric) for e in predicted] == [(s, name, "frobenius_norm") for s in (0, 250, 1000)]
    log = tmp_path / "specdiag_log.jsonl"
    append_log(log, [entry(e.step, name, e.metric, 1.1 * e.value) for e in predicted[1:]])
    append_log(log, [entry(250, name, "alpha", 2.0), entry(0, name, "frobenius_norm", math.nan)])
    errors = compare_norms(predicted, read_log(log))
    assert [e.step for e in errors] == [250, 1000]
    assert [e.relative for e in errors] == pytest.approx([1 / 1.1 - 1] * 2)
    assert errors[0].predicted == predicted[1].value


def test_every_optimizer_says_what_it_assumes():
    for name in OPTIMIZERS:
        said = specdiag.simulate(name, lr=1e-3, weight_decay=0.1, steps=10, shape=(64, 32)).assumptions
        assert any(sentence.startswith("Steps:") for sentence in said)
        assert all(sentence.endswith(".") for sentence in said)
    corrected = {name: " ".join(specdiag.simulate(name, lr=1, weight_decay=0.01, steps=9, shape=(64, 64)).assumptions)
                 for name in ("scion-sign", "scion-spectral", "lion", "muon")}  # fmt: skip
    assert all("Corrected factor" in said for said in corrected.values())
    assert "13.28" in corrected["scion-sign"]
    assert "measured" in corrected["scion-spectral"]


def test_a_prediction_needs_no_numpy():
    code = (
        "import sys, specdiag; s = specdiag.simulate(lr=1e-3, weight_decay=.1, steps=9); "
        "print(s.course[-1].step, [m for m in ('numpy', 'torch', 'scipy') if m in sys.modules])"
    )
    done = python(code)
    assert done.stdout.split() == ["9", "[]"]


@pytest.mark.parametrize(
    ("optimizer", "change", "message"),
    [
        ("adam", {}, "unknown optimizer='adam'; choose from adamw"),
        ("adamw", {"momentum": 0.9}, "adamw takes no momentum=: give betas="),
        ("sgdm", {"betas": (0.9, 0.99)}, "sgdm takes no betas=: give momentum="),
        ("random-walk", {"momentum": 0.9}, "random-walk takes no momentum=$"),
        ("adamw", {"betas": (0.9, 1.0)}, r"betas=\(0.9, 1\)"),
        ("scion-l2", {"momentum": 1.0}, "share of the buffer that a step keeps"),
        ("sgdm", {"momentum": 1.0}, "share of the buffer that a step keeps"),
        ("muon", {"shape": (9,)}, "muon needs a matrix"),
        ("adamw", {"shape": (2, 3, 4)}, "shape=2x3x4"),
        ("adamw", {"lr": 0.0}, "lr=0: give"),
        ("adamw", {"lr": math.nan}, "lr=nan"),
        ("adamw", {"weight_decay": -0.1}, "weight_decay=-0.1: give"),
        ("adamw", {"weight_decay": 2000}, "a step would remove all weights"),
        ("adamw", {"steps": 0}, "steps=0: give"),
        ("adamw", {"lr_shape": "square"}, "unknown lr_shape='square'"),
        ("adamw", {"final_lr": 1e-4}, "belongs to lr_shape=linear and lr_shape=cosine"),
        ("adamw", {"final_lr": 1.0, "lr_shape": "linear"}, "must lie between 0 and lr="),
        ("adamw", {"warmup": 200, "lr_shape": "cosine"}, "do not fit in a schedule"),
        ("adamw", {"initial_rms": 1.0, "initial_norm": 1.0}, "say the same twice"),
        ("adamw", {"initial_rms": -1.0}, "initial_rms=-1"),
        ("adamw", {"gradient_rms": 0.0}, "gradient_rms=0 must be positive"),
        ("adamw", {"batch_tokens": 0.0}, "batch_tokens=0: give"),
        ("adamw", {"at": [101]}, "step 101 lies outside"),
    ],
)
def test_impossible_requests(optimizer, change, message):
    with pytest.raises(UsageError, match=message):
        specdiag.simulate(optimizer, **{"lr": 1e-3, "weight_decay": 0.1, "steps": 100} | change)


# The command

SETTING = ("--lr", 1e-3, "--weight-decay", 0.1, "--steps", 2000)


def test_the_table():
    code, out, err = run(*SETTING, "--batch-tokens", 5e5, "--lr-shape", "cosine", "--warmup", 100)
    assert code == 0, err
    assert "0.07068" in out
    assert "5e+09" in out
    assert "balance" in out
    assert "Model: gradients are white noise" in out
    assert out.count("adamw") == 1


def test_overlaid_settings():
    code, out, _ = run(*SETTING, "--weight-decay", 0.3, "--optimizer", "adamw", "--optimizer", "adamc")
    assert code == 0
    for name in ("adamw decay 0.1", "adamw decay 0.3", "adamc decay 0.1", "adamc decay 0.3"):
        assert name in out


def test_json_and_csv(tmp_path):
    code, out, _ = run(*SETTING, "--weight-decay", 0.3, "-f", "json")
    assert code == 0
    found = msgspec.json.decode(out.encode(), type=list[Simulation])
    assert [s.setting.weight_decay for s in found] == [0.1, 0.3]
    file = tmp_path / "norms.csv"
    code, out, err = run(*SETTING, "--stochastic", "-f", "csv", "-o", file)
    assert (code, out) == (0, "")
    assert f"written: {file}" in err
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert len(rows) == 201
    assert float(rows[-1]["simulated_rms"]) == pytest.approx(float(rows[-1]["rms"]), rel=0.05)
    code, out, _ = run(*SETTING, "-o", tmp_path / "norms.json")
    assert "Course" in out
    saved = load_simulation(tmp_path / "norms.json")
    assert (saved.setting.weight_decay, saved.to_json()) == (0.1, (tmp_path / "norms.json").read_bytes())
    code, _, err = run(*SETTING, "--weight-decay", 0.3, "-o", tmp_path / "both.json")
    assert (code, "give one optimizer and one decay, or --format csv" in err) == (2, True)
    assert not (tmp_path / "both.json").exists()


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_figure(tmp_path, suffix):
    files = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for file in files:
        assert run("--appendix-a", "--steps", 300, "--stochastic", "-o", file)[0] == 0
    data = files[0].read_bytes()
    assert data == files[1].read_bytes()
    assert data.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])


def test_too_many_lines_for_a_figure(tmp_path):
    decays = [part for i in range(7) for part in ("--weight-decay", 0.1 + i)]
    code, _, err = run("--lr", 1e-3, "--steps", 10, *decays, "-o", tmp_path / "a.png")
    assert code == 2
    assert "1 to 6 settings, not 7" in err


def test_appendix_a_on_the_command_line():
    code, out, _ = run("--appendix-a")
    assert code == 0
    assert "uncorrected" in out
    assert "55.0 % below its balance" in out
    assert "could not be read" in out
    code, _, err = run("--appendix-a", "--optimizer", "lion", "--warmup", 3)
    assert code == 2
    assert "leave out --optimizer, --warmup" in err
    assert run("--appendix-a", "--weight-decay", 0.1, "--weight-decay", 0.2)[0] == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "a prediction needs --lr, --weight-decay, --steps too"),
        ((*SETTING, "--shape", "3x4x5"), "write 768x3072"),
        ((*SETTING, "--optimizer", "lamb"), "unknown --optimizer lamb"),
        ((*SETTING, "-o", "/nowhere/a.png"), "/nowhere"),
        ((*SETTING, "--seed", 3), "--seed belongs to --stochastic"),
    ],
)
def test_bad_input_is_one_sentence(args, message):
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"steps": 200_000}, "After 200,000 steps the RMS of a weight is 0.03872, its balance."),
        (
            {"steps": 2000},
            "After 2,000 steps the RMS of a weight is 0.02288, 40.9 % below its balance: the run is too short to reach it.",
        ),
        (
            {"weight_decay": 0, "steps": 2000},
            "After 2,000 steps the RMS of a weight is 0.02407, from 0.02: nothing decays.",
        ),
    ],
)
def test_the_first_line_says_where_the_norm_ends(choice, expected):
    found = specdiag.simulate(**({"lr": 3e-4, "weight_decay": 0.1, "shape": (4, 4)} | choice))
    assert headline([found]) == expected
    options = [f"--{name.replace('_', '-')}={value}" for name, value in choice.items() if name != "weight_decay"]
    code, out, _ = run("--lr", "3e-4", "--weight-decay", choice.get("weight_decay", 0.1), "--shape", "4x4", *options)
    assert code == 0
    assert out.splitlines()[0] == expected
    assert out.count(expected) == 1


def test_of_several_settings_the_first_line_names_the_ends():
    found = [specdiag.simulate(lr=3e-4, weight_decay=d, steps=200_000, shape=(4, 4)) for d in (0.1, 0.4, 0.2)]
    assert headline(found) == (
        "After 200,000 steps the RMS is lowest for decay 0.4 (0.01935), highest for decay 0.1 (0.03872)."
    )
    assert headline([found[0], found[0]]) == "After 200,000 steps all settings end at RMS 0.03872, but for 1 %."
