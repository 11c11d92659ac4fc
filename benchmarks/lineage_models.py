"""Small llamas trained here, whose lineage is known: bases of several seeds, and fine-tunes of each.

    python benchmarks/lineage_models.py FOLDER

Bytes of CPython's library are the text of the bases, those of its documentation strings in capitals that of the
fine-tunes: what is learned does not matter, only from which weights it starts. Each model is a folder that transformers
wrote; what is there is not trained again. Takes ten minutes on one core.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

WIDTH, LAYERS, HEADS, GROUPS, HIDDEN, CONTEXT, BATCH = 96, 6, 4, 2, 256, 48, 8
SEEDS, BASE_STEPS, TUNED_STEPS = 3, 300, 100
RATE, TUNED_RATE = 3e-3, 5e-4


def text() -> np.ndarray[Any, Any]:
    """Bytes of CPython's library, half a million at most."""
    library = Path(sysconfig.get_paths()["stdlib"])
    data = b"".join(path.read_bytes() for path in sorted(library.glob("*.py"))[:60])
    return np.frombuffer(data[: 1 << 20], dtype=np.uint8)


def new_model(seed: int, layers: int = LAYERS) -> Any:
    """An untrained model."""
    import transformers

    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=WIDTH, num_hidden_layers=layers, num_attention_heads=HEADS,
        num_key_value_heads=GROUPS, intermediate_size=HIDDEN, max_position_embeddings=CONTEXT,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def train(model: Any, data: np.ndarray[Any, Any], steps: int, rate: float, seed: int) -> float:
    """Train in place by AdamW, the rate falling linearly; gives the last loss."""
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1, betas=(0.9, 0.95))
    loss = float("nan")
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 20) * (1 - step / steps)
        starts = rng.integers(0, len(data) - CONTEXT, BATCH)
        tokens = torch.from_numpy(np.stack([data[s : s + CONTEXT] for s in starts]).astype(np.int64))
        found = model(input_ids=tokens, labels=tokens).loss
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss = found.item()
    return loss


def build(folder: Path, say: Callable[[str], object]) -> None:
    """Train all models that are not there."""
    import transformers

    plain = text()
    shouted = np.frombuffer(plain.tobytes().upper(), dtype=np.uint8)
    reversed_text = plain[::-1].copy()
    for seed in range(SEEDS):
        base = folder / f"base{seed}"
        if not base.exists():
            model = new_model(seed)
            loss = train(model, plain, BASE_STEPS, RATE, seed)
            model.save_pretrained(base)
            say(f"{base.name}: loss {loss:.2f}\n")
        for name, data, steps, rate in (
            ("tuned-a", shouted, TUNED_STEPS, TUNED_RATE),
            ("tuned-b", reversed_text, TUNED_STEPS, TUNED_RATE),
            ("tuned-long", shouted, BASE_STEPS, RATE),
        ):
            place = folder / f"{base.name}-{name}"
            if not place.exists():
                model = transformers.LlamaForCausalLM.from_pretrained(base)
                loss = train(model, data, steps, rate, seed + 100)
                model.save_pretrained(place)
                say(f"{place.name}: loss {loss:.2f}\n")


def main() -> None:
    """Train the models into the folder that is named."""
    torch.set_num_threads(1)
    build(Path(sys.argv[1]), sys.stderr.write)


if __name__ == "__main__":
    main()
