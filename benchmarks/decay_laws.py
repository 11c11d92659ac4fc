"""Ask optimizers by which law they decay, and how their decay is therefore changed: the table of docs/optimizers.md.

Rows of packages that are not installed are kept as the page has them. Ten seconds on one core:

    TORCHDYNAMO_DISABLE=1 python benchmarks/decay_laws.py --docs
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from pages import add_options, table, update
from torch import nn
from torch.optim import Optimizer

from specdiag.errors import UsageError
from specdiag.live.laws import Law
from specdiag.live.treatment import choose_treatment
from specdiag.optim import METHODS, optimizers

PAGE = Path(__file__).parents[1] / "docs" / "optimizers.md"
SECTION = "laws"
HEAD = ("optimizer", "decay", "changed by")
_SETTINGS = {"lr": 1e-3, "weight_decay": 0.1}
_TORCH: dict[str, dict[str, object]] = {
    "Adadelta": {}, "Adafactor": {}, "Adagrad": {}, "Adam": {}, "Adamax": {}, "AdamW": {}, "ASGD": {}, "NAdam": {},
    "Muon": {}, "RAdam": {}, "RMSprop": {}, "SGD": {"momentum": 0.9},
}  # fmt: skip
_PACKAGES: dict[str, dict[str, dict[str, object]]] = {
    "torchao.optim": {"AdamW8bit": {}, "AdamW4bit": {}, "AdamWFp8": {}, "_AdamW": {}},
    "bitsandbytes.optim": {
        "AdamW": {}, "AdamW8bit": {}, "PagedAdamW8bit": {}, "AdEMAMix8bit": {}, "Lion8bit": {}, "RMSprop8bit": {},
        "SGD8bit": {"momentum": 0.9}, "LAMB": {},
    },
}  # fmt: skip
_FORMULAS = {
    "before": "w <- (1 - {x}) w before the update",
    "after": "w <- (1 - {x}) w after the update",
    "cautious": "w <- w - {x} w where the update pulls to 0 too",
    "gradient": "g <- g {x} w",
}


class Model(nn.Module):
    """Matrices of two shapes, two of one of them, and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(2))
        self.up_proj, self.head = nn.Linear(64, 128, bias=False), nn.Linear(64, 64, bias=False)
        self.norm = nn.LayerNorm(64)


def formula(law: Law) -> str:
    """A law in symbols."""
    factor = "" if abs(law.scale) == 1 else f"{abs(law.scale):.4g} "
    x = f"{factor}{'lr ' if law.by_lr else ''}L"
    return _FORMULAS[law.kind].format(x=f"{'-' if law.scale < 0 else '+'} {x}" if law.kind == "gradient" else x)


def row(name: str, make: Callable[[nn.Module], Optimizer]) -> list[str]:
    """The row of an optimizer: its laws, and what is done with them."""
    try:
        treatment = choose_treatment(make(Model()))
    except UsageError:
        return [name, "no law", "refused"]
    laws = sorted({formula(law) for law in treatment.laws.values()}) if treatment.lawful else []
    return [name, "; ".join(laws) or "no law", "division of groups" if treatment.divides else "its law"]


def rows() -> Iterator[list[str]]:
    """The rows of all optimizers that are installed."""

    def maker(kind: Callable[..., Optimizer], more: dict[str, object]) -> Callable[[nn.Module], Optimizer]:
        def make(model: nn.Module) -> Optimizer:
            matrices_alone = kind is getattr(torch.optim, "Muon", None)
            parameters = [p for p in model.parameters() if p.ndim == 2 or not matrices_alone]
            return kind(parameters, **_SETTINGS, **more)

        return make

    for name, more in _TORCH.items():
        kind = getattr(torch.optim, name, None)
        if kind is not None:
            yield row(f"torch `{name}`", maker(kind, more))
    for name in METHODS:
        lr = 2**-12 if name.startswith("scion") else 1e-3
        yield row(f"specdiag `{name}`", lambda model, name=name, lr=lr: optimizers(name, model, lr=lr)[0])
    for package, kinds in _PACKAGES.items():
        try:
            module = importlib.import_module(package)
        except ImportError:
            continue
        for name, more in kinds.items():
            yield row(f"{package.partition('.')[0]} `{name}`", maker(getattr(module, name), more))


def merged(text: str, found: list[list[str]]) -> str:
    """The table with the rows that were found, and those of the page for packages that are not installed."""
    section = text.partition(f"<!-- {SECTION} -->")[2].partition(f"<!-- /{SECTION} -->")[0]
    lines = [line for line in section.splitlines() if "`" in line]
    named = {each[0] for each in found}
    kept = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return table(HEAD, [*found, *(each for each in kept if each[0] not in named)])


def main() -> int:
    """Print the table, or put it into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_options(parser, PAGE)
    arguments = parser.parse_args()
    text = merged(arguments.docs_file.read_text(), list(rows()))
    if not arguments.docs:
        print(text)
        return 0
    command = "python benchmarks/decay_laws.py --docs"
    return update(arguments.docs_file, {SECTION: text}, Path("the optimizers"), command, check=arguments.check)


if __name__ == "__main__":
    raise SystemExit(main())
