"""How early alerts see a run go wrong, and how often they cry wolf: faults injected into tiny-llama-bytes.

    python benchmarks/instability.py --seeds 1     # four runs, about a minute of one core; a line for each

A run of 120 steps on the modules of Python's standard library is left alone, or spoilt before step 60: the learning
rate times 30 from there on, the MLP of a layer set to zero, or one batch of random bytes. It is logged every 10 steps.
A run has failed where its loss, a mean over 3 steps, is .5 nats above that of the run that was left alone. Lead is the
number of steps from the first alert of a kind to there; alerts before step 60, and all of the run that was left alone,
are false.
"""

from __future__ import annotations

import argparse
import sysconfig
from collections import Counter
from pathlib import Path

import torch
from torch import nn

from specdiag.optim.norms.norm_watch import NormWatch
from specdiag.train.models.building import new_config, new_model
from specdiag.train.recipe import load_recipe
from specdiag.trajectories.alerts import Alert
from specdiag.trajectories.loss_alerts import LossWatch

STEPS, FAULT, EVERY, BATCH, TIME, RATE = 120, 60, 10, 8, 64, 3e-3
WORSE = 0.5
FAULTS = ("none", "lr x 30", "dead layer", "bad batch")


def library() -> torch.Tensor:
    """First bytes of the standard library's modules."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    data = b"".join(path.read_bytes() for path in files)[: 1 << 21]
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).long()


def run(fault: str, seed: int, data: torch.Tensor) -> tuple[list[float], list[Alert]]:
    """Train with a fault; return the loss of each step and the alerts."""
    recipe = load_recipe("tiny-llama-bytes")
    model = new_model(new_config({**recipe.model, "vocab_size": 256}), "causal-lm", seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1)
    draws = torch.Generator().manual_seed(seed)
    watch, losses = NormWatch(model, optimizer, every=EVERY), LossWatch()
    values: list[float] = []
    found: list[Alert] = []
    for step in range(STEPS):
        if step == FAULT and fault == "dead layer":
            kill(model)
        starts = torch.randint(len(data) - TIME, (BATCH,), generator=draws)
        batch = torch.stack([data[start : start + TIME] for start in starts])
        if step == FAULT and fault == "bad batch":
            batch = torch.randint(256, batch.shape, generator=draws)
        rate = RATE * min(1.0, (step + 1) / 20)
        for group in optimizer.param_groups:
            group["lr"] = rate * (30 if fault == "lr x 30" and step >= FAULT else 1)
        watch.step(step)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        values.append(float(loss.detach()))
        spike = losses.observe(step, values[-1])
        found += [*(watch.alerts if step % EVERY == 0 else ()), *([] if spike is None else [spike])]
    watch.detach()
    return values, found


def kill(model: nn.Module) -> None:
    """Set the MLP of layer 2 to zero, so that it has no output and no gradient."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".layers.2.mlp." in name:
                parameter.zero_()


def failed(losses: list[float], healthy: list[float]) -> int | None:
    """Return the step at which a run has failed; None if it has not."""
    rises = [a - b for a, b in zip(losses, healthy, strict=True)]
    return next((step for step in range(FAULT, STEPS - 2) if sum(rises[step : step + 3]) > 3 * WORSE), None)


def describe(fault: str, seed: int, losses: list[float], found: list[Alert], healthy: list[float]) -> str:
    """Write what the alerts of a run saw."""
    end = failed(losses, healthy)
    first: dict[str, int] = {}
    for alert in found:
        if alert.step >= FAULT and fault != "none":
            first.setdefault(alert.kind, alert.step)
    seen = ", ".join(
        f"{kind} at {step}" + ("" if end is None else f" (lead {end - step})") for kind, step in first.items()
    )
    false = Counter(alert.kind for alert in found if alert.step < FAULT or fault == "none")
    wolf = ", ".join(f"{n} {kind}" for kind, n in false.items()) or "none"
    return f"| {fault} | {seed} | {'never' if end is None else end} | {seen or 'none'} | {wolf} |"


def main() -> None:
    """Run all faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    torch.set_num_threads(1)
    data = library()
    print("| fault | seed | failed at step | alerts after the fault | false alarms |\n|---|---|---|---|---|")
    for seed in range(parser.parse_args().seeds):
        healthy: list[float] = []
        for fault in FAULTS:
            losses, found = run(fault, seed, data)
            healthy = healthy or losses
            print(describe(fault, seed, losses, found, healthy), flush=True)


if __name__ == "__main__":
    main()
