import msgspec
import pytest
from command import execute, invoke, python

import specdiag
from specdiag.decay.power_lines import (
    CUSTOMARY,
    PowerLines,
    decay_for,
    deepseek,
    facts,
    optimal_batch,
    optimal_tau,
    power_lines,
    tau,
)
from specdiag.errors import UsageError

# The run of the post: GPT-2 small on 33,165 steps of 96 sequences of 1024 tokens.
TOKENS, SEQUENCES, PARAMS = 3_260_252_160, 3_183_840, 163_009_536
POST = {"tokens": TOKENS, "params": PARAMS, "batch_tokens": 96 * 1024, "context_length": 1024, "lr": 4e-4}


def test_the_post_at_full_precision():
    found = power_lines(**{**POST, "params": TOKENS / 20})
    assert found.tpp == 20
    assert found.steps == 33_165
    assert found.tau_opt == pytest.approx(0.2235561, abs=5e-8)
    assert found.weight_decay == pytest.approx(0.3371891, abs=5e-8)
    assert power_lines(**{**POST, "params": TOKENS / 20, "lr": 1.4e-3}).weight_decay == pytest.approx(
        0.0963397, abs=5e-8
    )


def test_the_post_with_its_own_parameters():
    found = power_lines(**POST)
    assert found.tpp == pytest.approx(20.000377, abs=5e-7)
    assert found.weight_decay == pytest.approx(0.3371925, abs=5e-8)
    assert power_lines(**{**POST, "lr": 1.4e-3}).weight_decay == pytest.approx(0.0963407, abs=5e-8)
    # What the post prints is reproduced to the rounding of its third step.
    assert found.weight_decay == pytest.approx(0.33724, rel=5e-4)


@pytest.mark.parametrize(
    ("rounded", "printed", "at_4e4", "at_14e4"),
    [
        (1.084 * 0.2062, 0.2235208, 0.3372423, 0.0963549),
        (0.22352, 0.22352, 0.3372435, 0.0963553),
    ],
)
def test_the_post_with_its_own_roundings(rounded, printed, at_4e4, at_14e4):
    assert round(20**-0.527, 4) == 0.2062
    assert round(1.084 * 0.2062, 5) == 0.22352
    assert rounded == pytest.approx(printed, abs=5e-8)
    assert decay_for(rounded, 4e-4, TOKENS, 96 * 1024) == pytest.approx(at_4e4, abs=5e-8)
    assert decay_for(rounded, 1.4e-3, TOKENS, 96 * 1024) == pytest.approx(at_14e4, abs=5e-8)
    assert round(decay_for(rounded, 4e-4, SEQUENCES, 96), 5) == 0.33724
    assert decay_for(rounded, 1.4e-3, SEQUENCES, 96) == pytest.approx(0.096355, abs=5e-7)


def test_tokens_and_sequences_give_the_same_decay():
    assert SEQUENCES * 1024 == TOKENS
    assert decay_for(0.2, 4e-4, SEQUENCES, 96) == pytest.approx(decay_for(0.2, 4e-4, TOKENS, 96 * 1024))


@pytest.mark.parametrize(("decay", "lr", "expected"), [(0.1, 4e-4, 0.7538), (0.01, 4e-4, 7.538), (0.1, 1.4e-3, 0.2154)])
def test_the_timescale_of_a_given_decay(decay, lr, expected):
    assert tau(decay, lr, TOKENS, 96 * 1024) == pytest.approx(expected, abs=5e-4)
    assert decay_for(tau(decay, lr, 7.0, 2.0), lr, 7.0, 2.0) == pytest.approx(decay)


def test_optimal_batch_and_its_misuse():
    assert pytest.approx(4401.24157, abs=5e-6) == TOKENS**0.383
    assert optimal_batch(TOKENS) == pytest.approx(134.677992, abs=5e-7)
    assert optimal_batch(SEQUENCES) == pytest.approx(9.470039, abs=5e-7)  # D in sequences: the post's footnote 6
    found = power_lines(**POST)
    assert found.batch_opt_sequences == pytest.approx(134.677992, abs=5e-7)
    assert found.batch_opt_tokens == pytest.approx(275_820.5, abs=0.1)
    assert found.batch_opt_own_sequences == pytest.approx(269.36, abs=5e-3)


def test_deepseek_on_stated_compute():
    found = power_lines(**POST)
    assert found.flops == 6 * PARAMS * TOKENS
    assert found.deepseek_batch_tokens == pytest.approx(329_545.56, abs=5e-3)
    assert found.deepseek_batch_tokens / 1024 == pytest.approx(321.82, abs=5e-3)
    assert found.deepseek_lr == pytest.approx(0.00151679, abs=5e-9)
    batch, lr = deepseek(5.007e18)  # the compute behind the 373 sequences and the lr 0.0014 that the post quotes
    assert batch / 1024 == pytest.approx(373, abs=0.05)
    assert lr == pytest.approx(0.0014336, abs=5e-8)


