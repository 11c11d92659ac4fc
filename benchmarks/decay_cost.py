"""Cost of AlphaDecay in a training run, and the gain of measuring more often: a small LLaMA on the CPU.

Two equal trainings take blocks of steps in turn, one of them with AlphaDecay: its cost is the time of its block over
that of the block before, median of rounds. Training has one thread, so that `background` has the other processors.
Intervals of 1 and of 10 steps are measured; a longer one costs a pass over all matrices, measured as the mode does it
there (`sweep` at one step, the others one matrix a step), divided by the interval. Losses are of whole runs. NormWatch
is measured in the same way, at every step, and divided by its default interval.

    python benchmarks/decay_cost.py               # 45 minutes; goes on with what --out has; --parts cost, loss, norms
    python benchmarks/decay_cost.py --docs        # puts the figures of that file into docs/optim.md
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import torch
from decay_cost_tables import INTERVALS, update_docs
from measure import Others
from methods import BLOCK, Text, held_out_loss, read_text
from pages import add_options
from report import machine, versions
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from specdiag.decay.schedules import cosine
from specdiag.optim import AlphaDecay, NormWatch
from specdiag.optim.rules.measurement_schedule import Mode

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "decay_cost.json"
DOCS = ROOT / "docs" / "optim.md"
SETTING = {
    "width": 256,
    "inner": 688,
    "layers": 4,
    "batch": [16, BLOCK],
    "steps": 250,
    "warmup": 30,
    "lr": 2e-3,
    "weight_decay": 1.0,
    "seeds": [0, 1],
}
_PACKAGES = ("specdiag", "torch", "numpy", "scipy", "transformers")
Results = dict[str, Any]


def main() -> None:
    """Measure and write; or put the figures into the documentation."""
    options = _options()
    if options.docs:
        sys.exit(update_docs(options.docs_file, options.out, check=options.check))
    torch.set_num_threads(1)
    results = _resumed(options.out)
    text = read_text()
    results["text"] = {"sha256": text.sha256, "trained_on": text.train.numel(), "held_out": text.held_out.numel()}
    for part in options.parts.split(","):
        if part == "cost":
            costs(text, results, options)
        elif part == "loss":
            losses(text, results, options)
        elif part == "norms":
            norms(text, results, options)
        else:
            raise SystemExit(f"unknown part '{part}': cost, loss or norms")


class Training:
    """A model and what trains it; batches depend on the seed and the number of the step alone."""

    def __init__(self, text: Text, seed: int, **alphadecay: Any) -> None:
        torch.manual_seed(seed)
        self.model = llama()
        self.decay: AlphaDecay | None = None
        self.watch: NormWatch | None = None
        self._text, self._order = text.train, torch.Generator().manual_seed(seed)
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=SETTING["lr"], betas=(0.9, 0.95), weight_decay=SETTING["weight_decay"]
        )
        shape = cosine(1.0, SETTING["steps"], SETTING["warmup"])
        self._scheduler = LambdaLR(self._optimizer, lambda done: shape(done + 1))
        if alphadecay:
            self.decay = AlphaDecay(self.model, self._optimizer, measure_first=True, **alphadecay)

    def watched(self, out: str) -> Training:
        """The same with a NormWatch that logs every step."""
        self.watch = NormWatch(self.model, self._optimizer, every=1, out=out)
        return self

    def run(self, steps: int) -> float:
        """Take steps; the seconds that they took."""
        started = time.perf_counter()
        for _ in range(steps):
            batch = self._text[torch.randint(len(self._text), (SETTING["batch"][0],), generator=self._order)]
            self.model.zero_grad()
            self.model(input_ids=batch, labels=batch).loss.backward()
            if self.decay is not None:
                self.decay.step()
            if self.watch is not None:
                self.watch.step()
            self._optimizer.step()
            self._scheduler.step()
        return time.perf_counter() - started


def llama() -> nn.Module:
    """The model, its weights drawn from torch's generator."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256, hidden_size=SETTING["width"], intermediate_size=SETTING["inner"],
            num_hidden_layers=SETTING["layers"], num_attention_heads=4, max_position_embeddings=BLOCK,
        )
    )  # fmt: skip


