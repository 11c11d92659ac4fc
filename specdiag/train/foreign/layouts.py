"""Assigns the state of a saved optimizer to parameters. The file has only numbers, in an order that programs choose.

Every known layout is tried. It fits if the sizes of its groups and the shapes of all tensors fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from transformers.trainer_pt_utils import get_parameter_names

from specdiag.architecture.wrapper_names import without_wrappers
from specdiag.checkpoint.wrappers import duplicate
from specdiag.errors import SourceError, UsageError
from specdiag.live.parameters import live_parameters, untied
from specdiag.train.foreign.load import SavedOptimizer

_NO_DECAY = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
"""Patterns of the names of parameters that transformers 5's Trainer does not decay."""
_SMALLEST = 50
"""Smaller side from which AlphaDecay's code gives a matrix a group of its own."""
NANOGPT = "nanogpt"
"""Layout of nanoGPT since June 2023: matrices, then everything else."""
OLD_NANOGPT = "nanogpt-2022"
"""Layout of nanoGPT before June 2023: linear layers sorted by name, then everything else."""

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Layout:
    """A way to order parameters.

    Attributes:
        name: name as for the argument `optimizer_layout`.
        groups: names of the parameters of each group.
    """

    name: str
    groups: tuple[tuple[str, ...], ...]


def layouts(model: nn.Module, order: Sequence[str], suffix: str = "") -> list[Layout]:
    """List all known layouts.

    Args:
        model: model whose Parameters are named.
        order: names of all parameters, each once, in the order in which the program defines them.
        suffix: suffix of the layouts' names, for an order that is one of several.
    """
    shapes = {name: p.shape for name, p in untied(live_parameters(model)).items()}
    decayed = trainer_decayed(model)
    matrices = [name for name in order if len(shapes[name]) >= 2]
    single_groups = _alphadecay_groups(model, order)
    linears = set(_linears(model, order))
    first_groups = {
        "trainer": [name for name in order if name in decayed],
        NANOGPT: matrices,
        OLD_NANOGPT: sorted(linears - _embeddings(model)),
    }
    known = [Layout("flat", (tuple(order),))]
    for name, first in first_groups.items():
        rest = [parameter for parameter in order if parameter not in set(first)]
        known.append(Layout(name, (tuple(first), tuple(sorted(rest) if name == OLD_NANOGPT else rest))))
    rest = tuple(name for name in order if not any(name in group for group in single_groups))
    known.append(Layout("alphadecay", (*single_groups, rest)))
    return [Layout(layout.name + suffix, tuple(group for group in layout.groups if group)) for layout in known]


def trainer_decayed(model: nn.Module) -> set[str]:
    """Return the names of the parameters that a Trainer decays."""
    return set(get_parameter_names(model, [nn.LayerNorm], _NO_DECAY))


def assign(
    saved: SavedOptimizer,
    model: nn.Module,
    orders: Sequence[Mapping[str, Sequence[str]]],
    required: str | None = None,
) -> tuple[dict[int, str], str, str]:
    """Find the only layout that fits.

    Args:
        saved: the saved optimizer.
        model: model with the shapes of the program's parameters.
        orders: possible orders of the program's parameters, by suffix; the first mapping of which one fits is used.
        required: name of the required layout; None to find it.

    Returns:
        Parameter names by index, the name of the layout, and a sentence about it.

    Raises:
        UsageError: several layouts fit, or the required one does not.
        SourceError: no layout fits.
    """
    if saved.names is not None:
        return _by_names(saved, model), "named", f"{saved.label} names the parameters of its optimizer."
    shapes = {name: tuple(p.shape) for name, p in untied(live_parameters(model)).items()}
    tried: list[Layout] = []
    for order in orders:
        known = [layout for suffix, names in order.items() for layout in layouts(model, names, suffix)]
        tried += known
        if required is not None:
            known = [layout for layout in known if layout.name == required]
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
    raise _misfit(saved, tried, required)


def _by_names(saved: SavedOptimizer, model: nn.Module) -> dict[int, str]:
    parameters = live_parameters(model)
    first = {parameter: name for name, parameter in untied(parameters).items()}
    names = [without_wrappers(name) for name in saved.names or ()]
    while names and not all(name in parameters for name in names):
        stripped = [name.partition(".")[2] for name in names]
        if len({name.partition(".")[0] for name in names}) > 1 or not all(stripped):
            unknown = next(name for name in names if name not in parameters)
            raise SourceError(f"{saved.label} has moments of {unknown}, which the model lacks: it is another model's")
        names = stripped
    assigned = {index: first[parameters[name]] for index, name in zip(_flat(saved.indices), names, strict=True)}
    twice = duplicate(list(assigned.values()))
    if twice is not None:
        raise SourceError(f"{saved.label} has moments of {twice} under two of its names: which are right is unknown")
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


def _misfit(saved: SavedOptimizer, tried: Sequence[Layout], required: str | None) -> SourceError | UsageError:
    names = list(dict.fromkeys(layout.name for layout in tried))
    if required is not None and required not in names:
        return UsageError(f"unknown optimizer_layout={required!r}; choose {', '.join(names)}")
    known = {layout.name: _counts([len(group) for group in layout.groups]) for layout in reversed(tried)}
    have = _counts([len(group) for group in saved.indices])
    listed = "; ".join(f"{name} {known[name]}" for name in names if required in (None, name))
    message = (
        f"the optimizer in {saved.label} has groups of {have} tensors, whose counts and shapes fit no known order of "
        f"this model ({listed}): it is another model's, or its script built the groups itself; go on there"
    )
    return SourceError(message) if required is None else UsageError(message)


def _counts(sizes: Sequence[int]) -> str:
    shown = ", ".join(str(size) for size in sizes[:4])
    return f"[{shown}]" if len(sizes) <= 4 else f"[{shown}, ... {sizes[-1]}] ({len(sizes)} groups)"


def _linears(model: nn.Module, order: Sequence[str]) -> list[str]:
    """List the weights of nn.Linear in the program's order, with a tied head at its place in the model."""
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
    """Group each linear layer between the first and the last with its bias, as AlphaDecay's released code does."""
    shapes = {name: p.shape for name, p in untied(live_parameters(model)).items()}
    weights = [name for name in _linears(model, order)[1:-1] if min(shapes[name]) >= _SMALLEST]
    pairs = [(name, name.removesuffix("weight") + "bias") for name in weights]
    return [tuple(name for name in pair if name in shapes) for pair in pairs]


def _flat(groups: Sequence[Sequence[_Item]]) -> list[_Item]:
    return [item for group in groups for item in group]
