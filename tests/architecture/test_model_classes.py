"""The class of a model by the name of its architecture, against transformers' own tables of heads."""

import pytest
from transformers.models.auto import modeling_auto as tables

from specdiag.architecture.classes import MODEL_CLASSES, model_class


def names(table):
    found = getattr(tables, f"MODEL_FOR_{table}_MAPPING_NAMES").values()
    return {name for value in found for name in (value if isinstance(value, tuple | list) else (value,))}


CAUSAL, MASKED, IMAGES, BOTH = map(names, ("CAUSAL_LM", "MASKED_LM", "IMAGE_CLASSIFICATION", "SEQ_TO_SEQ_CAUSAL_LM"))


@pytest.mark.parametrize(
    ("found", "kind", "least"),
    [
        (CAUSAL - MASKED - BOTH, "decoder", 120),
        (MASKED - BOTH - CAUSAL, "encoder", 40),
        (IMAGES, "vision", 40),
        (BOTH - CAUSAL, "encoder-decoder", 20),
    ],
)
def test_names_with_one_head_in_transformers_have_that_class_or_none(found, kind, least):
    classes = [model_class(name) for name in found]
    assert set(classes) <= {kind, None}
    assert classes.count(kind) >= least


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("BertModel", "encoder"), ("bert", "encoder"), ("nomic-bert-moe", "encoder"), ("AlbertForPreTraining", "encoder"),
        ("DebertaV2ForTokenClassification", "encoder"), ("AntiBERTy", "encoder"), ("T5EncoderModel", "encoder"),
        ("GPT2LMHeadModel", "decoder"), ("llama", "decoder"), ("qwen3moe", "decoder"), ("OPTModel", "decoder"),
        ("DeepseekV3ForCausalLM", "decoder"), ("LlamaForSequenceClassification", "decoder"), ("ChatGLMModel", "decoder"),
        ("T5ForConditionalGeneration", "encoder-decoder"), ("WhisperModel", "encoder-decoder"),
        ("ViTModel", "vision"), ("Dinov2Model", "vision"), ("SwinForImageClassification", "vision"),
        (None, None), ("", None), ("MyModel", None), ("HubertModel", None), ("MllamaForConditionalGeneration", None),
        ("BertLMHeadModel", None), ("BartForCausalLM", None), ("XLMWithLMHeadModel", None), ("BertGenerationDecoder", None),
        ("Unbert", None), ("Llama Guard", None), ("\x1b[31m", None),
    ],
)  # fmt: skip
def test_names(name, kind):
    assert model_class(name) == kind


def test_pieces():
    assert model_class("MyModel", "vision") == model_class("MyModel", "vision.encoder") == "vision"
    assert model_class("Qwen2ForCausalLM", "text") == "decoder"
    assert model_class("WhisperModel", "decoder") == "encoder-decoder"
    assert model_class("LlamaForCausalLM", "audio") is model_class("LlamaForCausalLM", "qformer") is None
    assert len(MODEL_CLASSES) == 4
