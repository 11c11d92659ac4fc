"""Values that are not finite: refused before the first step, stopped in training, and shown in the table."""

import json
import math
import zipfile
from pathlib import Path

import msgspec
import pytest
import torch
from command import invoke
from recipes import ranked, tiny_recipe, write_recipe
from safetensors.torch import load_file, save_file

from specdiag import SourceError, UsageError
from specdiag.train.checkpoints.finite import check_state, model_defect
from specdiag.train.checkpoints.inspect import checkpoints_of
from specdiag.train.checkpoints.manifest import MANIFEST, write_manifest
from specdiag.train.runs.begin import begin
from specdiag.train.runs.leaderboard import rank
from specdiag.train.runs.outcome import load_outcome, spike_share
from specdiag.train.runs.request import Request
from specdiag.train.runs.resume import prepare
from specdiag.train.runs.run import perplexity
from specdiag.train.runs.sweep import tabulate

UP = "model.layers.0.mlp.up_proj.weight"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def recipe(text):
    return tiny_recipe(text, {"save_steps": 1}, norms_every=0)


def poison_from(step, value=float("nan"), rows=1):
    """Spoils the weights when a step is logged, so that the next loss is NaN."""

    def at(run):
        def on_log(now, _):
            if now == step:
                with torch.no_grad():
                    run.trainer.model.get_parameter(UP)[:rows] = value

        return on_log

    return at


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(copy, text, tmp_path, value):
    path = copy / "checkpoint-6" / "model.safetensors"
    weights = load_file(path)
    weights[UP][3, 2] = value
    save_file(weights, path, metadata={"format": "pt"})
    for fresh in (False, True):
        with pytest.raises(
            SourceError, match=rf"{UP} has 1 of 6144 values .*{value}.*go back to an earlier checkpoint"
        ):
            prepare(Request(source=copy / "checkpoint-6", data=[text], out=tmp_path / "on", decay="uniform",
                            steps_total=8, fresh_optimizer=fresh))  # fmt: skip
    assert not (tmp_path / "on").exists()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("exp_avg", math.nan, "exp_avg of .* nan"), ("exp_avg_sq", math.inf, "exp_avg_sq of .* inf"),
     ("exp_avg_sq", -1e-9, "exp_avg_sq of .* negative values")],
)  # fmt: skip
def test_moments_that_no_adam_has_are_refused_by_name(copy, text, tmp_path, key, value, said):
    path = copy / "checkpoint-6" / "optimizer.pt"
    saved = torch.load(path)
    saved["state"][0][key].view(-1)[5] = value
    torch.save(saved, path)
    with pytest.raises(SourceError, match=f"optimizer.pt cannot be continued: {said}"):
        prepare(Request(source=copy / "checkpoint-6", data=[text], out=tmp_path / "on", decay="uniform", steps_total=8))


def test_an_lr_that_is_not_finite_is_refused(copy, text, tmp_path):
    path = copy / "checkpoint-6" / "scheduler.pt"
    saved = torch.load(path)
    saved["base_lrs"][0] = math.nan
    torch.save(saved, path)
    with pytest.raises(SourceError, match=r"base_lrs\[0\] is nan"):
        prepare(Request(source=copy / "checkpoint-6", data=[text], out=tmp_path / "on", decay="uniform", steps_total=8))


def test_a_mask_is_no_defect_and_the_last_value_of_many_is_seen():
    model = torch.nn.Linear(3, 3)
    model.register_buffer("mask", torch.full((3, 3), -math.inf).triu(1))
    assert model_defect(model) is None
    large = torch.ones((1 << 24) + 1)
    large[-1] = math.nan
    with pytest.raises(SourceError, match="exp_avg of w has 1 of 16777217"):
        check_state({"w": {"exp_avg": large}}, "optimizer.pt")
    check_state({"w": {"exp_avg": -torch.ones(3), "step": torch.tensor(3.0), "ids": torch.tensor([1])}}, "optimizer.pt")


def flip(path, member):
    """Flip a bit in a member of a zip file, or in the middle of another file."""
    data = bytearray(path.read_bytes())
    at = len(data) // 2
    if member is not None:
        with zipfile.ZipFile(path) as archive:
            info = next(i for i in archive.infolist() if i.filename.endswith(member))
        at = data.index(b"FB", info.header_offset) + 500
    data[at] ^= 1
    path.write_bytes(data)


