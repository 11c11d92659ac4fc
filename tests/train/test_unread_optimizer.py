"""Where there is an optimizer in a form that is not read, no sentence says that there is none."""

import pytest
import torch
from foreign_programs import llama, script_run

from specdiag import SourceError, UsageError
from specdiag.train.foreign.reading import read_foreign
from specdiag.train.runs.starting_point import find_start

pytestmark = pytest.mark.usefixtures("one_thread_throughout")
GO_ON = "a form from which no run goes on here: .* fresh_optimizer=True"


def script_file(folder, change):
    path = folder / "model.pt"
    model, _, _ = script_run(path, steps=1)
    model.config.save_pretrained(folder)
    content = torch.load(path, weights_only=False)
    change(content, content.pop("optimizer_state_dict"))
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda content, saved: content.update(opt=saved), "opt"),
        (lambda content, saved: content.update(optimizers=[saved, saved]), "optimizers"),
        (lambda content, saved: content.update(adam_of_trunk=saved), "adam_of_trunk"),
        (lambda content, saved: content.update(optim_shards={"rank0": torch.zeros(4)}), "optim_shards"),
    ],
)
def test_under_a_key_of_its_own(tmp_path, change, key):
    with pytest.raises(UsageError, match=rf"model\.pt keeps its optimizer in {key}, {GO_ON}"):
        read_foreign(script_file(tmp_path, change))


@pytest.mark.parametrize("name", ["optimizer.pt", "optim_000500_rank0.pt", "optim_world_size_2_rank_0.pt"])
def test_in_a_file_beside(tmp_path, name):
    path = script_file(tmp_path, lambda *_: None)
    with pytest.raises(UsageError, match=r"model\.pt holds weights and no optimizer"):
        read_foreign(path)
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match=rf"model\.pt keeps its optimizer in {name}, {GO_ON}"):
        read_foreign(path)


BESIDE = ("optimizer.bin", "optimizer_0/.metadata", "global_step5/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")


@pytest.mark.parametrize("name", BESIDE)
def test_beside_the_weights_of_a_checkpoint(tmp_path, name):
    checkpoint = tmp_path / "run" / "checkpoint-5"
    llama().save_pretrained(checkpoint)
    with pytest.raises(UsageError, match="holds weights and no optimizer"):
        find_start(checkpoint, fresh=False, branch=False)
    (checkpoint / name).parent.mkdir(exist_ok=True)
    (checkpoint / name).touch()
    place = name.partition("/")[0]
    for state in (False, True):
        if state:
            (checkpoint / "trainer_state.json").write_text('{"global_step": 5}')
        for source in (checkpoint, checkpoint.parent):
            with pytest.raises(UsageError, match=rf"'.*checkpoint-5' keeps its optimizer in {place}, {GO_ON}"):
                find_start(source, fresh=False, branch=False)
    assert find_start(checkpoint, fresh=True, branch=False).fresh


def test_a_checkpoint_that_lacks_its_optimizer_is_still_incomplete(tmp_path):
    checkpoint = tmp_path / "checkpoint-5"
    llama().save_pretrained(checkpoint)
    (checkpoint / "trainer_state.json").write_text('{"global_step": 5}')
    with pytest.raises(SourceError, match=r"no complete checkpoint \(checkpoint-5: no optimizer\.pt\)"):
        find_start(tmp_path, fresh=False, branch=False)
