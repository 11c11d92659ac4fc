"""Runs that start from the weights of a checkpoint of torch.distributed.checkpoint."""

import shutil

import pytest
import torch
from distributed_files import save_one
from foreign_programs import llama

from specdiag import SourceError, UsageError
from specdiag.train.foreign.reading import is_foreign, read_foreign
from specdiag.train.foreign.weights import read_weights
from specdiag.train.runs.request import Request
from specdiag.train.runs.resume import prepare

pytestmark = pytest.mark.usefixtures("one_thread_throughout")


def saved(folder, dtype=torch.float32):
    """A llama with its optimizer, saved as FSDP2's users save it."""
    model = llama().to(dtype)
    moments = {name: {"exp_avg": torch.zeros_like(p)} for name, p in model.named_parameters()}
    save_one(folder, {"model": model.state_dict(), "optimizer": {"state": moments, "param_groups": []}})
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_weights_are_taken(tmp_path, dtype):
    model = saved(tmp_path / "step-5", dtype)
    model.config.save_pretrained(tmp_path / "config")
    for source in (tmp_path / "step-5", tmp_path / "step-5" / ".metadata"):
        assert is_foreign(source)
        foreign = read_weights(source, config=tmp_path / "config")
        taken = foreign.model.state_dict()
        assert all(torch.equal(tensor, taken[name]) for name, tensor in model.state_dict().items())
        assert {tensor.dtype for tensor in taken.values()} == {dtype}
        assert any("of an optimizer's state" in note for note in foreign.notes)
    with pytest.raises(UsageError, match="does not say which model it is: name it as config="):
        read_weights(tmp_path / "step-5")
    with pytest.raises(SourceError, match=r"the state of lm_head\.weight, which is in none of its groups"):
        read_foreign(tmp_path / "step-5", config=tmp_path / "config")


def test_the_folder_of_accelerate_with_its_configuration(tmp_path):
    folder = tmp_path / "checkpoint-5" / "pytorch_model_fsdp_0"
    model = saved(folder)
    model.config.save_pretrained(folder.parent)
    taken = read_weights(folder).model.state_dict()
    assert all(torch.equal(tensor, taken[name]) for name, tensor in model.state_dict().items())
    assert is_foreign(folder.parent)
    taken = read_weights(folder.parent).model.state_dict()
    assert all(torch.equal(tensor, taken[name]) for name, tensor in model.state_dict().items())


def test_a_run_starts_from_it(tmp_path, text):
    model = saved(tmp_path / "step-5")
    model.config.save_pretrained(tmp_path / "step-5")
    request = Request(
        source=tmp_path / "step-5", data=[text], out=tmp_path / "out", decay="uniform", fresh_optimizer=True, steps_total=2,
        block_size=16, settings={"use_cpu": True, "learning_rate": 1e-3, "per_device_train_batch_size": 2},
    )  # fmt: skip
    assert prepare(request).train().step == 2
    shutil.rmtree(tmp_path / "out" / "checkpoint-2")
    with pytest.raises(SourceError, match=r"out has no checkpoint yet, and .*step-5 is another program's: remove"):
        prepare(Request(source=tmp_path / "out"))


def test_a_file_that_is_missing(tmp_path):
    model = saved(tmp_path / "step-5")
    model.config.save_pretrained(tmp_path / "step-5")
    (tmp_path / "step-5" / "__0_0.distcp").unlink()
    with pytest.raises(SourceError, match=r"lacks __0_0\.distcp"):
        read_weights(tmp_path / "step-5")
