"""A dry run says what the run would be, fails as it would, and leaves nothing behind."""

import hashlib
import re
import tempfile

import msgspec
import numpy as np
import pytest
from command import invoke
from foreign_programs import nano_run
from recipes import tiny_recipe, write_recipe

from specdiag.train.runs.begin import begin
from specdiag.train.runs.dry_run import try_run
from specdiag.train.runs.request import Request
from specdiag.train.runs.resume import prepare

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def recipe(text):
    return tiny_recipe(text)


@pytest.fixture
def scratches(tmp_path, monkeypatch):
    """Folder for temporary files, which must be empty afterwards."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def everything_in(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "" for path in folder.rglob("*")}


def test_a_new_run_is_described_and_nothing_is_written(recipe, tmp_path, scratches):
    written = write_recipe(msgspec.structs.replace(recipe, eval_every=1), tmp_path / "tiny.toml")
    before = everything_in(tmp_path)
    result = invoke("train", written, "--out", tmp_path / "run", "--dry-run")
    assert result.exit_code == 0, result.output
    assert everything_in(tmp_path) == before
    shown = result.stdout
    assert "Weight decay (uniform) at step 0, as the optimizer reads it" in shown
    passes = 4 * 4 / int(re.search(r"(\d+) to train on", shown)[1])
    assert f"To do: 4 steps of 128 tokens, 512 in all: {passes:.2g} passes over the data." in shown
    assert re.search(
        r"Memory: [\d.]+ [KM]iB \(weights [\d.]+ [KM]iB, gradients [\d.]+ [KM]iB, optimizer [\d.]+ [KM]iB\)", shown
    )
    assert "activations are not counted" in shown
    assert re.search(r"Time: about .* s: .* s a step \(by one batch .* each of 5 evaluations\.", shown)
    assert "nothing was written" in result.stderr


def test_its_numbers_are_those_of_the_run(recipe, tmp_path):
    recipe = msgspec.structs.replace(recipe, decay="alphadecay", alphadecay={"measure_first": True})
    (tmp_path / "scratch").mkdir()
    tried = try_run(begin(recipe, tmp_path / "dry", scratch=tmp_path / "scratch"))
    assert not (tmp_path / "dry").exists()
    seen = {}
    run = begin(recipe, tmp_path / "run")
    run.train(on_first=seen.update)
    assert tried.decays == seen
    assert len(set(seen.values())) > 2
    parameters = sum(p.numel() for p in run.trainer.model.parameters())
    buffers = sum(4 * buffer.numel() for buffer in run.trainer.model.buffers())
    assert (tried.weight_bytes, tried.gradient_bytes) == (4 * parameters + buffers, 4 * parameters)
    assert tried.optimizer_bytes == pytest.approx(8 * parameters, rel=0.01)
    saved = sum(path.stat().st_size for path in (tmp_path / "run" / "checkpoint-4").iterdir())
    assert tried.checkpoint_bytes == pytest.approx(saved, abs=1 << 20)
    assert (tried.steps, tried.tokens_per_step, tried.evaluations) == (4, 128, 2)
    assert tried.seconds > 0


@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_that_goes_on_is_left_as_it_was(recipe, tmp_path, scratches, stopped):
    run = begin(recipe, tmp_path / "run")
    if stopped:
        run.lock.release()
    else:
        run.train()
    more = () if stopped else ("--extend", "3")
    before = everything_in(tmp_path)
    result = invoke("train", tmp_path / "run", "--resume", "--dry-run", *more)
    assert result.exit_code == 0, result.output
    assert f"To do: {4 if stopped else 3} steps" in result.stdout
    assert everything_in(tmp_path) == before


def test_a_checkpoint_of_another_program_is_left_as_it_was(tmp_path, scratches):
    folder = tmp_path / "nano"
    folder.mkdir()
    nano_run(folder / "ckpt.pt", bias=True)
    data = tmp_path / "train.bin"
    np.random.default_rng(0).integers(0, 256, 4000).astype(np.uint16).tofile(data)
    before = everything_in(tmp_path)
    result = invoke(
        "train", folder / "ckpt.pt", "--resume", "--data", data, "--decay", "uniform", "--out", tmp_path / "on", "--dry-run"
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "kept apart from now on" in result.stdout
    assert everything_in(tmp_path) == before


def test_what_would_fail_fails_in_the_same_words(recipe, tmp_path, scratches):
    written = write_recipe(recipe, tmp_path / "tiny.toml")
    (tmp_path / "file").write_text("no folder")
    run = begin(recipe, tmp_path / "taken")
    cases = [
        [written, "--out", tmp_path / "taken"],
        [written, "--out", tmp_path / "file" / "run"],
        [written, "--data", tmp_path / "missing.txt", "--out", tmp_path / "run"],
        [written, "--out", tmp_path / "run", "--set", "lr_scheduler_type=none"],
        [written, "--out", tmp_path / "run", "--decay", f"plan:{tmp_path / 'none.json'}"],
        [written, "--out", tmp_path / "run", "--compare", "uniform"],
        [tmp_path / "taken", "--resume", "--extend", "2"],
        [tmp_path / "nothing", "--resume"],
    ]
    for case in cases:
        dry, real = (invoke("train", *case, *more) for more in (["--dry-run"], []))
        assert dry.exit_code == real.exit_code != 0, case
        assert dry.stderr == real.stderr, case
        assert not (tmp_path / "run").exists()
    run.lock.release()


def test_a_loss_that_is_not_finite_and_a_full_disk_are_found(recipe, tmp_path, scratches, monkeypatch):
    written = write_recipe(recipe, tmp_path / "tiny.toml")
    with monkeypatch.context() as patch:
        patch.setattr("specdiag.train.runs.dry_run._backward", lambda *_: float("nan"))
        result = invoke("train", written, "--out", tmp_path / "run", "--dry-run")
    assert result.exit_code == 4
    assert "'run' would diverge: the loss of step 1 is nan" in result.stderr
    usage = type("Usage", (), {"free": 5})
    monkeypatch.setattr("specdiag.train.checkpoints.trainer.shutil.disk_usage", lambda _: usage)
    result = invoke("train", written, "--out", tmp_path / "run", "--dry-run")
    assert result.exit_code == 4
    assert re.search(r"checkpoint-2 takes \d MiB and 0 are free in .*/run: free space", result.stderr)


def test_of_a_batch_that_takes_long_one_example_is_tried(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("specdiag.train.runs.dry_run._PATIENCE", 0.0)
    (tmp_path / "scratch").mkdir()
    tried = try_run(begin(recipe, tmp_path / "dry", scratch=tmp_path / "scratch"))
    assert tried.from_one_example
    assert tried.tokens_per_step == 128


def test_a_grid_is_refused(recipe, tmp_path):
    written = write_recipe(recipe, tmp_path / "tiny.toml")
    result = invoke("train", written, "--sweep", "seed=1,2", "--out", tmp_path / "grid", "--dry-run")
    assert result.exit_code == 2
    assert "--dry-run tries one run: leave --sweep out" in result.stderr


def test_a_locked_run_is_refused_as_it_would_be(recipe, tmp_path, scratches, monkeypatch):
    begin(recipe, tmp_path / "run").lock.release()
    request = Request(source=tmp_path / "run", scratch=scratches)
    lock = tmp_path / "run" / ".specdiag.lock"
    lock.write_text("not a lock")
    with pytest.raises(Exception, match="does not say which process writes to this run"):
        prepare(request)
    assert lock.read_text() == "not a lock"