def test_a_flipped_byte_of_a_torch_file_is_found(copy, text, tmp_path):
    flip(copy / "checkpoint-6" / "optimizer.pt", "data/0")
    with pytest.raises(SourceError, match=r"the member .*data/\d of optimizer.pt is damaged \(Bad CRC-32"):
        prepare(Request(source=copy / "checkpoint-6", data=[text], out=tmp_path / "on", decay="uniform", steps_total=8))
    run = prepare(Request(source=copy, data=[text], out=tmp_path / "on", decay="uniform", steps_total=8))
    assert run.step == 4
    assert "checkpoint-6 is incomplete or damaged (the member" in run.notes[0]


def test_a_flipped_byte_in_the_middle_of_large_weights_is_found(copy):
    folder = copy / "checkpoint-6"
    save_file({"w": torch.ones(1 << 20)}, folder / "model.safetensors")  # 4 MiB: the ends are hashed, and a CRC is kept
    write_manifest(folder)
    flip(folder / "model.safetensors", None)
    with pytest.raises(SourceError, match=r"model\.safetensors was changed after it was saved"):
        prepare(Request(source=folder, fresh_optimizer=True, steps_total=2))


def test_files_that_were_saved_without_checksums_are_read(copy, text, tmp_path):
    path = copy / "checkpoint-6" / "optimizer.pt"
    saved = torch.load(path)
    torch.serialization.set_crc32_options(compute_crc32=False)
    try:
        torch.save(saved, path)
    finally:
        torch.serialization.set_crc32_options(compute_crc32=True)
    prepare(Request(source=copy / "checkpoint-6", data=[text], out=tmp_path / "on", decay="uniform", steps_total=8))


def test_a_loss_that_is_not_finite_ends_the_run_at_the_last_good_checkpoint(recipe, tmp_path):
    run = begin(recipe, tmp_path / "run")
    shown = {}
    poison = poison_from(2, 1e38, rows=96)(run)  # finite, and no loss comes of it

    def on_log(step, logs):
        shown[step] = logs["loss"]
        poison(step, logs)

    result = run.train(on_log=on_log)
    assert sorted(shown) == [1, 2, 3]
    assert not math.isfinite(shown[3])
    assert result.held_out_after is None
    assert not result.interrupted
    assert "the loss of step 3 is " in result.diverged
    assert "checkpoint-2, which led there, is .diverged-checkpoint-2 now" in result.diverged
    assert "the last good checkpoint is checkpoint-1" in result.diverged
    assert [path.name for path in checkpoints_of(tmp_path / "run")] == ["checkpoint-1"]
    outcome = load_outcome(tmp_path / "run")
    assert (outcome.diverged_at, outcome.after["loss"] != outcome.after["loss"]) == (2, True)
    again = prepare(Request(source=tmp_path / "run"))
    assert again.step == 1
    assert again.train().diverged is None
    assert load_outcome(tmp_path / "run").diverged_at is None


def test_weights_that_are_not_finite_are_never_saved(recipe, tmp_path, caplog):
    run = begin(recipe, tmp_path / "stops")
    result = run.train(on_log=poison_from(2)(run))
    assert f"after step 2 {UP} has 64 of 6144 values" in result.diverged
    assert [path.name for path in checkpoints_of(tmp_path / "stops")] == ["checkpoint-1"]
    run = begin(recipe, tmp_path / "goes-on")
    result = run.train(on_log=poison_from(2)(run), stop_on_nan=False)
    assert (result.step, result.diverged) == (4, None)
    assert math.isnan(result.held_out_after["loss"])
    assert [path.name for path in checkpoints_of(tmp_path / "goes-on")] == ["checkpoint-1"]
    assert "checkpoint-4 is not saved: after step 4 " in caplog.text
    rows, _ = rank([tmp_path / "goes-on", tmp_path / "stops"])
    assert all(math.isnan(row.loss) for row in rows)


