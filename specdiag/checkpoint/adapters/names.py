"""Names of an adapter's tensors: which module each adapts, and which piece of the update it holds.

Spellings of PEFT (also of a live PeftModel), diffusers and kohya's scripts. Nothing here reads values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["down", "up", "middle", "magnitude", "alpha", "tokens", "weight", "frozen", "other", "method"]

_NAMED = r"(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?(?:\.weight)?"
_PIECES = tuple(
    re.compile(rf"(?P<module>.+)\.{pattern}")
    for pattern in (
        rf"lora_(?P<embedding>embedding_)?(?P<piece>[ABE]|magnitude_vector){_NAMED}",
        r"(?:lora_|lora\.|lora_linear_layer\.)(?P<piece>down|up)(?:\.weight)?",
        r"processor\.(?P<projection>\w+)_lora\.(?P<piece>down|up)\.weight",
        r"(?P<piece>alpha)",
        r"(?P<piece>trainable_tokens_delta)(?:\.(?P<adapter>[^.]+))?",
    )
)
_KINDS: dict[str, Kind] = {
    "A": "down",
    "B": "up",
    "E": "middle",
    "magnitude_vector": "magnitude",
    "down": "down",
    "up": "up",
    "alpha": "alpha",
    "trainable_tokens_delta": "tokens",
}

_BESIDE: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), what)
    for pattern, what in (
        (r".*\.lora_mid(\.weight)?", "core tensor of a LoCon update"),
        (r".*\.dora_scale", "magnitude of a LyCORIS update"),
        (r".*\.lora_(embedding_)?[AB](\.[^.]+)?\.bias", "bias of an update"),
        (r".*\.ranknum(\.[^.]+)?", "rank counter of AdaLoRA"),
        (r"(.*\.)?(trainable_tokens_original|token_indices)(\.[^.]+)?", "buffer of trainable tokens"),
    )
)
"""Tensors that lie beside the factors of a low-rank update."""

_METHODS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), method)
    for pattern, method in (
        (r".*\.lora_[ab]", "MLX or GGUF LoRA"),
        (r".*\.ia3_l(\.[^.]+)?", "IA3"),
        (r".*\.hada_(w[12]_[ab]|t[12])(\.[^.]+)?", "LoHa"),
        (r".*\.lokr_(w[12](_[ab])?|t2)(\.[^.]+)?", "LoKr"),
        (r".*\.b?oft_(blocks|diag|[rRsP])(\.[^.]+)*", "OFT"),
        (r"(.*\.)?vera_(lambda_[bd]|[AB])(\.[^.]+)?", "VeRA"),
        (r"prompt_embeddings", "prompt or prefix tuning"),
        (r"(.*\.)?adaption_(prompt|gate)", "adaption prompts"),
        (r"(.*\.)?(internal_)?xlora_(classifier|model)\..*", "X-LoRA"),
    )
)
"""Methods whose tensors are not the factors of one product."""

_PEFT_METHODS = re.compile(
    r"(?P<method>adamss|beft|bone|c3a|deft|delora|fourierft|frod|glora|gralora|hira|hra|lily|ln_tuning|miss|osf|peanut"
    r"|poly|psoft|pvera|randlora|road|shadow|shira|supertuning|tinylora|unilora|vblora|waveft)_\w+"
)
"""Segments of the rest of PEFT's methods, whose words are too common to tell anything without its prefix."""

