"""Every optimizer of the registry trains one small LLaMA on the text of Python's standard library, on the CPU.

First all of them: the lr of each is the best of a small grid on a seed of its own, and other seeds are reported. Then
decay so strong that norms reach their balance within the run, and a usual one: AdamW, AdamC and what else differs from
AdamW in decay alone, the norms beside what specdiag.simulate predicts, and AdamC with other betas.

    python benchmarks/methods.py          # all runs, a quarter of an hour on one core; goes on with what --out has
    python benchmarks/methods.py --docs   # puts the figures of that file into docs/methods.md
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from platform import python_version
from statistics import fmean
from typing import Any

import pages
import torch
from methods_setting import (
    ALPHA_EVERY,
    BASE,
    BATCH,
    BETAS,
    BLOCK,
    CONTENDERS,
    COST_ROUNDS,
    DECAY_LR,
    DECAY_STEPS,
    DECAY_WARMUP,
    EVERY,
    GRID_SEED,
    HELD_OUT,
    LAYERS,
    SEEDS,
    SETTING,
    SETTLED,
    STEPS,
    STRONG,
    STRONG_ROWS,
    USUAL,
    WARMUP,
    WIDTH,
    Contender,
    Results,
)
from methods_tables import SECTIONS, chosen_lr, told_loss, update_docs
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from specdiag.decay.schedules import Schedule, cosine
from specdiag.live.parameter_kinds import trained_parameters
from specdiag.optim import AlphaDecay, optimizers
from specdiag.system.distributions import version

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "methods.json"
DOCS = ROOT / "docs" / "methods.md"


def main() -> None:
    """Measure, print, write; or put the figures into the documentation."""
    options = _options()
    if options.docs:
        sys.exit(update_docs(options.docs_file, options.out, options.check))
    torch.set_num_threads(1)
    results = measure(options.out)
    print("\n\n".join(make(results) for make in SECTIONS.values()))


# The runs


@dataclass(frozen=True, slots=True)
class Text:
    """Blocks of bytes to train on, others to measure on, and a hash of both."""

    train: torch.Tensor
    held_out: torch.Tensor
    sha256: str


def read_text() -> Text:
    """Files at the top of Python's standard library: every tenth is held out."""
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    unseen = sources[9::10]
    train, held_out = (_blocks(files) for files in ([p for p in sources if p not in unseen], unseen))
    held_out = held_out[:: len(held_out) // HELD_OUT][:HELD_OUT]
    digest = hashlib.sha256(train.numpy().tobytes() + held_out.numpy().tobytes()).hexdigest()
    return Text(train, held_out, digest)


def _blocks(files: Sequence[Path]) -> torch.Tensor:
    data = torch.frombuffer(bytearray(b"".join(p.read_bytes() for p in files)), dtype=torch.uint8).long()
    return data[: len(data) // BLOCK * BLOCK].view(-1, BLOCK)


def measure(out: Path) -> Results:
    """Every run that `out` does not have yet; it is written after each."""
    results = _resumed(out)
    text = read_text()
    results |= {
        "versions": {p: version(p) for p in ("specdiag", "torch", "transformers")} | {"python": python_version()},
        "text": {"sha256": text.sha256, "trained_on": text.train.numel(), "held_out": text.held_out.numel()},
        "bytes_alone": _counted(text),
    }
    runs = results["runs"]

    def run(key: str, name: str, seed: int, **options: Any) -> None:
        if key in runs:
            return
        start = time.perf_counter()
        runs[key] = train(text, CONTENDERS[name], seed, **options)
        _write(out, results)
        print(f"{key}: loss {told_loss(runs[key])}, {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)

    for name, each in CONTENDERS.items():
        for lr in each.lrs:
            run(f"grid/{name}/{lr:g}", name, GRID_SEED, lr=lr)
    for seed in SEEDS:
        for name in CONTENDERS:
            run(f"seeds/{name}/{seed}", name, seed, lr=chosen_lr(results, name))
    if results.get("step_costs", {}).keys() != CONTENDERS.keys():
        results["step_costs"] = step_costs(text, results)
        _write(out, results)
    long = {"lr": DECAY_LR, "steps": DECAY_STEPS, "warmup": DECAY_WARMUP, "every": EVERY}
    usual_betas = _betas(BETAS[0])
    for seed in SEEDS:
        for name in STRONG_ROWS:
            factor = CONTENDERS[name].options["weight_decay"] / USUAL
            run(f"strong/{name}/{seed}", name, seed, weight_decay=factor * STRONG, **usual_betas, **long)
    for name in ("adamw", "adamc"):
        run(f"usual/{name}/{SEEDS[0]}", name, SEEDS[0], weight_decay=USUAL, **usual_betas, **long)
    for pair in BETAS[1:]:
        key = f"betas/{pair[0]:g},{pair[1]:g}/{SEEDS[0]}"
        run(key, "adamc", SEEDS[0], weight_decay=STRONG, **_betas(pair), **long)
    return results


def _write(out: Path, results: Results) -> None:
    results["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")


def _betas(pair: tuple[float, float]) -> dict[str, float]:
    return {"beta1": pair[0], "beta2": pair[1]}


def train(
    text: Text,
    contender: Contender,
    seed: int,
    *,
    steps: int = STEPS,
    warmup: int = WARMUP,
    every: int = 0,
    **given: Any,
) -> Results:
    """One run; update t has the lr of step t of a cosine to 0.

    Returns:
        `loss` held out, in nats a byte, None if it is not finite; `ratio`, AlphaDecay's mean one; `rms` of the hidden
        matrices together at every `every` steps, `change` of each from step SETTLED to the end.
    """
    training = Training(contender, seed, cosine(1.0, steps, warmup), given)
    order, hidden = torch.Generator().manual_seed(seed), training.hidden
    norms = {0: rms(hidden)} if every else {}
    settled: list[float] = []
    for step in range(1, steps + 1):
        training.step(text.train[torch.randint(len(text.train), (BATCH,), generator=order)])
        if every and step % every == 0:
            norms[step] = rms(hidden)
        if step == SETTLED:
            settled = [rms([p]) for p in hidden]
    loss = held_out_loss(training.model, text.held_out)
    found: Results = {"loss": loss if math.isfinite(loss) else None}
    if training.ratios:
        found["ratio"] = fmean(training.ratios)
    if every:
        found["rms"] = {str(step): value for step, value in norms.items()}
        found["change"] = [rms([p]) / old for p, old in zip(hidden, settled, strict=True)]
    return found


class Training:
    """A model and all that trains it.

    Attributes:
        hidden: its hidden matrices.
        ratios: AlphaDecay's, mean over modules, at each step.
    """

    def __init__(self, contender: Contender, seed: int, shape: Schedule, given: Mapping[str, Any]) -> None:
        torch.manual_seed(seed)
        self.model = llama()
        self.hidden = [each.parameter for each in trained_parameters(self.model) if each.kind == "hidden"]
        self.ratios: list[float] = []
        self._optimizers = optimizers(contender.method, self.model, **{**contender.options, **given})
        if contender.outside != 1:
            self._optimizers = [_faster_outside(self._optimizers[0], self.hidden, contender.outside)]
        self._alpha = AlphaDecay(self.model, self._optimizers, every=ALPHA_EVERY) if contender.alpha else None
        self._schedulers = [LambdaLR(each, lambda done: shape(done + 1)) for each in self._optimizers]

    def step(self, batch: torch.Tensor) -> None:
        """The next one."""
        self.model.zero_grad()
        self.model(input_ids=batch, labels=batch).loss.backward()
        if self._alpha is not None:
            self._alpha.step()
            self.ratios.append(fmean(self._alpha.ratios.values()))
        for each in (*self._optimizers, *self._schedulers):
            each.step()


def step_costs(text: Text, results: Results) -> dict[str, list[float]]:
    """CPU time of steps over the base's, once for each COST_ROUNDS rounds in which all take a step in turn."""
    given = {name: {"lr": chosen_lr(results, name)} for name in CONTENDERS}
    trainings = {n: Training(each, GRID_SEED, cosine(1.0, STEPS, WARMUP), given[n]) for n, each in CONTENDERS.items()}
    order, costs = torch.Generator().manual_seed(GRID_SEED), {name: list[float]() for name in CONTENDERS}
    for repeat in range(4):
        seconds = dict.fromkeys(CONTENDERS, 0.0)
        for _ in range(COST_ROUNDS):
            batch = text.train[torch.randint(len(text.train), (BATCH,), generator=order)]
            for name, training in trainings.items():
                start = time.process_time()
                training.step(batch)
                seconds[name] += time.process_time() - start
        for name, spent in seconds.items() if repeat else ():
            costs[name].append(spent / seconds[BASE])
    return costs


def _faster_outside(optimizer: Optimizer, hidden: Sequence[nn.Parameter], factor: float) -> Optimizer:
    """The same with another lr for what is not hidden."""
    inside, groups = set(hidden), list[dict[str, Any]]()
    for group in optimizer.param_groups:
        for scale, wanted in ((1.0, True), (factor, False)):
            held = [p for p in group["params"] if (p in inside) == wanted]
            if held:
                groups.append({**group, "params": held, "lr": group["lr"] * scale})
    return type(optimizer)(groups)


def llama() -> nn.Module:
    """The model, its weights drawn from torch's generator."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256, hidden_size=WIDTH, intermediate_size=352, num_hidden_layers=LAYERS, num_attention_heads=4,
            max_position_embeddings=BLOCK,
        )
    )  # fmt: skip


@torch.no_grad()
def held_out_loss(model: nn.Module, blocks: torch.Tensor) -> float:
    """Mean over predicted bytes, all but the first of a block, in nats."""
    return float(model(input_ids=blocks, labels=blocks).loss)


def rms(parameters: Sequence[torch.Tensor]) -> float:
    """Root mean square of all entries together."""
    square = sum(float(p.detach().double().square().sum()) for p in parameters)
    return math.sqrt(square / sum(p.numel() for p in parameters))


def _counted(text: Text) -> dict[str, float]:
    """The loss of byte frequencies, and of frequencies after the byte before, one added to every count."""
    train, held_out = text.train.flatten().tolist(), text.held_out.tolist()
    single, pairs = Counter(train), Counter(pairwise(train))
    predicted = [pair for block in held_out for pair in pairwise(block)]
    return {
        "one": -fmean(math.log((single[b] + 1) / (len(train) + 256)) for _, b in predicted),
        "two": -fmean(math.log((pairs[a, b] + 1) / (single[a] + 256)) for a, b in predicted),
    }


def _resumed(out: Path) -> Results:
    """Results in `out`, if they have the same settings apart from further contenders."""
    if out.exists():
        held = json.loads(out.read_text())
        if held["setting"] | {"contenders": SETTING["contenders"] | held["setting"]["contenders"]} == SETTING:
            return held | {"setting": SETTING}
        print(f"{out} is of another setting: all runs anew", file=sys.stderr)
    return {"setting": SETTING, "runs": {}}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a small LLaMA with every optimizer of the registry.")
    parser.add_argument("--out", type=Path, default=OUT, help="where the JSON goes, and what is gone on with")
    pages.add_options(parser, DOCS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
