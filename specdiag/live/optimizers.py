"""Optimizers whose weight decay can be changed at each step, and a refusal with a remedy for the others."""

from __future__ import annotations

from typing import Literal, cast

import torch

from specdiag.errors import UsageError

_COPIES = "keeps copies of its groups that a change during the run does not reach"
_REFUSED: dict[str, str] = {
    "deepspeed": "flattens its groups when it is built",
    "accelerate.utils.deepspeed": "flattens its groups when it is built",
    "megatron": "flattens its groups when it is built",
    "accelerate.utils.megatron_lm": "flattens its groups when it is built",
    "colossalai": "flattens its groups when it is built",
    "fairscale": _COPIES,
    "torch.distributed.optim": _COPIES,
    "apex.contrib": "flattens its groups when it is built",
}
"""Reason for the refusal, by the package that the class comes from."""
Changed = Literal["decay", "lr"]
"""Setting of an optimizer that changes with the weights."""
_REMEDIES: dict[Changed, str] = {
    "decay": "so a decay that changes with the weights would not reach it. Fix the decays when the optimizer is "
    "built: plan = specdiag.recommend(model, weight_decay=...); "
    "optimizer = torch.optim.AdamW(plan.param_groups(model, lr=...))",
    "lr": "so a learning rate that changes with the weights would not reach it. Build the optimizer with a group for "
    "each learning rate, or train with torch.optim.AdamW",
}
PLANNED = "specdiag_plan"
"""Mark of groups whose decays hold a plan's ratios already."""
_WRAPPERS = ("accelerate", "lightning", "pytorch_lightning")


def unwrap_optimizers(optimizer: object, changed: Changed = "decay") -> list[torch.optim.Optimizer]:
    """Return the torch optimizers whose `step()` reads its groups.

    Wrappers of accelerate and Lightning are looked through, and containers that step several optimizers, which they
    keep in a list or a dict.

    Args:
        optimizer: of torch, wrapped or not; or a list or tuple of several.
        changed: setting that shall change, which each group must have.

    Returns:
        Optimizers with step hooks and that setting in each group.

    Raises:
        UsageError: a changed setting would not reach the step of one of them; the message shows how to fix the decays
            when the optimizer is built.
    """
    if isinstance(optimizer, (list, tuple)):
        return [found for each in cast("list[object]", optimizer) for found in unwrap_optimizers(each, changed)]
    while True:
        for package, why in _REFUSED.items():
            if is_from(optimizer, package):
                raise UsageError(refusal(optimizer, why, changed))
        inner = getattr(optimizer, "optimizer", None)
        if inner is None or not any(is_from(optimizer, package) for package in _WRAPPERS):
            break
        optimizer = inner
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(refusal(optimizer, "is no torch.optim.Optimizer, so it has no step hooks", changed))
    contained = stepped_optimizers(optimizer)
    if contained != [optimizer]:
        return unwrap_optimizers(contained, changed)
    nested = [value for value in vars(optimizer).values() if isinstance(value, torch.optim.Optimizer)]
    if nested:
        raise UsageError(
            f"{_name(optimizer)} wraps a {_name(nested[0])}, whose step reads groups of its own: pass that one instead"
        )
    if _is_compiled(optimizer.step):
        raise UsageError(refusal(optimizer, f"has a compiled step(), which compiles anew for every {changed}", changed))
    key = "weight_decay" if changed == "decay" else "lr"
    if not all(group.get(key) is not None for group in optimizer.param_groups):
        raise UsageError(f"{_name(optimizer)} has groups without '{key}': there is no {changed} to change")
    return [optimizer]


def stepped_optimizers(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """Return the optimizers that a container keeps in its lists and dicts; any other optimizer itself.

    Args:
        optimizer: a torch optimizer.
    """
    found: dict[int, torch.optim.Optimizer] = {}
    for value in vars(optimizer).values():
        held = list(cast("dict[object, object]", value).values()) if isinstance(value, dict) else value
        if isinstance(held, (list, tuple)):
            several = [each for each in cast("list[object]", held) if isinstance(each, torch.optim.Optimizer)]
            found |= {id(each): each for each in several if each is not optimizer}
    return list(found.values()) or [optimizer]


def refusal(optimizer: object, why: str, changed: Changed = "decay") -> str:
    """Write the message of a refusal, with what works instead.

    Args:
        optimizer: is refused; the message names its class.
        why: the reason, as the predicate of the sentence whose subject is the class.
        changed: setting that would change.

    Returns:
        The message of a UsageError.
    """
    return f"{_name(optimizer)} {why}, {_REMEDIES[changed]}"


def check_traceable(optimizer: torch.optim.Optimizer) -> None:
    """Refuse a step that is being compiled or captured in a CUDA graph: it would keep the decay that it reads now.

    Args:
        optimizer: within its `step()`.

    Raises:
        UsageError: the step is being compiled or captured.
    """
    if torch.compiler.is_compiling():
        raise UsageError(refusal(optimizer, "is being compiled, with its decay baked in"))
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise UsageError(refusal(optimizer, "is being captured in a CUDA graph, with its decay baked in"))


def _is_compiled(step: object) -> bool:
    """Recognise a step that torch.compile made. torch.compiler.disable leaves the same mark and a second one."""
    return hasattr(step, "_torchdynamo_orig_callable") and not getattr(step, "_torchdynamo_disable", False)


def is_from(optimizer: object, package: str) -> bool:
    """Tell whether an optimizer's class, or a base of it, comes from a package.

    Args:
        optimizer: any object.
        package: name of the package.
    """
    homes = (base.__module__ for base in type(optimizer).__mro__)
    return any(home == package or home.startswith(f"{package}.") for home in homes)


def _name(optimizer: object) -> str:
    kind = type(optimizer)
    return f"{kind.__module__}.{kind.__qualname__}"
