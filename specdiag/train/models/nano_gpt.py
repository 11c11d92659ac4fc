"""nanoGPT's network (github.com/karpathy/nanoGPT) as a model of transformers: GPT-2 whose biases can be left out.

Parameters have nanoGPT's names and shapes. Importing this module registers it, so that AutoConfig and
AutoModelForCausalLM open what `save_pretrained` wrote.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from specdiag.errors import MissingExtraError, UsageError

try:
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutput
except ImportError as error:
    raise MissingExtraError("nanoGPT's network needs transformers: pip install transformers accelerate") from error

_STD = 0.02


class NanoGPTConfig(PreTrainedConfig):
    """nanoGPT's model_args; `activation` is `gelu`, or `gelu_tanh` as before June 2023."""

    model_type = "nanogpt"
    attribute_map = {  # noqa: RUF012 - transformers reads a plain dictionary
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "hidden_size": "n_embd",
        "max_position_embeddings": "block_size",
    }

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    block_size: int = 1024
    vocab_size: int = 50304
    dropout: float = 0.0
    bias: bool = False
    activation: str = "gelu"
    tie_word_embeddings: bool = True
    use_cache: bool = False


class _Attention(nn.Module):
    def __init__(self, config: NanoGPTConfig) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.n_head, self.dropout = config.n_head, config.dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, time, width = x.shape
        q, k, v = (
            part.view(batch, time, self.n_head, width // self.n_head).transpose(1, 2)
            for part in self.c_attn(x).split(width, dim=2)
        )
        dropout = self.dropout if self.training else 0.0
        y = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).reshape(batch, time, width)))


class _MLP(nn.Module):
    def __init__(self, config: NanoGPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.act = nn.GELU(approximate="tanh" if config.activation == "gelu_tanh" else "none")
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.c_proj(self.act(self.c_fc(x))))


class _Block(nn.Module):
    def __init__(self, config: NanoGPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = _Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = _MLP(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGPTForCausalLM(PreTrainedModel, GenerationMixin):
    """Embeddings, blocks, and a head that is tied to the token embedding."""

    config_class = NanoGPTConfig
    base_model_prefix = "transformer"
    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}  # noqa: RUF012 - as the base class has it

    def __init__(self, config: NanoGPTConfig) -> None:
        super().__init__(config)
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "drop": nn.Dropout(config.dropout),
                "h": nn.ModuleList([_Block(config) for _ in range(config.n_layer)]),
                "ln_f": nn.LayerNorm(config.n_embd, bias=config.bias),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: object,
    ) -> CausalLMOutput:
        """Compute the logits of every position, and the loss if labels are given. Labels are shifted here.

        Args:
            input_ids: (batch, time), time at most block_size.
            attention_mask: None or all ones, because nanoGPT has no padding.
            labels: (batch, time), -100 for tokens that do not count.
            **kwargs: arguments of the loss (`num_items_in_batch`); those of a cache are ignored.

        Raises:
            UsageError: the input is longer than block_size, or padded.
        """
        time = input_ids.shape[1]
        if time > self.config.block_size:
            raise UsageError(f"{time} tokens are more than the {self.config.block_size} positions of this nanoGPT")
        if attention_mask is not None and not bool(attention_mask.all()):
            raise UsageError("nanoGPT has no padding: give sequences of one length")
        parts = cast("dict[str, Any]", self.transformer)
        positions = torch.arange(time, device=input_ids.device)
        x = parts["drop"](parts["wte"](input_ids) + parts["wpe"](positions))
        for block in parts["h"]:
            x = block(x)
        logits = self.lm_head(parts["ln_f"](x))
        measure: Any = self.loss_function
        loss = None if labels is None else measure(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutput(loss=loss, logits=logits)

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self.transformer["wte"]

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, *args: object, **kwargs: object
    ) -> dict[str, torch.Tensor]:
        """Return the last block_size tokens, because there is no cache."""
        return {"input_ids": input_ids[:, -self.config.block_size :]}

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=_STD)
        if isinstance(module, nn.Linear) and module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
            nn.init.zeros_(module.bias)


def register() -> None:
    """Register the model with AutoConfig and AutoModelForCausalLM; doing it again changes nothing."""
    AutoConfig.register(NanoGPTConfig.model_type, NanoGPTConfig, exist_ok=True)
    AutoModelForCausalLM.register(NanoGPTConfig, NanoGPTForCausalLM, exist_ok=True)


register()
