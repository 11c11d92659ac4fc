"""Application of a plan: groups for a new optimizer, or ratios on a live one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

import torch
from torch import nn

from specdiag.architecture.biases import BIAS, find_biases
from specdiag.architecture.names import numbered
from specdiag.architecture.rules import find_skip
from specdiag.decay.plan import DecayPlan
from specdiag.errors import UsageError
from specdiag.live.attaching import attach
from specdiag.live.matrices import live_matrices
from specdiag.live.optimizers import PLANNED, unwrap_optimizers
from specdiag.live.parameters import ParamGroup, live_parameters, untied
from specdiag.records import Source
from specdiag.text import checks
from specdiag.text.names import listed

E = TypeVar("E", bound="Entry", covariant=True)


class Entry(Protocol):
    """An entry of a plan: a Parameter that it speaks of."""

    @property
    def name(self) -> str:
        """Name of the Parameter."""
        ...

    @property
    def n_parameters(self) -> int:
        """Number of its values."""
        ...


class Plan(Protocol[E]):
    """A plan of decays or of learning rates."""

    @property
    def entries(self) -> Sequence[E]:
        """The Parameters that it speaks of."""
        ...

    @property
    def source(self) -> Source:
        """Source of the report that it was made from."""
        ...

    @property
    def include(self) -> tuple[str, ...]:
        """Globs that chose the Parameters."""
        ...

    @property
    def exclude(self) -> tuple[str, ...]:
        """Globs that left Parameters out."""
        ...

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles that were chosen."""
        ...


_SHOWN = 3
"""Number of names listed for each kind of difference."""


def param_groups(
    plan: DecayPlan, model: nn.Module, *, lr: float | None = None, weight_decay: float | None = None
) -> list[ParamGroup]:
    """Make groups for a new optimizer, one for each decay that occurs; the code of `DecayPlan.param_groups`.

    Args:
        plan: the plan.
        model: that will be trained.
        lr: learning rate of every group; None leaves it to the optimizer's own argument.
        weight_decay: base decay; None for that of the plan.

    Raises:
        UsageError: no base decay is known, or the plan does not fit the model.
    """
    weight_decay = None if weight_decay is None else checks.rate("weight_decay", weight_decay)
    lr = None if lr is None else checks.rate("lr", lr)
    base = plan.base_weight_decay if weight_decay is None else weight_decay
    if base is None:
        raise UsageError("the plan has no base weight decay: give one, as in param_groups(model, weight_decay=0.1)")
    parameters = live_parameters(model)
    ratios = {parameters[name]: entry.ratio for name, entry in fit(plan, parameters).items()}
    decayed = _decayed_by_default(model, parameters)
    members: dict[float, list[nn.Parameter]] = defaultdict(list)
    for parameter in untied(parameters).values():
        if parameter.requires_grad:
            ratio = ratios.get(parameter, plan.default_ratio if parameter in decayed else 0.0)
            members[ratio * base].append(parameter)
    rate = {} if lr is None else {"lr": lr}
    mark = {PLANNED: plan.report_digest[:16]}
    return [{"params": members[decay], "weight_decay": decay} | rate | mark for decay in sorted(members, reverse=True)]


