"""Small models of several layouts, in memory and on disk."""

import numpy as np
from safetensors.numpy import save_file


def write_llama(folder, layers=2, d=64, ff=160, **changes):
    """Write a checkpoint of random weights in a folder; `changes` replace or add tensors by name."""
    rng = np.random.default_rng(0)
    state = {"model.embed_tokens.weight": rng.standard_normal((200, d)), "model.norm.weight": np.ones(d)}
    for layer in range(layers):
        for role in "qkvo":
            state[f"model.layers.{layer}.self_attn.{role}_proj.weight"] = rng.standard_normal((d, d))
        for role, shape in (("gate", (ff, d)), ("up", (ff, d)), ("down", (d, ff))):
            state[f"model.layers.{layer}.mlp.{role}_proj.weight"] = rng.standard_normal(shape)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: w.astype(np.float32) for name, w in (state | changes).items()}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    return folder