PREFIX = "base_model.model."
"""In front of all names of a file of PEFT."""
_HINT = re.compile(r"lora|ia3_l|hada_|lokr_|oft_|vera_|prompt_embeddings|adaption_|^base_model\.")
_WRAPPED = re.compile(r"(\.base_layer)+\.")
_COMPONENT = re.compile(r"lora_(unet|te\d?|transformer|prior_unet|prior_te)_")
_DOTS = (
    (re.compile(r"_(\d+)(?=_|$)"), r".\1"),
    (re.compile(r"(?<=\d)_"), "."),
    (re.compile(r"(^|[._])(text_model|self_attn|cross_attn|attn\d?|img_attn|txt_attn|mlp|ff|encoder)_"), r"\1\2."),
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor of an adapter.

    Attributes:
        module: the module that it adapts, under its name in the base model; of a `weight` or `frozen` tensor its full
            name in the base model.
        kind: `down` and `up` are the factors A and B, `middle` AdaLoRA's diagonal, `magnitude` DoRA's norms, `alpha`
            kohya's scale times the rank, `tokens` new rows of a table; `weight` is a full weight, `frozen` one that
            another of the same name replaces.
        adapter: its name where several may lie side by side, as in a live model; None in a file of one.
        what: for `other`, what it is; for `method`, the method that it belongs to.
        is_embedding: whether the factors are those of a table, which is stored (in, out).
    """

    module: str
    kind: Kind
    adapter: str | None = None
    what: str = ""
    is_embedding: bool = False


def may_adapt(name: str) -> bool:
    """Tell quickly whether a tensor's name could be an adapter's; most tensors of a large model are not."""
    return _HINT.search(name) is not None


def take_apart(full_name: str) -> Piece:
    """Recognise a tensor of an adapter, or of a model that carries one, by its name.

    Args:
        full_name: as the file stores it.

    Returns:
        The module that it belongs to, and what it is of its update.
    """
    name = full_name.removeprefix(PREFIX)
    for pattern in _PIECES:
        match = pattern.fullmatch(name)
        if match is not None:
            groups = match.groupdict()
            module = _WRAPPED.sub(".", match["module"]).removesuffix(".token_adapter")
            if groups.get("projection"):
                module += "." + groups["projection"].replace("to_out", "to_out.0")
            is_embedding = bool(groups.get("embedding"))
            return Piece(module, _KINDS[match["piece"]], groups.get("adapter"), is_embedding=is_embedding)
    description = _named(_BESIDE, name)
    if description is not None:
        return Piece(name, "other", what=description)
    method = _named(_METHODS, name)
    if method is None and name != full_name:
        inner = (_PEFT_METHODS.fullmatch(segment) for segment in reversed(name.split(".")[1:]))
        method = next((match["method"] for match in inner if match is not None), None)
    return _full_weight(name) if method is None else Piece(name, "method", what=method)


def _named(table: tuple[tuple[re.Pattern[str], str], ...], name: str) -> str | None:
    return next((what for pattern, what in table if pattern.fullmatch(name)), None)


def _full_weight(name: str) -> Piece:
    """Recognise a weight that training changed as a whole, or that lies frozen below a wrapper."""
    saved = re.fullmatch(r"(.+)\.modules_to_save(?:\.(?!weight$|bias$)([^.]+))?\.(.+)", name)
    if saved is not None:
        return Piece(f"{saved[1]}.{saved[3]}", "weight", saved[2])
    if ".original_module." in name:
        return Piece(name.replace(".original_module.", "."), "frozen")
    return Piece(_WRAPPED.sub(".", name.replace(".token_adapter.", ".")), "weight")


def dotted(module: str) -> str:
    """Guess the path behind a flattened name, well enough to tell its role.

    `lora_unet_down_blocks_0_attn1_to_q` becomes `down_blocks.0.attn1.to_q`. A name with dots stays as it is.

    Args:
        module: a module as an adapter names it.
    """
    if "." in module or not _COMPONENT.match(module):
        return module
    module = _COMPONENT.sub("", module)
    for pattern, replacement in _DOTS:
        module = pattern.sub(replacement, module)
    return module


def flattened(module: str) -> str:
    """Write a path as kohya's scripts do, with underscores for dots, but without the component in front.

    Args:
        module: a path or a flattened name.
    """
    return _COMPONENT.sub("", module).replace(".", "_")
