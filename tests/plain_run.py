"""A plain transformers Trainer on the standard library's text: what `specdiag train` goes on from."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch
import transformers
from live_models import ForTrainer

from specdiag.train.data.tokens import load_data

BLOCK, BATCH, SEED = 32, 4, 7
FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")


def library_text(folder: Path, size: int = 20_000) -> Path:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    path = folder / "library.txt"
    path.write_bytes(b"".join(file.read_bytes() for file in files[:10])[:size].decode(errors="ignore").encode())
    return path


def llama(seed=0, layers=1):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=BLOCK, attention_dropout=0.1, architectures=["LlamaForCausalLM"],
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def plain_trainer(folder: Path, text: Path, cache: Path, *, steps=6, seed=0, model=None, save=2, **options):
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=steps, save_steps=save, logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True,
        per_device_train_batch_size=BATCH, lr_scheduler_type="cosine", warmup_steps=1, learning_rate=1e-2,
        weight_decay=0.5, seed=SEED, **options,
    )  # fmt: skip
    data = load_data([text], tokenizer=None, vocabulary=256, block_size=BLOCK, seed=SEED, cache=cache)
    trainer = transformers.Trainer(llama(seed) if model is None else model, arguments, train_dataset=data.train)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def decoder_trainer(folder: Path, *callbacks: transformers.TrainerCallback, steps: int = 6, **options):
    """A Trainer of a small decoder on random tokens, which saves every third step."""
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=steps, save_steps=3, logging_steps=1, report_to=[], use_cpu=True, disable_tqdm=True,
        per_device_train_batch_size=2,
        **{"lr_scheduler_type": "constant", "learning_rate": 1e-3, "weight_decay": 0.1} | options,
    )  # fmt: skip
    torch.manual_seed(0)
    data = [{"input_ids": ids, "labels": ids} for ids in torch.randint(80, (32, 8))]
    trainer = transformers.Trainer(ForTrainer(), arguments, train_dataset=data)
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer


def same(first: Path, second: Path, names=FILES) -> bool:
    """True if two checkpoints hold the same bytes."""
    return [name for name in names if (first / name).read_bytes() != (second / name).read_bytes()] == []