def test_scaling():
    one, two = power_lines(**POST), power_lines(**{**POST, "batch_tokens": 2 * 96 * 1024})
    assert two.weight_decay == pytest.approx(2 * one.weight_decay)
    assert optimal_tau(40) / optimal_tau(20) == pytest.approx(2**-0.527)
    assert tau(one.weight_decay, one.lr, one.tokens, one.batch_tokens) == pytest.approx(one.tau_opt)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 0}, "tokens=0: .*the training tokens"),
        ({"tokens": "1e9"}, "tokens='1e9'"),
        ({"params": 1e-300}, "params=1e-300"),
        ({"params": None}, "params=None"),
        ({"lr": True}, "lr=True"),
        ({"context_length": 1.5}, "context_length=1.5"),
        ({"params": -1}, "params=-1"),
        ({"batch_tokens": float("nan")}, "batch_tokens=nan"),
        ({"context_length": 0}, "context_length=0"),
        ({"lr": float("inf")}, "lr=inf"),
        ({"batch_tokens": 96}, "counts tokens: 96 sequences are 98304"),
        ({"batch_tokens": 1e10}, "more than all tokens="),
        ({"tokens": 98304 * 2, "params": 1000}, "2 steps .* are too few"),
    ],
)
def test_impossible_requests(change, message):
    with pytest.raises(UsageError, match=message):
        power_lines(**{**POST, **change})


def words(lines):
    return "\n".join(f"{subject}: {fact}" for subject, fact in facts(lines))


def test_facts_say_what_matters():
    said = words(power_lines(**POST))
    for part in (
        "tokens a step",
        "of the run's 33,165 steps",
        "Derive it again",
        "linearly to zero",
        "3.814",
        "3.643",
        "2.76e+05 tokens, 269.4",
    ):
        assert part in said
    assert "not tested" in said
    assert "extrapolation" not in said
    assert "almost no effect" not in said
    small = power_lines(tokens=1e7, params=1e7, batch_tokens=4096, context_length=2048, lr=1e-3)
    said = words(small)
    assert "extrapolation" in said
    assert "longer than the run" in said
    assert "not tested" not in said


def test_customary_values():
    values = {c.model.split(",")[0].split(" 1")[0]: c.weight_decay for c in CUSTOMARY}
    assert values == {"GPT-1": 0.01, "GPT-2": 0.01, "GPT-3": 0.1, "Llama": 0.1, "SmolLM3": 0.1}
    assert all(c.source for c in CUSTOMARY)
    assert "probably" in CUSTOMARY[1].remark
    assert "embeddings" in CUSTOMARY[-1].remark


def test_a_record_that_travels():
    found = power_lines(**POST)
    assert msgspec.json.decode(msgspec.json.encode(found), type=PowerLines) == found


@pytest.mark.parametrize("name", ["decay.power_lines", "decay.schedules", "decay.effect", "train.run_files"])
def test_importing_costs_nothing(name):
    code = f"import sys, specdiag.{name}; print([m for m in ('numpy', 'torch', 'scipy') if m in sys.modules])"
    out = python(code)
    assert out.stdout.strip() == "[]"


ASKED = ("--tokens", "3e9", "--params", "1.6e8", "--batch-tokens", "98304", "--context-length", "1024", "--lr", "4e-4")


def test_a_base_decay_without_a_checkpoint(tmp_path):
    """Also where a report lies in the folder, which is not taken."""
    (tmp_path / "report.json").write_text("{}")
    done = execute("recommend", *ASKED, cwd=tmp_path)
    expected = specdiag.power_lines(tokens=3e9, params=1.6e8, batch_tokens=98304, context_length=1024, lr=4e-4)
    assert done.stdout.startswith(f"Base weight decay {expected.weight_decay:.3g} for AdamW at a peak lr of 0.0004")
    assert execute("recommend", *ASKED, "--export", "json", "-o", "base.json", cwd=tmp_path).returncode == 0
    saved = msgspec.json.decode((tmp_path / "base.json").read_bytes(), type=PowerLines)
    assert saved == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rule", "sqrt"), "--rule needs a checkpoint or a saved report"),
        (("--weight-decay", "0.1"), "--weight-decay needs a checkpoint"),
        (("--export", "torch"), "--export torch needs a plan"),
    ],
)
def test_without_a_checkpoint_there_is_no_plan(tmp_path, options, said):
    refused = execute("recommend", *ASKED, *options, cwd=tmp_path)
    assert (refused.returncode, said in refused.stderr) == (2, True)


def test_what_the_rule_lacks_is_named(tmp_path):
    refused = execute("recommend", *ASKED[:-2], cwd=tmp_path)
    assert (refused.returncode, "add --lr" in refused.stderr) == (2, True)


def test_counts_are_taken_as_people_write_them(tmp_path):
    short = (
        "--tokens",
        "3B",
        "--params",
        "160m",
        "--batch-tokens",
        "98_304",
        "--context-length",
        "1024",
        "--lr",
        "4e-4",
    )
    assert invoke("recommend", *short).stdout == invoke("recommend", *ASKED).stdout
    next_line = invoke("recommend", *short).stderr
    assert "--steps 30518 --lr-shape linear --warmup 3052" in next_line
    wrong = invoke("recommend", "--tokens", "3X", *short[2:])
    assert wrong.exit_code == 2
    assert "write 20B, 7e9 or 135m" in " ".join(wrong.stderr.split())
