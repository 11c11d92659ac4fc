"""Checkpoints of other programs that cannot be continued, and what of them is never run."""

import os
import pickle

import pytest
import torch
import transformers
from foreign_programs import (
    llama,
    script_run,
)

from specdiag import SourceError, UsageError
from specdiag.train.foreign.reading import is_foreign, read_foreign

pytestmark = pytest.mark.usefixtures("one_thread_throughout")


def spoiled(tmp_path, change):
    """A script's checkpoint, changed by hand."""
    path = tmp_path / "model.pt"
    model, _, _ = script_run(path, steps=2)
    model.config.save_pretrained(tmp_path)
    content = torch.load(path, weights_only=False)
    change(content, content["optimizer_state_dict"], content["model_state_dict"])
    torch.save(content, path)
    return path


def first_state(saved):
    return saved["state"][1]


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda c, o, m: c.pop("optimizer_state_dict"), UsageError, "weights and no optimizer.*fresh_optimizer=True"),
        (lambda c, o, m: o["state"].clear(), UsageError, "without moments"),
        (lambda c, o, m: first_state(o).update(momentum_buffer=torch.ones(2)), UsageError, "keeps momentum_buffer"),
        (lambda c, o, m: [s.pop("exp_avg_sq") for s in o["state"].values()], UsageError, "another optimizer than Adam"),
        (lambda c, o, m: o["param_groups"][0].update(amsgrad=True), UsageError, r"another optimizer .*\(amsgrad\)"),
        (lambda c, o, m: first_state(o).update(step=torch.tensor(1.0)), SourceError, "at step 1 and at step 2"),
        (lambda c, o, m: o["state"].pop(3), SourceError, r"no state for model\.layers\.0\.self_attn\.v_proj"),
        (lambda c, o, m: o["state"].update({1: o["state"][2], 5: o["state"][1]}), SourceError, r"groups of \[21\] tensors.*flat \[21\]; trainer \[16, 5\]"),
        (lambda c, o, m: o["param_groups"][0]["params"].pop(), SourceError, r"groups of \[20\] tensors"),
        (lambda c, o, m: o["param_groups"].append(dict(o["param_groups"][0], params=[99], lr=1.0)), UsageError, r"different lr \(.*1\.0\)"),
        (lambda c, o, m: o["param_groups"].append(dict(o["param_groups"][0], params=[99], weight_decay=0.5)), SourceError, r"groups of \[21, 1\]"),
        (lambda c, o, m: m.pop("module._orig_mod.lm_head.weight"), SourceError, r"lacks weights .*lm_head\.weight \(1 of 21\)"),
        (lambda c, o, m: m.update(extra=torch.ones(2, 2)) or m.update({"module._orig_mod.model.gate.weight": torch.ones(3, 3)}), SourceError, "which the model of its configuration has not"),
        (lambda c, o, m: m.update({"module._orig_mod.lm_head.weight": torch.ones(300, 64)}), SourceError, r"shape \(300, 64\) in model.pt and \(256, 64\)"),
        (lambda c, o, m: m.update({f"ema.{n.removeprefix('module._orig_mod.')}": t for n, t in list(m.items())}), UsageError, "several prefixes"),
        (lambda c, o, m: c.update(optimizer=[o, o]), UsageError, "2 optimizers"),
        (lambda c, o, m: c.update(optimizer_state_dict=[1]), SourceError, "no state_dict of an optimizer"),
    ],
)  # fmt: skip
def test_what_cannot_be_continued(tmp_path, change, kind, words):
    with pytest.raises(kind, match=words):
        read_foreign(spoiled(tmp_path, change))


def test_layouts_by_name(tmp_path):
    path = spoiled(tmp_path, lambda *_: None)
    assert read_foreign(path, layout="flat").step == 2
    with pytest.raises(UsageError, match=r"fit no known order of this model \(trainer \[16, 5\]\)"):
        read_foreign(path, layout="trainer")
    with pytest.raises(UsageError, match="unknown optimizer_layout='mine'; choose flat, trainer, nanogpt"):
        read_foreign(path, layout="mine")


def test_two_weights_that_the_configuration_ties(tmp_path):
    path = spoiled(tmp_path, lambda *_: None)
    llama(tie_word_embeddings=True).config.save_pretrained(tmp_path)
    with pytest.raises(SourceError, match=r"ties lm_head\.weight to model\.embed_tokens\.weight"):
        read_foreign(path)


def test_other_models_are_refused(tmp_path):
    path = spoiled(tmp_path, lambda *_: None)
    transformers.BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="is a BertForMaskedLM"):
        read_foreign(path)
    with pytest.raises(SourceError, match=r"cannot build the model of .*nowhere"):
        read_foreign(path, config=tmp_path / "nowhere")


class Runs:
    def __reduce__(self):
        return os.system, ("touch was_run",)


def test_nothing_in_a_file_is_run_and_all_that_it_wants_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}, "a": Runs(), "b": transformers.LlamaConfig(vocab_size=8)}, tmp_path / "evil.pt")
    with pytest.raises(SourceError, match=r"wants to make or run (posix|nt)\.system, transformers\S+LlamaConfig when"):
        read_foreign(tmp_path / "evil.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"model": Runs()}))
    with pytest.raises(SourceError, match="cannot be opened without running it"):
        read_foreign(tmp_path / "pickle.pt")
    torch.save(llama(), tmp_path / "whole.pt")
    with pytest.raises(SourceError, match=r"wants to make or run .*LlamaForCausalLM"):
        read_foreign(tmp_path / "whole.pt")
    assert not (tmp_path / "was_run").exists()
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(SourceError, match="holds a list"):
        read_foreign(tmp_path / "list.pt")


def test_what_is_foreign(tmp_path):
    assert not is_foreign(tmp_path)
    assert not is_foreign(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="no checkpoint of a known program"):
        read_foreign(tmp_path)
    (tmp_path / "a.pt").touch()
    (tmp_path / "b.pt").touch()
    assert is_foreign(tmp_path)
    with pytest.raises(UsageError, match=r"several checkpoints \(a\.pt, b\.pt\): name one"):
        read_foreign(tmp_path)
    (tmp_path / "checkpoint-2").mkdir()
    assert not is_foreign(tmp_path)
