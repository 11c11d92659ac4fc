"""Which state of a saved optimizer belongs to which parameter: the file has numbers, and programs order differently.

Every known layout is tried; it fits if the sizes of its groups and the shape of every tensor do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from transformers.trainer_pt_utils import get_parameter_names

from specdiag.errors import SourceError, UsageError
from specdiag.live.parameters import live_parameters, untied
from specdiag.train.foreign.load import SavedOptimizer

_NO_DECAY = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
"""Names of parameters without decay in transformers 5's Trainer."""
_SMALLEST = 50
"""AlphaDecay's code gives a group of its own to matrices whose smaller side has so many rows."""
OLD_NANOGPT = "nanogpt-2022"
"""Before June 2023: linear layers sorted by name, then all else."""

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Layout:
    """A way to order parameters.

    Attributes:
        name: as `--optimizer-layout` has it.
        groups: names of parameters.
    """

    name: str
    groups: tuple[tuple[str, ...], ...]


def layouts(model: nn.Module, order: Sequence[str], suffix: str = "") -> list[Layout]:
    """All known layouts.

    Args:
        model: names the parameters.
        order: names of all parameters, each once, as the program defines them.
        suffix: for the names of layouts, where an order is one of several.
    """
    shapes = {name: p.shape for name, p in untied(live_parameters(model)).items()}
    decayed = trainer_decayed(model)
    matrices = [name for name in order if len(shapes[name]) >= 2]
    tuned = _alphadecay_groups(model, order)
    linears = set(_linears(model, order))
    two = {
        "trainer": [name for name in order if name in decayed],
        "nanogpt": matrices,
        OLD_NANOGPT: sorted(linears - _embeddings(model)),
    }
    found = [Layout("flat", (tuple(order),))]
    for name, first in two.items():
        rest = [parameter for parameter in order if parameter not in set(first)]
        found.append(Layout(name, (tuple(first), tuple(sorted(rest) if name == OLD_NANOGPT else rest))))
    rest = tuple(name for name in order if not any(name in group for group in tuned))
    found.append(Layout("alphadecay", (*tuned, rest)))
    return [Layout(layout.name + suffix, tuple(group for group in layout.groups if group)) for layout in found]


def trainer_decayed(model: nn.Module) -> set[str]:
    """Names of the parameters that a Trainer decays."""
    return set(get_parameter_names(model, [nn.LayerNorm], _NO_DECAY))


def assign(
    saved: SavedOptimizer,
    model: nn.Module,
    orders: Sequence[Mapping[str, Sequence[str]]],
    wanted: str | None = None,
) -> tuple[dict[int, str], str, str]:
    """Find the one layout that fits.

    Args:
        saved: the optimizer.
        model: with the shapes of the program's parameters.
        orders: of the program's parameters, by suffix; the first set of which one fits is taken.
        wanted: the name of the layout that the caller requires; None to find it.

    Returns:
        Parameter by index, the name of the layout, and a sentence.

    Raises:
        UsageError: several fit, or the required one does not.
        SourceError: none fits.
    """
    if saved.names is not None:
        return _by_names(saved, model), "named", f"{saved.label} names the parameters of its optimizer."
    shapes = {name: tuple(p.shape) for name, p in untied(live_parameters(model)).items()}
    tried: list[Layout] = []
    for order in orders:
        known = [layout for suffix, names in order.items() for layout in layouts(model, names, suffix)]
        tried += known
        if wanted is not None:
            known = [layout for layout in known if layout.name == wanted]
        fitting: dict[tuple[tuple[int, str], ...], list[str]] = {}
        for layout in known:
            if _fits(saved, layout, shapes):
                pairs = zip(_flat(saved.indices), _flat(layout.groups), strict=True)
                fitting.setdefault(tuple(sorted(pairs)), []).append(layout.name)
        if len(fitting) > 1:
            listed = ", ".join(names[0] for names in fitting.values())
            raise UsageError(
                f"the moments in {saved.label} fit the model in several orders ({listed}), and it does not name them: "
                "name the program with optimizer_layout="
            )
        for pairs, names in fitting.items():
            also = f", which is also that of {' and '.join(names[1:])}" if len(names) > 1 else ""
            note = f"The moments in {saved.label} are in the order '{names[0]}'{also}: counts and shapes fit."
            return dict(pairs), names[0], note
    raise _misfit(saved, tried, wanted)


