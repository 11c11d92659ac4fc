"""A training loop with AlphaDecay, for decay_loops.py: prints its observations as a line of JSON."""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import torch
from decay_observed import Observed, Observer
from torch import nn
from torch.optim import Optimizer

import specdiag

STEPS, LR, DECAY, LENGTH, VOCABULARY = 5, 0.01, 20.0, 32, 128
EVERY = {"every": 2, "measure_first": True}


def batches(n: int = 64) -> Any:
    """Random tokens."""
    tokens = torch.randint(VOCABULARY, (n, LENGTH), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row} for row in tokens]


def llama(vocabulary: int = VOCABULARY) -> nn.Module:
    """A LLaMA of 2 layers and width 64."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    tokens: dict[str, Any] = {"vocab_size": vocabulary, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
    return LlamaForCausalLM(LlamaConfig(max_position_embeddings=64, **sizes, **tokens))


def run_script(text: str, changes: Mapping[str, str], names: dict[str, Any]) -> None:
    """Run a training script with lines put before some of its own."""
    for before, added in changes.items():
        if text.count(before) != 1:
            raise SystemExit(f"this version of the script has no single line {before!r}")
        text = text.replace(before, added + before)
    exec(compile(text, "the training script", "exec"), {"__name__": "__main__"} | names)


def nanogpt(checkout: Path) -> Observed:
    """Its train.py on random tokens."""
    seen: list[Observer] = []
    tokens = torch.randint(VOCABULARY, (4096,)).numpy().astype("uint16")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        data = Path("data/tiny")
        data.mkdir(parents=True)
        for name in ("train", "val"):
            tokens.tofile(data / f"{name}.bin")
        (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": VOCABULARY}))
        Path("configurator.py").symlink_to(checkout / "configurator.py")
        sys.path.insert(0, str(checkout))
        given = {
            "dataset": "tiny", "device": "cpu", "compile": False, "dtype": "float32", "eval_iters": 1, "n_layer": 2,
            "n_head": 2, "n_embd": 64, "block_size": LENGTH, "batch_size": 2, "gradient_accumulation_steps": 2,
            "max_iters": STEPS - 1, "learning_rate": LR, "weight_decay": DECAY, "warmup_iters": 2,
            "lr_decay_iters": STEPS,
        }  # fmt: skip
        sys.argv = ["train.py", *(f"--{name}={value}" for name, value in given.items())]
        changes = {
            "# compile the model\n": "decay = alphadecay(model, optimizer)\n",
            "    # step the optimizer and scaler if training in fp16\n": "    decay.step(iter_num)\n",
        }
        run_script((checkout / "train.py").read_text(), changes, {"alphadecay": observing(seen)})
    return seen[0].found


def nanochat(checkout: Path) -> Observed:
    """Its base_train.py; tokenizer, data, evaluation and saving are stand-ins."""
    seen: list[Observer] = []
    sys.path.insert(0, str(checkout))

    def loader(*_: object, **__: object) -> Any:
        while True:
            tokens = torch.randint(VOCABULARY, (2, LENGTH + 1))
            yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), {"epoch": 0, "pq_idx": 0, "rg_idx": 0}

    tokenizer = SimpleNamespace(get_vocab_size=lambda: VOCABULARY)

    def nothing(*_: object, **__: object) -> None: ...

    stand_ins = {
        "wandb": {},
        "nanochat.dataloader": {
            "tokenizing_distributed_data_loader_bos_bestfit": loader,
            "tokenizing_distributed_data_loader_with_state_bos_bestfit": loader,
        },
        "nanochat.tokenizer": {"get_tokenizer": lambda: tokenizer, "get_token_bytes": nothing},
        "nanochat.checkpoint_manager": {"save_checkpoint": nothing, "load_checkpoint": nothing},
        "nanochat.loss_eval": {"evaluate_bpb": nothing},
        "nanochat.engine": {"Engine": nothing},
        "scripts.base_eval": {"evaluate_core": nothing},
    }
    for name, held in stand_ins.items():
        module = ModuleType(name)
        vars(module).update(held)
        sys.modules[name] = module
    given = {
        "depth": 2, "aspect-ratio": 32, "head-dim": 32, "max-seq-len": LENGTH, "device-batch-size": 2,
        "total-batch-size": 4 * LENGTH, "num-iterations": STEPS, "eval-every": -1, "core-metric-every": -1,
        "sample-every": -1, "device-type": "cpu", "window-pattern": "L", "warmup-steps": 2, "warmdown-ratio": 0,
        "matrix-lr": 0.4,
    }  # fmt: skip
    sys.argv = ["base_train.py", *(f"--{name}={value}" for name, value in given.items())]
    changes = {
        "if resuming:\n    optimizer.load_state_dict": ("decay = alphadecay(orig_model, optimizer)\n"),
        "    if scaler is not None:\n        scaler.unscale_": "    decay.step(step)\n",
        "def get_weight_decay(it):\n": f"weight_decay_scaled = {DECAY}\n",
    }
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NANOCHAT_BASE_DIR"] = folder
        text = (checkout / "scripts" / "base_train.py").read_text()
        run_script(text, changes, {"alphadecay": observing(seen)})
    return seen[0].found


def observing(seen: list[Observer]) -> Callable[[nn.Module, Optimizer], specdiag.optim.AlphaDecay]:
    """AlphaDecay with an observer."""

    def make(model: nn.Module, optimizer: Optimizer) -> specdiag.optim.AlphaDecay:
        decay = specdiag.optim.AlphaDecay(model, optimizer, **EVERY)
        seen.append(Observer(model, optimizer, lambda: decay.ratios))
        return decay

    return make


def trainer(_: Path) -> Observed:
    """A transformers Trainer with the callback."""
    from transformers import Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(folder, **hugging_face())
        return trained(Trainer(llama(), options, train_dataset=batches()))


def trl(_: Path) -> Observed:
    """TRL's SFTTrainer with the callback, on tokens."""
    import datasets
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    words = Tokenizer(models.WordLevel({str(i): i for i in range(VOCABULARY)}, unk_token="2"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="0", pad_token="1")
    data = datasets.Dataset.from_list([{"input_ids": b["input_ids"].tolist()} for b in batches()])
    with tempfile.TemporaryDirectory() as folder:
        options = SFTConfig(folder, max_length=LENGTH, bf16=False, **hugging_face())
        return trained(SFTTrainer(llama(), options, train_dataset=data, processing_class=tokenizer))


def hugging_face() -> dict[str, Any]:
    """Arguments of a short run."""
    return {
        "max_steps": STEPS, "learning_rate": LR, "weight_decay": DECAY, "per_device_train_batch_size": 2,
        "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True, "warmup_steps": 2,
        "logging_strategy": "no",
    }  # fmt: skip


def trained(trainer: Any) -> Observed:
    """Observations in a Trainer."""
    from transformers import TrainerCallback

    seen: list[Observer] = []
    decay = specdiag.train.AlphaDecayCallback(**EVERY)

    class Observing(TrainerCallback):
        def on_train_begin(self, args: object, state: object, control: object, **kwargs: Any) -> None:
            seen.append(Observer(kwargs["model"], kwargs["optimizer"].optimizer, lambda: decay.decay.ratios))

    trainer.add_callback(decay)
    trainer.add_callback(Observing())
    trainer.train()
    return seen[0].found


def lightning(_: Path) -> Observed:
    """A Lightning Trainer with the callback."""
    import lightning.pytorch as pl

    seen: list[Observer] = []
    decay = specdiag.train.LightningAlphaDecayCallback(**EVERY)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = llama()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.net(**batch).loss

        def configure_optimizers(self) -> Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=LR, weight_decay=DECAY)

    class Observing(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            seen.append(Observer(pl_module, trainer.optimizers[0], lambda: decay.decay.ratios))

    with tempfile.TemporaryDirectory() as folder:
        fit = pl.Trainer(
            accelerator="cpu", max_steps=STEPS, callbacks=[decay, Observing()], logger=False, default_root_dir=folder,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        fit.fit(Module(), torch.utils.data.DataLoader(batches(), batch_size=2))  # pyright: ignore
    return seen[0].found


def fsdp(_: Path) -> Observed:
    """A plain loop over a model in shards."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    model: Any = llama()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY)
    seen: list[Observer] = []
    decay = observing(seen)(model, optimizer)
    for step, batch in enumerate(batches(2 * STEPS)[dist.get_rank() :: 2]):
        model(**{name: row[None] for name, row in batch.items()}).loss.backward()
        decay.step(step)
        optimizer.step()
        optimizer.zero_grad()
    dist.destroy_process_group()
    return seen[0].found


NEEDS = {"trainer": "transformers", "trl": "trl", "lightning": "lightning", "fsdp": "transformers"}


def main() -> None:
    """Run the loop that is named, in the checkout that is given."""
    name, checkout = sys.argv[1:3]
    package = NEEDS.get(name)
    if package is None and not checkout:
        print(msgspec.json.encode("not run: no checkout").decode())
        return
    if package is not None and importlib.util.find_spec(package) is None:
        print(msgspec.json.encode(f"not run: no {package}").decode())
        return
    torch.manual_seed(0)
    loops = {"nanogpt": nanogpt, "nanochat": nanochat, "trainer": trainer, "trl": trl}
    found = (loops | {"lightning": lightning, "fsdp": fsdp})[name](Path(checkout).resolve())
    ratios = min(found.ratios), max(found.ratios)
    told = {"steps": found.steps, "ratios": ratios, "pairs": len(found.pairs), "largest": found.largest()}
    print("\n" + msgspec.json.encode(told).decode())


if __name__ == "__main__":
    main()
