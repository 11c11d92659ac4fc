"""A forward pass without values: what stops it, the entry of config.json that does, and where nothing is known."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
import torch
from audited_models import CONFIG, HIDDEN, WIDTH, found

import specdiag
from specdiag.auditing.reference_process import running
from specdiag.auditing.reference_process.building import build
from specdiag.auditing.reference_process.inputs import candidates
from specdiag.auditing.reference_process.known_integers import KnownIntegers
from specdiag.auditing.reference_process.running import trial

LLAMA = CONFIG | {
    "intermediate_size": HIDDEN, "num_key_value_heads": 4, "num_hidden_layers": 2, "head_dim": WIDTH // 4,
}  # fmt: skip
SIDE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT = SIDE | {"model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": 100}
CLIP = {
    "model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": 16,
    "text_config": SIDE | {"vocab_size": 100, "eos_token_id": 99, "bos_token_id": 98},
    "vision_config": SIDE | {"image_size": 32, "patch_size": 8},
}  # fmt: skip
COHERE = LLAMA | {"model_type": "cohere", "architectures": ["CohereForCausalLM"]}
PHI = LLAMA | {"model_type": "phi", "architectures": ["PhiForCausalLM"]}
MIXTRAL = LLAMA | {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 4}
MAMBA = {
    "model_type": "mamba2", "architectures": ["Mamba2ForCausalLM"], "hidden_size": 64, "num_heads": 8, "head_dim": 16,
    "state_size": 8, "n_groups": 1, "num_hidden_layers": 2, "vocab_size": 100, "chunk_size": 16,
}  # fmt: skip
LLAVA = {
    "model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "image_token_index": 99,
    "text_config": {k: v for k, v in LLAMA.items() if k != "architectures"} | {"vocab_size": 100},
    "vision_config": SIDE | {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8},
}  # fmt: skip
OPT = SIDE | {
    "model_type": "opt", "architectures": ["OPTForCausalLM"], "ffn_dim": 64, "vocab_size": 100,
    "max_position_embeddings": 64, "word_embed_proj_dim": 32,
}  # fmt: skip
WHISPER = {
    "model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], "d_model": 32, "encoder_layers": 2,
    "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "vocab_size": 100, "max_source_positions": 50, "max_target_positions": 40, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
WHOLE = {"llama": LLAMA, "bert": BERT, "clip": CLIP, "cohere": COHERE, "phi": PHI, "mixtral": MIXTRAL, "mamba2": MAMBA,
         "llava": LLAVA, "opt": OPT, "whisper": WHISPER}  # fmt: skip


def with_entry(config: dict, path: str, value: object) -> dict:
    changed = deepcopy(config)
    *above, key = path.split(".")
    part = changed
    for name in above:
        part = part[name]
    part[key] = value
    return changed


def tried(config: dict) -> dict:
    return trial(build(config), config)


@pytest.mark.parametrize("kind", WHOLE)
def test_models_that_run_are_let_through(kind):
    assert tried(WHOLE[kind]) == {}


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("cohere", "logit_scale", None),
        ("phi", "partial_rotary_factor", 2.0),
        ("mamba2", "chunk_size", 0),
        ("clip", "text_config.eos_token_id", None),
        ("clip", "vision_config.image_size", 4),
        ("llama", "num_key_value_heads", 3),
        ("bert", "max_position_embeddings", 4),
        ("bert", "type_vocab_size", 0),
        ("mixtral", "num_experts_per_tok", 5),
        ("opt", "max_position_embeddings", 2),
        ("whisper", "max_source_positions", 0),
        ("whisper", "max_target_positions", 0),
    ],
)
def test_an_entry_that_stops_the_model_is_named(kind, path, value):
    config = with_entry(WHOLE[kind], path, value)
    answer = tried(config)
    stopped, faults = answer["stopped"], answer["faults"]
    (fault,) = (f for f in faults if f["path"] == path)
    assert fault["stated"] == json.dumps(value)
    usual = json.loads(fault["usual"] or "null")
    assert usual != value
    assert stopped
    assert errors(config), "the model stops on the CPU too"


def test_a_placeholder_beyond_the_vocabulary_is_found_where_the_model_looks_it_up():
    answer = tried(LLAVA | {"image_token_index": 100})
    assert answer["stopped"] == "IndexError: index 100 is out of range of a table of 100 rows"
    (fault,) = answer["faults"]
    assert (fault["stated"], fault["usual"]) == ("100", "99 or less")
    text = {k: v for k, v in LLAMA.items() if k != "architectures"} | {"vocab_size": 100, "model_type": "gemma"}
    paligemma = LLAVA | {
        "model_type": "paligemma", "architectures": ["PaliGemmaForConditionalGeneration"], "text_config": text,
        "vision_config": SIDE | {"model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8},
        "image_token_index": 100,
    }  # fmt: skip
    assert tried(paligemma) == {}, "this model puts another id in its place"


def errors(config: dict) -> set[str]:
    """Run the model with values, on the inputs that the model on meta would get."""
    from transformers import AutoConfig

    model_class = type(build(config))
    model = model_class(AutoConfig.for_model(**{k: v for k, v in config.items() if k != "architectures"})).eval()
    met = set()
    for _, given in candidates(model):
        with torch.no_grad():
            try:
                model(**{n: torch.zeros(v.shape) if v.is_floating_point() else v for n, v in given.items()})
            except Exception as error:  # noqa: BLE001 - whatever the model raises
                met.add(type(error).__name__)
            else:
                return set()
    return met


def test_a_type_whose_default_does_not_run_is_not_checked(monkeypatch):
    monkeypatch.setattr(running, "default", lambda config: dict(config))
    answer = tried(with_entry(COHERE, "logit_scale", None))
    assert "does not run without values" in answer["not_run"]


def test_what_needs_values_and_what_takes_too_long_is_not_checked(monkeypatch):
    model = build(LLAMA)
    monkeypatch.setattr(type(model), "forward", lambda self, input_ids=None: self.lm_head.weight.max().item())
    answer = trial(model, LLAMA)
    assert "stopped" not in answer
    assert answer["not_run"]
    monkeypatch.setattr(type(model), "forward", lambda self, input_ids=None: [0 for _ in range(10**9)])
    assert "within 0.2 s" in trial(model, LLAMA, 0.2)["not_run"]


def test_integers_are_known_and_floats_are_not():
    table = torch.empty(4, 3, device="meta")
    with KnownIntegers():
        places = torch.arange(3, device="meta")
        assert places.tolist() == [0, 1, 2]
        assert bool((places == 2).any())
        assert torch.nn.functional.embedding(places, table).shape == (3, 3)
        _, chosen = torch.topk(table, 2, dim=-1)
        assert chosen.tolist() == [[0, 1]] * 4
        assert table.argmax(-1).tolist() == [0] * 4
        with pytest.raises(IndexError, match="index 4 is out of range of a table of 4 rows"):
            torch.nn.functional.embedding(places + 2, table)
        with pytest.raises(IndexError, match="index 4"):
            table[places + 2]
        with pytest.raises((RuntimeError, NotImplementedError)):
            float(table.sum())


@pytest.mark.usefixtures("with_transformers")
def test_a_model_that_does_not_run_fails_the_audit_and_its_twin_passes(tmp_path):
    from transformers import CohereConfig, CohereForCausalLM

    sizes = {k: v for k, v in COHERE.items() if k not in ("model_type", "architectures")}
    CohereForCausalLM(CohereConfig(**sizes)).save_pretrained(tmp_path)
    whole = specdiag.audit(tmp_path, device="cpu")
    assert "does_not_run" in whole.coverage.checks
    assert ("does_not_run", None) not in found(whole)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"logit_scale": None}))
    audit = specdiag.audit(tmp_path, device="cpu")
    (value,) = (str(f.value) for f in audit.findings if f.check == "does_not_run")
    assert value.startswith("CohereForCausalLM stops with TypeError: ")
    assert value.endswith("; it runs with logit_scale 0.0625 instead of null")
    assert audit.verdict == "fail"
