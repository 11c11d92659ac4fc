"""The blocks of a transformers model taken apart, as views of its parameters.

Nothing here is shared with the code under test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from wired_models import GROUPS, HEADS, HIDDEN, WIDTH


@dataclass
class Layer:
    """The parameters of a block as views: what is changed here changes the model."""

    q: Tensor  # [H, h, d]
    k: Tensor  # [groups, h, d]
    v: Tensor
    o: Tensor  # [d, H, h]
    up: Tensor | None = None  # [experts, m, d]; none in cross-attention
    down: Tensor | None = None  # [experts, d, m]
    gate: Tensor | None = None
    router: Tensor | None = None
    biases: dict[str, Tensor] = field(default_factory=dict)  # q, k, v as their weights; o and down [d]; up [1, m]
    norms: dict[str, Any] = field(default_factory=dict)  # modules by their path in the wiring
    q_gain: Tensor | None = None
    k_gain: Tensor | None = None
    block: int = 0  # its place among the blocks
    is_cross: bool = False

    @property
    def is_glu(self) -> bool:
        return self.gate is not None


def stacks(kind: str, model: Any) -> list[Any]:
    """Lists of blocks, in stored order."""
    find = {
        "gpt2": lambda: [model.transformer.h],
        "gptj": lambda: [model.transformer.h],
        "gpt_neox": lambda: [model.gpt_neox.layers],
        "vit": lambda: [model.vit.layers],
        "opt": lambda: [model.model.decoder.layers],
        "t5": lambda: [model.encoder.block, model.decoder.block],
        "clip": lambda: [model.text_model.encoder.layers, model.vision_model.encoder.layers],
    }
    if kind in ("bert", "roberta", "electra"):
        return [getattr(model, kind).encoder.layer]
    if kind in ("whisper", "bart", "mbart"):
        return [model.model.encoder.layers, model.model.decoder.layers]
    return find.get(kind, lambda: [model.model.layers])()


def memory_norm(kind: str, model: Any) -> Any:
    """The last norm of an encoder, which cross-attention reads; None without one."""
    return model.encoder.final_layer_norm if kind == "t5" else getattr(model.model.encoder, "layer_norm", None)


def layers(kind: str, model: Any) -> list[Layer]:
    """Take the blocks of a model apart, of an encoder first, and then the cross-attention of each."""
    heads = getattr(model.config, "num_attention_heads", HEADS)
    blocks = [block for stack in stacks(kind, model) for block in stack]
    found = [_layer(kind, block, heads) for block in blocks]
    for place, block in enumerate(blocks):
        found[place].block = place
        cross = block.layer[1] if kind == "t5" and len(block.layer) == 3 else block
        attention = getattr(cross, "encoder_attn", None) or getattr(cross, "EncDecAttention", None)
        if attention is not None:
            weights, biases = _cut(_projections(attention), heads)
            found.append(Layer(**weights, biases=biases, norms=_norms(block), block=place, is_cross=True))
    return found


def _norms(block: Any) -> dict[str, Any]:
    return {name: module for name, module in block.named_modules() if name}


def _cut(linear: Any, heads: int) -> Any:
    """Cut the weights and biases of attention into heads."""
    weights, biases = ({k: v for k, v in part.items() if v is not None} for part in linear)
    head_dim = len(weights["q"]) // heads if weights["q"].ndim == 2 else weights["q"].shape[1]
    for name in ("q", "k", "v"):
        if weights[name].ndim == 2:
            weights[name] = weights[name].unflatten(0, (-1, head_dim))
            if name in biases:
                biases[name] = biases[name].unflatten(0, (-1, head_dim))
    weights["o"] = weights["o"].unflatten(1, (heads, head_dim))
    return weights, biases


def _layer(kind: str, block: Any, heads: int) -> Layer:
    weights, biases = _cut(_ATTENTION.get(kind, _own)(block), heads)
    mlp, mlp_biases = _MLP.get(kind, _llama_mlp)(block)
    head_norms = [getattr(getattr(block, "self_attn", None), name, None) for name in ("q_norm", "k_norm")]
    return Layer(
        **weights,
        **mlp,
        biases=biases | {k: v for k, v in mlp_biases.items() if v is not None},
        norms=_norms(block),
        q_gain=None if head_norms[0] is None else head_norms[0].weight,
        k_gain=None if head_norms[1] is None else head_norms[1].weight,
    )


def _modules(**named: Any) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    return {k: m.weight for k, m in named.items()}, {k: m.bias for k, m in named.items()}


def _projections(attention: Any) -> Any:
    names = {
        "q": ("q_proj", "q"),
        "k": ("k_proj", "k"),
        "v": ("v_proj", "v"),
        "o": ("o_proj", "out_proj", "dense", "o"),
    }
    return _modules(
        **{role: next(getattr(attention, n) for n in ends if hasattr(attention, n)) for role, ends in names.items()}
    )


def _own(block: Any) -> Any:
    return _projections(getattr(block, "self_attn", None) or block.attention)


def _phi3_attention(block: Any) -> Any:
    a, n = block.self_attn, WIDTH // HEADS * GROUPS
    q, k, v = a.qkv_proj.weight.split([WIDTH, n, n])
    return {"q": q, "k": k, "v": v, "o": a.o_proj.weight}, {}


def _gpt2_attention(block: Any) -> Any:
    a = block.attn
    weights, biases = (dict(zip("qkv", values.chunk(3), strict=True)) for values in (a.c_attn.weight.T, a.c_attn.bias))
    return weights | {"o": a.c_proj.weight.T}, biases | {"o": a.c_proj.bias}


def _neox_attention(block: Any) -> Any:
    a = block.attention
    weight = a.query_key_value.weight.view(HEADS, 3, -1, WIDTH)
    bias = a.query_key_value.bias.view(HEADS, 3, -1)
    weights = {name: weight[:, i] for i, name in enumerate("qkv")}
    biases = {name: bias[:, i] for i, name in enumerate("qkv")}
    return weights | {"o": a.dense.weight}, biases | {"o": a.dense.bias}


def _bert_attention(block: Any) -> Any:
    a = block.attention
    return _modules(q=a.self.query, k=a.self.key, v=a.self.value, o=a.output.dense)


_ATTENTION: dict[str, Callable[[Any], Any]] = {
    "phi3": _phi3_attention, "gpt2": _gpt2_attention, "gpt_neox": _neox_attention,
    "bert": _bert_attention, "roberta": _bert_attention, "electra": _bert_attention,
    "gptj": lambda block: _projections(block.attn), "t5": lambda block: _projections(block.layer[0].SelfAttention),
}  # fmt: skip


def _llama_mlp(block: Any) -> Any:
    m = block.mlp
    return {"gate": m.gate_proj.weight[None], "up": m.up_proj.weight[None], "down": m.down_proj.weight[None]}, {}


def _phi3_mlp(block: Any) -> Any:
    gate, up = block.mlp.gate_up_proj.weight.split(HIDDEN)
    return {"gate": gate[None], "up": up[None], "down": block.mlp.down_proj.weight[None]}, {}


def _mixtral_mlp(block: Any) -> Any:
    experts = block.mlp.experts
    gate, up = experts.gate_up_proj.chunk(2, dim=1)
    return {"gate": gate, "up": up, "down": experts.down_proj, "router": block.mlp.gate.weight}, {}


def _two(up: Any, down: Any, *, conv1d: bool = False) -> Any:
    weights = [m.weight.T if conv1d else m.weight for m in (up, down)]
    biases = {} if up.bias is None else {"up": up.bias[None], "down": down.bias}
    return {"up": weights[0][None], "down": weights[1][None]}, biases


_MLP: dict[str, Callable[[Any], Any]] = {
    "phi3": _phi3_mlp,
    "mixtral": _mixtral_mlp,
    "gpt2": lambda block: _two(block.mlp.c_fc, block.mlp.c_proj, conv1d=True),
    "gptj": lambda block: _two(block.mlp.fc_in, block.mlp.fc_out),
    "gpt_neox": lambda block: _two(block.mlp.dense_h_to_4h, block.mlp.dense_4h_to_h),
    "vit": lambda block: _two(block.mlp.fc1, block.mlp.fc2),
    "phi": lambda block: _two(block.mlp.fc1, block.mlp.fc2),
    "clip": lambda block: _two(block.mlp.fc1, block.mlp.fc2),
    "starcoder2": lambda block: _two(block.mlp.c_fc, block.mlp.c_proj),
    "nemotron": lambda block: _two(block.mlp.up_proj, block.mlp.down_proj),
    "t5": lambda block: _two(block.layer[-1].DenseReluDense.wi, block.layer[-1].DenseReluDense.wo),
    "qwen3_moe": _mixtral_mlp,
    **dict.fromkeys(("bert", "roberta", "electra"), lambda block: _two(block.intermediate.dense, block.output.dense)),
    **dict.fromkeys(("whisper", "opt", "bart", "mbart"), lambda block: _two(block.fc1, block.fc2)),
}
