"""A config.json of another architecture than the tensors: found by the norms of the layers, and of no model that fits."""

import json
import shutil

import pytest
import torch
import transformers
from command import execute
from wired_models import KINDS

from specdiag.architecture.other_config import mismatch, other_type

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 384, "intermediate_size": 1536,
    "num_hidden_layers": 6, "num_attention_heads": 12, "vocab_size": 30522, "rms_norm_eps": 1e-6,
}  # fmt: skip


def parts(kind):
    """Configuration and names of a model of transformers, without values."""
    model_class, config_class, arguments = KINDS[kind]
    config = getattr(transformers, config_class)(**arguments)
    with torch.device("meta"):
        model = getattr(transformers, model_class)(config)
    return config.to_dict(), [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("kind", KINDS)
def test_models_beside_their_own_config_are_quiet(kind):
    assert other_type(*parts(kind)) is None


def test_exchanged_configs_are_named():
    (llama, names), (bert, others) = parts("llama"), parts("bert")
    told = other_type(llama, others)
    assert told is not None
    assert "config.json names llama" in told
    assert "those of bert" in told
    assert mismatch(["something else", told]) == told.removesuffix(".")
    assert "config.json names bert" in (other_type(bert, names) or "")


def test_names_of_other_formats_show_nothing():
    config, _ = parts("llama")
    assert other_type(config, ["blk.0.attn_norm.weight", "layers.0.attention_norm.weight", "h.0.norm_1.weight"]) is None
    assert other_type({}, parts("bert")[1]) is None


def test_the_answer_of_analyze_says_so(minilm, tmp_path):
    folder = shutil.copytree(minilm, tmp_path / "other", copy_function=shutil.copy)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    done = execute("-q", "analyze", folder, cwd=tmp_path, env={"COLUMNS": "200"})
    assert "3 things stand out" in done.stdout
    assert "!  the checkpoint\n   config.json names llama, whose layers have input_layernorm" in done.stdout
    assert "as those of bert" in done.stdout