def apply(plan: DecayPlan, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Apply the ratios to a live optimizer; the code of `DecayPlan.apply`.

    Args:
        plan: the plan.
        optimizer: built over `model`'s parameters.
        model: names the parameters.

    Raises:
        UsageError: the plan does not fit the model or the optimizer, or the optimizer cannot take a changing decay.
    """
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance] - callers are not typed
        raise UsageError(f"plan.apply takes an optimizer and then a model, not a {type(model).__name__}")
    parameters = live_parameters(model)
    fitted = fit(plan, parameters)
    optimized = {p for each in unwrap_optimizers(optimizer) for group in each.param_groups for p in group["params"]}
    missing = [n for n in fitted if parameters[n].requires_grad and parameters[n] not in optimized]
    if missing:
        raise UsageError(
            f"the optimizer lacks {listed(missing, _SHOWN)} of {len(fitted)} Parameters of the plan: "
            "was it built over this model?"
        )
    ratios: dict[torch.Tensor, float] = {parameters[name]: entry.ratio for name, entry in fitted.items()}
    attach(optimizer, "ratio", "DecayPlan.apply", lambda p, _: ratios.get(p, plan.default_ratio), replace=True)


def fit(plan: Plan[E], parameters: Mapping[str, nn.Parameter]) -> dict[str, E]:
    """Match the entries of a plan with the Parameters of a live model.

    Names must be equal, or differ by one prefix, such as `model.`, that the checkpoint or the model puts before all.

    Args:
        plan: the plan.
        parameters: of the live model, each under all its names, as in `live_parameters`.

    Returns:
        The entries, by the name in the live model.

    Raises:
        UsageError: a Parameter is missing or of another size, the model has more layers than the plan, or several
            prefixes fit; the difference is listed.
    """
    entries = {entry.name: entry for entry in plan.entries}
    renamed = {name: name for name in entries}
    if not any(name in parameters for name in entries):
        fits = [
            renaming for renaming in _renamings(list(entries), parameters) if set(renaming.values()) <= set(parameters)
        ]
        if len({tuple(renaming.values()) for renaming in fits}) > 1:
            raise UsageError(
                "the plan's names fit this model in several ways: "
                f"'{next(iter(entries))}' is {' or '.join(sorted({next(iter(f.values())) for f in fits}))}; "
                "make the plan from the model itself: specdiag.recommend(model)"
            )
        renamed = fits[0] if fits else renamed
    is_selection = bool(plan.include or plan.exclude or plan.roles)
    differences = _differences({renamed[name]: entry for name, entry in entries.items()}, parameters, is_selection)
    if differences:
        raise UsageError(f"the plan of {plan.source} does not fit this model: {'; '.join(differences)}")
    return {renamed[name]: entry for name, entry in entries.items()}


def _renamings(names: Sequence[str], parameters: Mapping[str, object]) -> Iterable[dict[str, str]]:
    """Yield every way to add one prefix to all names or to remove one, for which the first name is in the model."""
    first = names[0]
    for live in parameters:
        if live.endswith(f".{first}"):
            prefix = live.removesuffix(first)
            yield {name: prefix + name for name in names}
        elif first.endswith(f".{live}"):
            prefix = first.removesuffix(live)
            yield {name: name.removeprefix(prefix) if name.startswith(prefix) else "" for name in names}


def _differences(entries: Mapping[str, E], parameters: Mapping[str, nn.Parameter], is_selection: bool) -> list[str]:
    missing = [name for name in entries if name not in parameters]
    reshaped = [
        f"{name} (plan {entry.n_parameters} values, model {parameters[name].numel()})"
        for name, entry in entries.items()
        if name in parameters and not _same_size(entry, parameters[name])
    ]
    extra = [] if is_selection else _in_later_layers(entries, parameters)  # a selection may end at any layer
    differences: list[str] = []
    if missing:
        differences.append(
            f"the model lacks {listed(missing, _SHOWN)}, and has names like '{next(iter(parameters), '')}'"
        )
    if reshaped:
        differences.append(f"other sizes: {listed(reshaped, _SHOWN)}")
    if extra:
        differences.append(f"the plan ends before {listed(extra, _SHOWN)}")
    return differences


def _same_size(entry: Entry, parameter: nn.Parameter) -> bool:
    """Compare sizes. An entry of parts may hold less than the Parameter, where experts were sampled or roles chosen."""
    if getattr(entry, "part_values", None):
        return entry.n_parameters <= parameter.numel()
    return entry.n_parameters == parameter.numel()


def _in_later_layers(entries: Mapping[str, Entry], parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Return live Parameters that are named like entries and lie in layers beyond the plan's last."""
    last: dict[str, tuple[int, ...]] = {}
    for name in entries:
        last[numbered(name)] = max(last.get(numbered(name), ()), _numbers(name))
    return [name for name in parameters if numbered(name) in last and _numbers(name) > last[numbered(name)]]


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(piece) for piece in name.split(".") if piece.isdigit())


def _decayed_by_default(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> set[torch.Tensor]:
    """Return the Parameters that decay by default: matrices, but no biases, embeddings or heads tied to them."""
    tables: set[torch.Tensor] = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    tables |= {matrix.parameter for matrix in live_matrices(model) if matrix.role == "embed"}
    beside_weights = find_biases({name: tuple(parameter.shape) for name, parameter in parameters.items()})
    return {
        parameter
        for name, parameter in parameters.items()
        if parameter.ndim >= 2
        and parameter not in tables
        and name not in beside_weights
        and find_skip(numbered(name)) != BIAS
    }
