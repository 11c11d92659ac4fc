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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from platform import python_version
from statistics import fmean, median, stdev
from typing import Any

import torch
from scipy.stats import t as student
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

import specdiag
from specdiag.decay.schedules import Schedule, cosine
from specdiag.dynamics.records import Simulation
from specdiag.optim import METHODS, AlphaDecay, optimizers
from specdiag.optim.places import placed

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "methods.json"
DOCS = ROOT / "docs" / "methods.md"

WIDTH, LAYERS, BLOCK, BATCH = 128, 2, 64, 8
HELD_OUT = 256
"""Blocks, evenly spaced over every tenth file, that no run trains on."""
SEEDS, GRID_SEED = (0, 1, 2), 77
STEPS, WARMUP = 140, 14
DECAY_STEPS, DECAY_WARMUP, DECAY_LR, EVERY = 300, 30, 4e-3, 20
STRONG, USUAL = 8.0, 0.1
ALPHA_EVERY = COST_ROUNDS = 25
"""Steps between AlphaDecay's measurements of a module; over so many its cost is the mean one."""
BETAS = ((0.9, 0.95), (0.5, 0.95), (0.95, 0.95), (0.9, 0.99), (0.9, 0.999))
"""Of the second part; the first is for all methods."""
SETTLED = 100
"""Step of the second part from which changes of norms are told: well past the warm-up, 3/(lr x decay) in all."""

Results = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Contender:
    """A row of the table.

    Attributes:
        method: its name in the registry.
        lrs: grid of peak lrs.
        options: what differs from the registry's defaults.
        alpha: AlphaDecay on top.
        outside: times the lr for embedding, head and norms, of a method that is one optimizer.
    """

    method: str
    lrs: tuple[float, ...]
    options: Mapping[str, float] = field(default_factory=dict)
    alpha: bool = False
    outside: float = 1.0


_ADAM, _SGD = (1e-3, 2e-3, 4e-3, 8e-3), (0.1, 0.2, 0.4, 0.8)
_SCION, _MUON = (2**-12, 2**-11, 2**-10, 2**-9), (4e-3, 8e-3, 1.6e-2, 3.2e-2)
_DECAY = {"weight_decay": USUAL}
_MIDDLE = (0.67 + 3) / 2
"""Of AlphaDecay's ratios: its decay is the larger one, and a uniform one of that size stands beside it."""

