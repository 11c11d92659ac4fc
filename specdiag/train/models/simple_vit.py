"""Simple ViT (Beyer, Zhai and Kolesnikov 2022, arXiv 2205.01580), which transformers' ViT cannot be configured to be.

A patch projection, fixed sine and cosine positions of the two axes, pre-norm blocks without dropout, the mean over all
patches and a linear head; no class token. Initial weights are those of big_vision's `models/vit.py` (but for biases of
1e-6, here 0), and so is the activation, the tanh form of GELU. The paper's own head has a hidden layer (76.5 % of
ImageNet-1k after 90 epochs); this is its variant without (76.7 %).
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from specdiag.errors import MissingExtraError

try:
    from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
    from transformers.activations import ACT2FN
    from transformers.modeling_outputs import ImageClassifierOutput
except ImportError as error:
    raise MissingExtraError("Simple ViT needs transformers: pip install transformers") from error

_TEMPERATURE = 10_000.0
_TRUNCATED = 0.87962566103423978
"""Standard deviation of a normal variable cut at 2."""


class SimpleViTConfig(PreTrainedConfig):
    """Configuration of Simple ViT; the defaults are those of ViT-S/16."""

    model_type = "simple_vit"

    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    hidden_size: int = 384
    intermediate_size: int = 1536
    num_hidden_layers: int = 12
    num_attention_heads: int = 6
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6


class SimpleViTForImageClassification(PreTrainedModel):
    """Simple ViT with a linear head. It also takes images of other sizes, if patches cover them."""

    config_class = SimpleViTConfig
    base_model_prefix = "simple_vit"
    main_input_name = "pixel_values"
    _no_split_modules = ["_Block"]  # noqa: RUF012

    def __init__(self, config: SimpleViTConfig) -> None:
        super().__init__(config)
        self.num_labels = cast("int", config.num_labels)
        width = config.hidden_size
        self.patch_embeddings = nn.Conv2d(
            config.num_channels, width, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.layers = nn.ModuleList(_Block(config) for _ in range(config.num_hidden_layers))
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(width, self.num_labels)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> ImageClassifierOutput:
        """Compute the logits, and the loss if labels are given.

        Args:
            pixel_values: images, [batch, channels, height, width].
            labels: classes, [batch]; or probabilities of classes, [batch, classes], as mixtures have them.
        """
        patches = self.patch_embeddings(pixel_values)
        rows, columns = patches.shape[-2:]
        hidden = patches.flatten(2).transpose(1, 2)
        hidden = hidden + positions(rows, columns, hidden.shape[-1], hidden.device).to(hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden)
        logits = self.classifier(self.layernorm(hidden).mean(dim=1))
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        return ImageClassifierOutput(loss=cast("Any", loss), logits=logits)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self.classifier:
            nn.init.zeros_(self.classifier.weight)
            nn.init.zeros_(self.classifier.bias)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            std = 1 / math.sqrt(module.weight[0].numel()) / _TRUNCATED
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.zeros_(cast("torch.Tensor", module.bias))
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


class _Attention(nn.Module):
    def __init__(self, config: SimpleViTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            projection(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, config: SimpleViTConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.activation(self.up_proj(hidden)))


class _Block(nn.Module):
    def __init__(self, config: SimpleViTConfig) -> None:
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = _Attention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = _Mlp(config)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.attention(self.layernorm_before(hidden))
        return hidden + self.mlp(self.layernorm_after(hidden))


def positions(rows: int, columns: int, width: int, device: torch.device | None = None) -> torch.Tensor:
    """Return fixed positions: sines and cosines of the column, then of the row.

    Args:
        rows: patches in a column of the image.
        columns: patches in a row of the image.
        width: width of the model, a multiple of 4.
        device: device of the result; None for torch's default.

    Returns:
        [rows * columns, width], row by row.
    """
    frequencies = _TEMPERATURE ** -torch.linspace(0, 1, width // 4, device=device)
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    x, y = x.flatten()[:, None] * frequencies, y.flatten()[:, None] * frequencies
    return torch.cat((x.sin(), x.cos(), y.sin(), y.cos()), dim=1)


def register() -> None:
    """Register the model with AutoConfig and AutoModelForImageClassification; doing it again changes nothing."""
    AutoConfig.register(SimpleViTConfig.model_type, SimpleViTConfig, exist_ok=True)
    AutoModelForImageClassification.register(SimpleViTConfig, SimpleViTForImageClassification, exist_ok=True)