def test_a_sweep_with_a_diverged_run_prints_its_table_every_time(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_recipe(msgspec.structs.replace(recipe, steps_total=2), Path("tiny.toml"))
    command = ["train", "tiny.toml", "--sweep", "decay=uniform learning_rate=1e-2,1e30", "-o", "grid"]
    for _ in range(2):
        found = invoke(*command)
        assert found.exit_code == 0, found.output
        row = next(
            line for line in found.stdout.splitlines() if line.lstrip().startswith("decay uniform, learning_rate 1e30")
        )
        assert "nan" in row
        assert "learning_rate=1e30' diverged: after" in " ".join(found.stdout.split())
    assert "is finished" in found.output
    runs = sorted(str(path) for path in Path("grid").iterdir() if path.is_dir())
    compared = invoke("compare", *runs)
    assert compared.exit_code == 0, compared.output
    assert compared.stdout.index("1e-2") < compared.stdout.index("1e30")
    as_json = invoke("compare", *runs, "-f", "json")
    assert [row["loss"] is None for row in json.loads(as_json.stdout)] == [False, True]


def test_a_run_alone_that_diverges_ends_with_4(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = recipe.settings | {"learning_rate": 1e30}
    write_recipe(msgspec.structs.replace(recipe, settings=settings), Path("tiny.toml"))
    found = invoke("train", "tiny.toml")
    assert found.exit_code == 4
    assert "diverged: " in found.output
    assert "loss nan" in found.output


def test_a_table_with_seeds_of_which_one_diverged():
    points = [(("decay", "uniform"), ("seed", str(i))) for i in range(3)]
    found = tabulate([
        (points[0], ranked("classification", 1.0, accuracy=0.5), 0.1),
        (points[1], ranked("classification", math.nan, accuracy=math.nan), None),
        (points[2], ranked("classification", math.nan), None),
    ])  # fmt: skip
    cell = found.best("uniform")[1]
    assert (cell.n_diverged, math.isnan(cell.mean), math.isnan(cell.spread), cell.balance) == (2, True, True, 0.1)


def test_numbers_of_losses_that_are_not_finite():
    assert math.isnan(perplexity(math.nan))
    assert perplexity(1e9) == math.inf
    losses = [1.0 + i % 2 for i in range(30)]
    assert spike_share([*losses, math.nan, math.inf, *losses]) == 2 / 62


def test_bytes_are_taken_where_the_vocabulary_says_so_alone(copy, text, tmp_path):
    checkpoint = copy / "checkpoint-6"
    config = json.loads((checkpoint / "config.json").read_text())
    weights = load_file(checkpoint / "model.safetensors")
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        weights[name] = torch.cat([weights[name], torch.zeros(744, 64)])
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    (checkpoint / "config.json").write_text(json.dumps(config | {"vocab_size": 1000}))
    asked = {"source": checkpoint, "data": [text], "decay": "uniform", "fresh_optimizer": True, "steps_total": 2}
    with pytest.raises(UsageError, match=r"no tokenizer in .* vocabulary of 1000 is not that of bytes .*tokenizer="):
        prepare(Request(out=tmp_path / "refused", **asked))
    run = prepare(Request(out=tmp_path / "bytes", tokenizer="bytes", **asked))
    assert run.data.fingerprint.tokens == "bytes"
    tokenizer = Path(tmp_path / "bytes" / "tokenizer")
    for named in (tokenizer, tokenizer / "tokenizer.json"):
        run = prepare(Request(out=tmp_path / f"by-{named.name}", tokenizer=str(named), **asked))
        assert len(run.tokenizer) == 256
    with pytest.raises(SourceError, match=r"is no tokenizer.json: name the folder"):
        prepare(Request(out=tmp_path / "x", tokenizer=str(text), **asked))


def test_settings_given_to_a_run_that_goes_on_are_checked(copy, text, tmp_path):
    for settings, said in [({"weight_decay": math.nan}, "finite"), ({"no_such": 1}, "unknown argument"),
                           ({"lr_scheduler_type": "nonsense"}, "nonsense")]:  # fmt: skip
        with pytest.raises(UsageError, match=said):
            prepare(Request(source=copy / "checkpoint-6", data=[text], out=tmp_path / "on", decay="uniform",
                            fresh_optimizer=True, steps_total=2, settings=settings))  # fmt: skip


def test_the_manifest_of_a_run_of_ours_has_checksums_of_weights(recipe, tmp_path):
    begin(msgspec.structs.replace(recipe, steps_total=1), tmp_path / "run").train()
    held = json.loads((tmp_path / "run" / "checkpoint-1" / MANIFEST).read_bytes())["files"]
    assert held["model.safetensors"]["crc"] > 0
    assert held["optimizer.pt"]["crc"] is None
    assert not (tmp_path / "run" / ".specdiag.lock").exists()
