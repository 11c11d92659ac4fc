"""Momentum and Scion on one small LLaMA: whether the effective lr transfers, and momentum in place of lr decay.

Two claims of *Correction of Decoupled Weight Decay* (arXiv 2512.08217). The best lr of each momentum, from a grid: by
equation 3 the best lr sqrt((2 - alpha)/alpha) should be the same for all. And ScionC with a cosine of the lr beside the
momentum that should do the same, and beside momentum that goes away in a straight line, with its decay corrected for
that and not.

    python benchmarks/momentum.py          # all runs, a quarter of an hour on one core; goes on with what --out has
    python benchmarks/momentum.py --docs   # puts the figures of that file into docs/methods.md, and draws momentum.svg
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from methods import ROOT, Text, held_out_loss, llama, read_text, rms
from methods_setting import BATCH, SEEDS, SETTING, STEPS, WARMUP
from momentum_tables import figure, update_docs
from pages import add_options
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from specdiag.decay import schedules
from specdiag.decay.schedules import Schedule
from specdiag.live.parameter_kinds import trained_parameters
from specdiag.optim import GroupSchedule, optimizers
from specdiag.system.distributions import version

OUT = ROOT / "benchmarks" / "results" / "momentum.json"
DOCS, FIGURE = ROOT / "docs" / "methods.md", ROOT / "docs" / "figures" / "momentum.svg"

ALPHAS = (0.5, 0.2, 0.1, 0.05)
LRS = tuple(2.0**k for k in range(-14, -7))
TRANSFER_SEEDS = (0, 1)
LONG, LONG_WARMUP, EVERY = 300, 30, 15
LR, LAST, ALPHA, TARGET = 2**-11, 1e-3, 0.1, 0.36
"""Settings of the second part; LAST is the share of the lr at its end. The target norm is small: a step at the peak
removes 1.6 %, so balance is reached."""
RUNS = ("cosine lr", "momentum in its place", "linear momentum, corrected", "linear momentum, not corrected")

Results = dict[str, Any]
SETTING_HERE: Results = {
    **{key: SETTING[key] for key in ("model", "batch")},
    "transfer": {"alphas": list(ALPHAS), "lrs": list(LRS), "seeds": list(TRANSFER_SEEDS), "steps": STEPS},
    "schedules": {
        "runs": list(RUNS), "seeds": list(SEEDS), "steps": LONG, "warmup": LONG_WARMUP, "every": EVERY, "lr": LR,
        "alpha": ALPHA, "target_norm": TARGET,
    },
}  # fmt: skip


def main() -> None:
    """Measure and write; or put the figures into the documentation."""
    options = _options()
    if options.docs:
        if not options.check:
            figure(json.loads(options.out.read_text()), FIGURE)
        sys.exit(update_docs(options.docs_file, options.out, options.check))
    torch.set_num_threads(1)
    measure(options.out)


def measure(out: Path) -> Results:
    """Every run that `out` does not have yet; it is written after each."""
    held: Results = json.loads(out.read_text()) if out.exists() else {}
    if held.get("setting") != SETTING_HERE:
        held = {"setting": SETTING_HERE, "runs": {}}
    text = read_text()
    held["versions"] = {name: version(name) for name in ("specdiag", "torch", "transformers")}
    jobs: dict[str, Callable[[], Results]] = {
        f"transfer/{alpha:g}/{lr:g}/{seed}": lambda alpha=alpha, lr=lr, seed=seed: transfer(text, alpha, lr, seed)
        for alpha in ALPHAS
        for lr in LRS
        for seed in TRANSFER_SEEDS
    }
    jobs |= {
        f"schedules/{name}/{seed}": lambda name=name, seed=seed: scheduled(text, name, seed)
        for name in RUNS
        for seed in SEEDS
    }
    for key, job in jobs.items():
        if key not in held["runs"]:
            start = time.perf_counter()
            held["runs"][key] = job()
            held["date"] = datetime.now(UTC).isoformat(timespec="seconds")
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(held, indent=1) + "\n")
            seconds = time.perf_counter() - start
            print(f"{key}: loss {held['runs'][key]['loss']:.3f}, {seconds:.1f} s", file=sys.stderr, flush=True)
    return held


def transfer(text: Text, alpha: float, lr: float, seed: int) -> Results:
    """One run of the grid: constrained Scion, cosine of the lr."""
    torch.manual_seed(seed)
    model = llama()
    (optimizer,) = optimizers("scion", model, lr=lr, momentum=1 - alpha)
    shape = schedules.cosine(1.0, STEPS, WARMUP)
    _train(text, model, optimizer, seed, STEPS, [LambdaLR(optimizer, lambda done: shape(done + 1))])
    return {"loss": held_out_loss(model, text.held_out)}


def scheduled(text: Text, name: str, seed: int) -> Results:
    """One run of the second part: held-out loss, norms, lr and alpha of the hidden matrices at every `EVERY` steps."""
    torch.manual_seed(seed)
    model = llama()
    (optimizer,) = optimizers("scionc", model, lr=LR, momentum=1 - ALPHA, target_norm=TARGET)
    lr, alpha = _schedules(name)
    if name == RUNS[3]:
        for group in optimizer.param_groups:
            if group["target_norm"] is not None:  # the same decay at the start, and it stays
                stride = LR * group["radius"]
                group["weight_decay"] = stride**2 * schedules.inflation(ALPHA) / (2 * TARGET) / LR
                group["target_norm"] = None
    steppers = [
        LambdaLR(optimizer, lambda done: lr(done + 1)),
        GroupSchedule(optimizer, "momentum", lambda step: 1 - alpha(step + 1)),
    ]
    hidden = [each.parameter for each in trained_parameters(model) if each.kind == "hidden"]
    course: dict[str, Results] = {}

    def note(step: int) -> None:
        if step % EVERY == 0:
            loss = held_out_loss(model, text.held_out)
            course[str(step)] = {"loss": loss, "rms": rms(hidden), "lr": LR * lr(step), "alpha": alpha(step)}

    note(0)
    _train(text, model, optimizer, seed, LONG, steppers, note)
    return {"loss": course[str(LONG)]["loss"], "course": course}


def _schedules(name: str) -> tuple[Schedule, Schedule]:
    """The factor on the lr, and alpha."""
    if name == RUNS[0]:
        return schedules.cosine(1.0, LONG, LONG_WARMUP, LAST), schedules.constant(ALPHA)
    warm = schedules.constant(1.0, LONG_WARMUP)
    if name == RUNS[1]:
        share = schedules.cosine(1.0, LONG - LONG_WARMUP, final=LAST)

        def replaced(step: int) -> tuple[float, float]:
            return schedules.gradient_weight_for(share(max(0, step - LONG_WARMUP)), ALPHA)

        return lambda step: warm(step) * replaced(step)[1], lambda step: replaced(step)[0]
    return warm, lambda step: ALPHA + (1 - ALPHA) * min(step / LONG, 1.0)


def _train(
    text: Text,
    model: torch.nn.Module,
    optimizer: Optimizer,
    seed: int,
    steps: int,
    steppers: Sequence[LambdaLR | GroupSchedule],
    note: Callable[[int], None] = lambda step: None,
) -> None:
    order = torch.Generator().manual_seed(seed)
    for step in range(1, steps + 1):
        batch = text.train[torch.randint(len(text.train), (BATCH,), generator=order)]
        model.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        for each in steppers:
            each.step()
        note(step)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Momentum, the effective lr and the decay of Scion on a small LLaMA.")
    parser.add_argument("--out", type=Path, default=OUT, help="where the JSON goes, and what is gone on with")
    add_options(parser, DOCS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
