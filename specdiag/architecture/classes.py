"""The class of a model by the name of its architecture: encoder, decoder, encoder and decoder, or of images.

Names and shapes of weights do not tell: GPT's names stand in encoders too, and Megatron's and ChatGLM's decoders are
called encoders. So the class is that of a known name, such as `LlamaForCausalLM` or GGUF's `llama`, and unknown for any
other.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

ModelClass = Literal["encoder", "decoder", "encoder-decoder", "vision"]
MODEL_CLASSES: tuple[ModelClass, ...] = get_args(ModelClass)

_FAMILIES: dict[ModelClass, str] = {
    "encoder": "albert antiberty bert bigbird camembert convbert deberta distilbert electra esm eurobert flaubert "
    "ibert jinabert longformer megatronbert mobilebert modernbert mpnet mra nezha nomicbert "
    "nystromformer rembert roberta robertaprelayernorm roformer squeezebert t5encoder xlmroberta "
    "xlmrobertaxl xmod",
    "decoder": "apertus aquila arcee baichuan bamba biogpt bitnet bloom chatglm codegen cohere commandr cpm dbrx "
    "deepseek dolly exaone falcon gemma glm gpt gpt2doubleheads gpt2lmhead gptbigcode gptj gptneo "
    "gptneox gptneoxjapanese gptoss granite helium hunyuan internlm jais llama minicpm minimax "
    "ministral mistral mixtral mpt nemotron olmo olmoe openaigpt openelm opt orion persimmon phi qwen "
    "refact seedoss smollm solar stablelm starcoder xglm xverse yi",
    "encoder-decoder": "bart bigbirdpegasus blenderbot blenderbotsmall fsmt led longt5 m2m m2m100 marian marianmt "
    "mbart mt5 mvp nllb pegasus pegasusx plbart prophetnet seamlessm4t speech2text switchtransformers "
    "t5 t5gemma umt5 whisper xlmprophetnet",
    "vision": "beit clipvision data2vecvision deit dino dinov2withregisters hiera ijepa levit pvt siglipvision "
    "swin vit vitmae vitmsn",
}
"""Families by class, as the names of transformers' classes and GGUF's architectures begin."""
_KNOWN: dict[ModelClass, re.Pattern[str]] = {
    kind: re.compile(rf"({'|'.join(families.split())})(v?\d+)*(moe|text)?(for\w+|model)?")
    for kind, families in _FAMILIES.items()
}
_HEADS: dict[str, ModelClass] = {
    "ForCausalLM": "decoder", "ForMaskedLM": "encoder", "ForMaskedImageModeling": "vision",
    "ForImageClassification": "vision",
}  # fmt: skip
"""Classes by the head that the name ends in."""


def model_class(architecture: str | None, component: str | None = None) -> ModelClass | None:
    """Find the class of a model, or of a piece of it.

    Args:
        architecture: `architectures[0]` or `model_type` of config.json, or GGUF's; None where there is none.
        component: of a matrix, in a model of several pieces: the vision tower has the class `vision`.

    Returns:
        The class; None where the name is not known, or says two things (`BartForCausalLM`).

    Example:
        >>> model_class("LlamaForCausalLM"), model_class("bert"), model_class("MyModel")
        ('decoder', 'encoder', None)
    """
    piece = (component or "").partition(".")[0]
    if piece == "vision":
        return "vision"
    if architecture is None or piece not in ("", "text", "encoder", "decoder"):
        return None
    name = re.sub(r"[^a-z0-9]", "", architecture.lower())
    found: set[ModelClass] = {kind for kind, known in _KNOWN.items() if known.fullmatch(name)}
    found |= {kind for head, kind in _HEADS.items() if architecture.endswith(head)}
    return found.pop() if len(found) == 1 else None