CONTENDERS: dict[str, Contender] = {
    "adamw": Contender("adamw", _ADAM, _DECAY),
    f"adamw, decay x {_MIDDLE:g}": Contender("adamw", _ADAM, {"weight_decay": _MIDDLE * USUAL}),
    "adamw + AlphaDecay": Contender("adamw", _ADAM, _DECAY, alpha=True),
    "adamc": Contender("adamc", _ADAM, _DECAY),
    "renormalized-adamw": Contender("renormalized-adamw", _ADAM, _DECAY),
    "cautious-adamw": Contender("cautious-adamw", _ADAM, _DECAY),
    "adamw, lr x 8 outside hidden": Contender("adamw", _ADAM, _DECAY, outside=8.0),
    "muon": Contender("muon", _MUON),
    "scion": Contender("scion", _SCION),
    "scionc": Contender("scionc", _SCION),
    "sgd": Contender("sgd", _SGD),
    "sgdc": Contender("sgdc", _SGD),
    "awd": Contender("awd", _SGD),
    "adadecay": Contender("adadecay", _SGD),
}
BASE = "adamw"
STRONG_ROWS = tuple(name for name, each in CONTENDERS.items() if each.lrs is _ADAM and each.outside == 1)
SETTING = {
    "model": f"LLaMA, {LAYERS} layers of width {WIDTH}, 256 bytes",
    "batch": [BATCH, BLOCK],
    "steps": STEPS,
    "warmup": WARMUP,
    "grid_seed": GRID_SEED,
    "seeds": list(SEEDS),
    "contenders": {name: asdict(each) | {"lrs": list(each.lrs)} for name, each in CONTENDERS.items()},
    "decay": {
        "steps": DECAY_STEPS,
        "warmup": DECAY_WARMUP,
        "lr": DECAY_LR,
        "strong": STRONG,
        "usual": USUAL,
        "betas": [list(pair) for pair in BETAS],
        "settled": SETTLED,
    },
}


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
        print(f"{key}: loss {_loss(runs[key])}, {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)

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
    norms = {0: _rms(hidden)} if every else {}
    settled: list[float] = []
    for step in range(1, steps + 1):
        training.step(text.train[torch.randint(len(text.train), (BATCH,), generator=order)])
        if every and step % every == 0:
            norms[step] = _rms(hidden)
        if step == SETTLED:
            settled = [_rms([p]) for p in hidden]
    loss = held_out_loss(training.model, text.held_out)
    found: Results = {"loss": loss if math.isfinite(loss) else None}
    if training.ratios:
        found["ratio"] = fmean(training.ratios)
    if every:
        found["rms"] = {str(step): value for step, value in norms.items()}
        found["change"] = [_rms([p]) / old for p, old in zip(hidden, settled, strict=True)]
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
        self.hidden = [each.parameter for each in placed(self.model) if each.place == "hidden"]
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


def _rms(parameters: Sequence[torch.Tensor]) -> float:
    """Of all entries together."""
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
    """What `out` holds, if it is of the same setting, further contenders aside."""
    if out.exists():
        held = json.loads(out.read_text())
        if held["setting"] | {"contenders": SETTING["contenders"] | held["setting"]["contenders"]} == SETTING:
            return held | {"setting": SETTING}
        print(f"{out} is of another setting: all runs anew", file=sys.stderr)
    return {"setting": SETTING, "runs": {}}


# The tables


def chosen_lr(results: Results, name: str) -> float:
    """The lr with the lowest loss on the grid's seed."""
    grid = results["setting"]["contenders"][name]["lrs"]
    losses = {lr: results["runs"][f"grid/{name}/{lr:g}"]["loss"] for lr in grid}
    finite = {lr: loss for lr, loss in losses.items() if loss is not None}
    if not finite:
        raise SystemExit(f"{name}: no lr of {grid} gave a finite loss")
    return min(finite, key=finite.__getitem__)


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval by Student's t."""
    count = len(differences)
    return fmean(differences), float(student.ppf(0.975, count - 1)) * stdev(differences) / math.sqrt(count)


def compared(results: Results, part: str, name: str, base: str = BASE) -> tuple[float, float] | None:
    """`interval` of the losses less the base's of the same seed; None if a run has no loss."""
    losses, others = (_losses(results, part, each) for each in (name, base))
    if None in losses or None in others:
        return None
    return interval([a - b for a, b in zip(losses, others, strict=True)])


def verdicts(results: Results, part: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Which are below the base, above, or not told apart from it.

    Told apart is what differs by more than half the interval and by more than the base's own standard deviation.
    """
    own = stdev(_or_inf(_losses(results, part, BASE)))
    found: dict[str, list[str]] = {"below": [], "above": [], "same": []}
    for name in names:
        difference = compared(results, part, name)
        if name == BASE:
            continue
        if difference is None:
            found["above"].append(name)
            continue
        mean, half = difference
        found["same" if abs(mean) <= max(half, own) else "below" if mean < 0 else "above"].append(name)
    return found


def methods_table(results: Results) -> str:
    """Every contender, best first."""
    setting = results["setting"]
    names = list(setting["contenders"])
    rows = [("method", "lr of grid", "lr x decay x steps", "held-out loss", "less adamw's", "CPU a step")]
    for name in sorted(names, key=lambda name: fmean(_or_inf(_losses(results, "seeds", name)))):
        each = setting["contenders"][name]
        lr, grid = chosen_lr(results, name), each["lrs"]
        diverged = sum(results["runs"][f"grid/{name}/{other:g}"]["loss"] is None for other in grid)
        edge = " (lowest)" if lr == grid[0] else " (highest)" if lr == grid[-1] else ""
        rows.append(
            (
                name,
                f"{lr:.3g}{edge}" + (f", {diverged} diverged" if diverged else ""),
                f"{lr * _decay(each) * setting['steps']:.2g}",
                _spread(_losses(results, "seeds", name)),
                _difference(results, "seeds", name),
                f"{median(results['step_costs'][name]):.2f}",
            )
        )
    counted = results["bytes_alone"]
    caption = (
        f"{setting['model']}, {setting['steps']} steps of {setting['batch'][0]} blocks of {setting['batch'][1]} bytes, "
        f"{setting['warmup']} of warm-up, cosine to 0. Loss in nats a byte on {results['text']['held_out']:,} bytes of "
        f"files that no run saw: mean and standard deviation of {len(setting['seeds'])} seeds. Frequencies of single "
        f"bytes give {counted['one']:.2f}, of pairs {counted['two']:.2f}. The lr is the best of four, each twice the "
        f"last, on one other seed; lowest, highest: at an end of that grid. less adamw's: mean of the differences on "
        "equal seeds (equal first weights, equal batches) and half its 95 % interval. CPU a step: over AdamW's, on "
        "one thread, all in turn, median of three; the two AdamWs of equal work show how exact that is. "
        f"{results['date'][:10]}."
    )
    return f"{_table(rows)}\n\n{caption}\n\n{_told(results, 'seeds', names)}"


def strong_table(results: Results) -> str:
    """What differs from AdamW in decay alone, where decay acts."""
    decay = results["setting"]["decay"]
    change = f"its change from step {decay['settled']}"
    rows = [("method", "held-out loss", "less adamw's", "RMS at the end", change)]
    for name in STRONG_ROWS:
        runs = [results["runs"][f"strong/{name}/{seed}"] for seed in results["setting"]["seeds"]]
        rms = [run["rms"][str(decay["steps"])] for run in runs]
        changes = [run["rms"][str(decay["steps"])] / run["rms"][str(decay["settled"])] for run in runs]
        rows.append(
            (
                name,
                _spread([run["loss"] for run in runs]),
                _difference(results, "strong", name),
                _spread(rms, 4),
                f"x {_spread(changes)}",
            )
        )
    ratios = [results["runs"][f"strong/adamw + AlphaDecay/{seed}"]["ratio"] for seed in results["setting"]["seeds"]]
    caption = (
        f"lr {decay['lr']:g} for all, not tuned; decay {decay['strong']:g}, lr x decay x steps = "
        f"{decay['lr'] * decay['strong'] * decay['steps']:.1f}. Mean and standard deviation of the same seeds. RMS of "
        f"the hidden matrices together. AlphaDecay's ratios were {fmean(ratios):.2f} in the mean."
    )
    return f"{_table(rows)}\n\n{caption}\n\n{_told(results, 'strong', STRONG_ROWS)}"


def norms_table(results: Results) -> str:
    """RMS over the steps: run, prediction."""
    decay, runs, seed = results["setting"]["decay"], results["runs"], results["setting"]["seeds"][0]
    columns = [(part, name) for part in ("strong", "usual") for name in ("adamw", "adamc")]
    measured = [runs[f"{part}/{name}/{seed}"] for part, name in columns]
    predicted = [
        predict(results, name, decay[part], run["rms"]["0"])
        for (part, name), run in zip(columns, measured, strict=True)
    ]
    rows = [("step", "lr", *(f"{name}, {decay[part]:g}" for part, name in columns))]
    lr = cosine(decay["lr"], decay["steps"], decay["warmup"])
    for step in (each for each in measured[0]["rms"] if int(each) % 60 == 0 or int(each) == decay["settled"]):
        cells = (
            f"{run['rms'][step]:.4f} ({found.at(int(step)).rms:.4f}, {found.at(int(step)).simulated_rms:.4f})"
            for run, found in zip(measured, predicted, strict=True)
        )
        rows.append((step, f"{lr(int(step)):.2g}", *cells))
    ranges = (f"x {min(run['change']):.2f} to {max(run['change']):.2f}" for run in measured)
    rows.append(("change of each matrix", "", *ranges))
    caption = (
        f"Seed {seed}; in the columns' heads the decay. In parentheses what `specdiag.simulate` predicts for the same "
        "start and schedule, and what it gets by running the optimizer on noise. The last row: from step "
        f"{decay['settled']} to the end, smallest and largest of the {len(measured[0]['change'])} matrices. lr x decay "
        f"x steps: {decay['lr'] * decay['strong'] * decay['steps']:.1f} and "
        f"{decay['lr'] * decay['usual'] * decay['steps']:.2g}."
    )
    return f"{_table(rows)}\n\n{caption}"


def betas_table(results: Results) -> str:
    """AdamC's norms for several betas."""
    decay, runs, seeds = results["setting"]["decay"], results["runs"], results["setting"]["seeds"]
    rows = [("betas", f"RMS, mean from step {decay['settled']}", "predicted", "on noise", "RMS at the end", "loss")]
    first = runs[f"strong/adamc/{seeds[0]}"]
    for betas in decay["betas"]:
        run = runs.get(f"betas/{betas[0]:g},{betas[1]:g}/{seeds[0]}", first)
        found = predict(results, "adamc", decay["strong"], run["rms"]["0"], tuple(betas))
        late = [step for step in run["rms"] if int(step) >= decay["settled"]]
        rows.append(
            (
                f"{betas[0]:g}, {betas[1]:g}",
                f"{fmean(run['rms'][step] for step in late):.4f}",
                f"{fmean(found.at(int(step)).rms for step in late):.4f}",
                f"{fmean(found.at(int(step)).simulated_rms for step in late):.4f}",
                f"{run['rms'][str(decay['steps'])]:.4f}",
                _loss(run),
            )
        )
    late = [step for step in first["rms"] if int(step) >= decay["settled"]]
    spread = _spread([fmean(runs[f"strong/adamc/{s}"]["rms"][step] for step in late) for s in seeds], 4)
    caption = (
        f"AdamC, decay {decay['strong']:g}, seed {seeds[0]}. Over {len(seeds)} seeds the first row's mean is {spread}."
    )
    return f"{_table(rows)}\n\n{caption}"


SECTIONS: dict[str, Callable[[Results], str]] = {
    "methods": methods_table,
    "strong": strong_table,
    "norms": norms_table,
    "betas": betas_table,
}


def predict(
    results: Results, name: str, weight_decay: float, start: float, betas: tuple[float, float] = BETAS[0]
) -> Simulation:
    """The norms of a hidden matrix in a run of the second part."""
    decay = results["setting"]["decay"]
    return specdiag.simulate(
        name, lr=decay["lr"], weight_decay=weight_decay, steps=decay["steps"], lr_shape="cosine",
        warmup=decay["warmup"], betas=betas, shape=(WIDTH, WIDTH), initial_rms=start, stochastic=True,
        at=range(0, decay["steps"] + 1, EVERY),
    )  # fmt: skip


def _told(results: Results, part: str, names: Sequence[str]) -> str:
    found = verdicts(results, part, names)
    said = [
        f"{label} {', '.join(found[key]) or 'none'}"
        for key, label in (("below", "Below AdamW:"), ("above", "Above it:"), ("same", "Not told apart from it:"))
    ]
    count = sum(map(len, found.values()))
    return (
        f"{'. '.join(said)}. Told apart is what differs by more than half the interval and by more than the standard "
        f"deviation of AdamW; of {count} that are equal, up to {0.05 * count:.1f} would seem to differ."
    )


def _losses(results: Results, part: str, name: str) -> list[float | None]:
    return [results["runs"][f"{part}/{name}/{seed}"]["loss"] for seed in results["setting"]["seeds"]]


def _or_inf(losses: Sequence[float | None]) -> list[float]:
    return [math.inf if loss is None else loss for loss in losses]


def _decay(contender: Mapping[str, Any]) -> float:
    return float({**METHODS[contender["method"]].defaults, **contender["options"]}["weight_decay"])


def _difference(results: Results, part: str, name: str) -> str:
    found = compared(results, part, name)
    return "" if name == BASE else "diverged" if found is None else f"{found[0]:+.3f} ± {found[1]:.3f}"


def _spread(values: Sequence[float | None], digits: int = 3) -> str:
    held = [value for value in values if value is not None]
    if len(held) < len(values):
        return f"{len(values) - len(held)} of {len(values)} diverged"
    return f"{fmean(held):.{digits}f} ± {stdev(held):.{digits}f}"


def _loss(run: Mapping[str, Any]) -> str:
    return "diverged" if run["loss"] is None else f"{run['loss']:.3f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], ("---",) * len(rows[0]), *rows[1:]))


def update_docs(path: Path, source: Path, check: bool) -> int:
    """Put the figures between the markers, or with `check` say whether they stand there; an exit code."""
    text, results = path.read_text(), json.loads(source.read_text())
    wanted = text
    for name, make in SECTIONS.items():
        before, begin, rest = wanted.partition(f"<!-- {name} -->")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not begin or not end:
            print(f"{path} has no lines <!-- {name} --> and <!-- /{name} -->", file=sys.stderr)
            return 1
        wanted = f"{before}{begin}\n{make(results)}\n{end}{after}"
    if check and wanted != text:
        print(f"{path} does not show {source}: run benchmarks/methods.py --docs", file=sys.stderr)
        return 1
    if not check:
        path.write_text(wanted)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a small LLaMA with every optimizer of the registry.")
    parser.add_argument("--out", type=Path, default=OUT, help="where the JSON goes, and what is gone on with")
    parser.add_argument("--docs", action="store_true", help="write the figures of --out into docs/methods.md")
    parser.add_argument("--docs-file", type=Path, default=DOCS, help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help="with --docs: only say whether they are there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