def _by_names(saved: SavedOptimizer, model: nn.Module) -> dict[int, str]:
    parameters = live_parameters(model)
    first = {parameter: name for name, parameter in untied(parameters).items()}
    names = [name.replace("_orig_mod.", "") for name in saved.names or ()]
    while names and not all(name in parameters for name in names):
        stripped = [name.partition(".")[2] for name in names]
        if len({name.partition(".")[0] for name in names}) > 1 or not all(stripped):
            odd = next(name for name in names if name not in parameters)
            raise SourceError(f"{saved.label} has moments of {odd}, which the model lacks: it is another model's")
        names = stripped
    assigned = {index: first[parameters[name]] for index, name in zip(_flat(saved.indices), names, strict=True)}
    for index, name in assigned.items():
        shape = tuple(parameters[name].shape)
        if saved.shape(index) not in (None, shape):
            raise SourceError(
                f"{saved.label} has moments of shape {saved.shape(index)} for {name}, whose shape is {shape}: it is "
                "another model's"
            )
    return assigned


def _fits(saved: SavedOptimizer, layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    if [len(group) for group in saved.indices] != [len(group) for group in layout.groups]:
        return False
    pairs = zip(_flat(saved.indices), _flat(layout.groups), strict=True)
    return all(saved.shape(index) in (None, shapes[name]) for index, name in pairs)


def _misfit(saved: SavedOptimizer, tried: Sequence[Layout], wanted: str | None) -> SourceError | UsageError:
    names = list(dict.fromkeys(layout.name for layout in tried))
    if wanted is not None and wanted not in names:
        return UsageError(f"unknown optimizer_layout={wanted!r}; choose {', '.join(names)}")
    known = {layout.name: _counts([len(group) for group in layout.groups]) for layout in reversed(tried)}
    have = _counts([len(group) for group in saved.indices])
    listed = "; ".join(f"{name} {known[name]}" for name in names if wanted in (None, name))
    message = (
        f"the optimizer in {saved.label} has groups of {have} tensors, whose counts and shapes fit no known order of "
        f"this model ({listed}): it is another model's, or its script built the groups itself; go on there"
    )
    return SourceError(message) if wanted is None else UsageError(message)


def _counts(sizes: Sequence[int]) -> str:
    shown = ", ".join(str(size) for size in sizes[:4])
    return f"[{shown}]" if len(sizes) <= 4 else f"[{shown}, ... {sizes[-1]}] ({len(sizes)} groups)"


def _linears(model: nn.Module, order: Sequence[str]) -> list[str]:
    """Weights of nn.Linear in the program's order; a tied head at its place in the model."""
    parameters = live_parameters(model)
    first = {parameter: name for name, parameter in untied(parameters).items()}
    weights = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    place = {name: number for number, name in enumerate(order)}
    own = [name for name in weights if name in place]
    inner = sorted(own, key=lambda name: place[name])
    slots = iter(inner)
    return [next(slots) if name in place else first[parameters[name]] for name in weights]


def _embeddings(model: nn.Module) -> set[str]:
    first: dict[torch.Tensor, str] = {p: name for name, p in untied(live_parameters(model)).items()}
    return {first[module.weight] for module in model.modules() if isinstance(module, nn.Embedding)}


def _alphadecay_groups(model: nn.Module, order: Sequence[str]) -> list[tuple[str, ...]]:
    """The linear layers between the first and the last, as AlphaDecay's released code takes them, with their biases."""
    shapes = {name: p.shape for name, p in untied(live_parameters(model)).items()}
    weights = [name for name in _linears(model, order)[1:-1] if min(shapes[name]) >= _SMALLEST]
    both = [(name, name.removesuffix("weight") + "bias") for name in weights]
    return [tuple(name for name in pair if name in shapes) for pair in both]


def _flat(groups: Sequence[Sequence[_Item]]) -> list[_Item]:
    return [item for group in groups for item in group]