def costs(text: Text, results: Results, options: argparse.Namespace) -> None:
    """Every mode at every interval that is measured."""
    held = results.setdefault("cost", {"matrices": 7 * SETTING["layers"], "measured": {}})
    for mode in get_args(Mode):
        # A long interval: all matrices at one step, or one at each.
        spaced = 10 if mode == "sweep" else held["matrices"]
        for name, every in (("1", 1), ("10", 10), ("pass", spaced)):
            key = f"{mode} {name}"
            if len(held["measured"].get(key, {}).get("shares", ())) >= options.rounds:
                continue
            others = Others()
            held["measured"][key] = {"every": every} | cost(text, mode, every, options.rounds)
            held["measured"][key]["cores_used_by_others"] = others.cores()
            print(key, [f"{share:.3f}" for share in held["measured"][key]["shares"]], file=sys.stderr, flush=True)
            _write(options.out, results)


def cost(text: Text, mode: Mode, every: int, rounds: int) -> Results:
    """Blocks with and without in turn: what is more of a step's time, and seconds a step stood still, by round."""
    block = max(10, every)
    plain, ours = Training(text, 0), Training(text, 0, mode=mode, every=every)
    assert ours.decay is not None
    found: Results = {"step_seconds": [], "shares": [], "waited_seconds": []}
    for repeat in range(rounds + 1):
        plain.run(1)
        without = plain.run(block)
        # The first step of a block has nothing begun for it, and what the last one began is ended before the other's.
        ours.run(1)
        before = ours.decay.waited
        within = ours.run(block)
        waited = ours.decay.waited - before
        ours.decay.step()
        if repeat:
            found["step_seconds"].append(without / block)
            found["shares"].append(within / without - 1)
            found["waited_seconds"].append(waited / block)
    ours.decay.detach()
    return found


def norms(text: Text, results: Results, options: argparse.Namespace) -> None:
    """Time that a NormWatch adds by logging every step."""
    others, block = Others(), 10
    shares: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        plain, ours = Training(text, 0), Training(text, 0).watched(folder)
        for repeat in range(options.rounds + 1):
            without, within = plain.run(block), ours.run(block)
            if repeat:
                shares.append(within / without - 1)
    weights = sum(p.numel() for p in plain.model.parameters())
    results["norms"] = {"shares": shares, "weights": weights, "cores_used_by_others": others.cores()}
    _write(options.out, results)


def losses(text: Text, results: Results, options: argparse.Namespace) -> None:
    """Held-out loss of whole runs, uniform decay and every interval."""
    held = results.setdefault("loss", {"runs": {}})
    for seed in SETTING["seeds"]:
        for every in (None, *INTERVALS):
            key = f"{every or 'uniform'}/{seed}"
            if key in held["runs"]:
                continue
            training = Training(text, seed, **({} if every is None else {"every": every, "mode": "background"}))
            training.run(SETTING["steps"])
            held["runs"][key] = held_out_loss(training.model, text.held_out)
            print(f"{key}: loss {held['runs'][key]:.4f}", file=sys.stderr, flush=True)
            _write(options.out, results)
            if training.decay is not None:
                training.decay.detach()


def _resumed(out: Path) -> Results:
    """Results in `out`, if they have the same settings."""
    if out.exists():
        held = json.loads(out.read_text())
        if held["setting"] == SETTING:
            return held
        print(f"{out} is of another setting: all anew", file=sys.stderr)
    return {"setting": SETTING}


def _write(out: Path, results: Results) -> None:
    results |= {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/decay_cost.py", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(_PACKAGES),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what AlphaDecay costs.")
    parser.add_argument("--parts", default="cost,loss,norms", help="of cost, loss, norms")
    parser.add_argument("--rounds", type=int, default=7, help="of blocks; default 7")
    parser.add_argument("--out", type=Path, default=OUT, help="where the JSON goes, and what is gone on with")
    add_options(parser, DOCS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
