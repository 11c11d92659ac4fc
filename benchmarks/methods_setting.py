"""Settings of benchmarks/methods.py. A run of other settings is not continued."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

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
"""Methods of the second part; the first has all methods."""
SETTLED = 100
"""Step of the second part from which changes of norms are measured: well past the warm-up, 3/(lr x decay) in all."""

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
"""Middle of AlphaDecay's ratios. They raise the decay, so a uniform decay of this size stands beside them."""

CONTENDERS: dict[str, Contender] = {
    "adamw": Contender("adamw", _ADAM, _DECAY),
    f"adamw, decay x {_MIDDLE:g}": Contender("adamw", _ADAM, {"weight_decay": _MIDDLE * USUAL}),
    "adamw + AlphaDecay": Contender("adamw", _ADAM, _DECAY, alpha=True),
    "adam": Contender("adam", _ADAM),
    "adamc": Contender("adamc", _ADAM, _DECAY),
    "renormalized-adamw": Contender("renormalized-adamw", _ADAM, _DECAY),
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
STRONG_ROWS = tuple(
    name for name, each in CONTENDERS.items() if each.lrs is _ADAM and each.outside == 1 and each.method != "adam"
)
"""Decay of such a size has no counterpart in coupled decay."""
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
