"""Optimizers whose weight decay can be changed at each step, and a refusal with a remedy for the others."""

from __future__ import annotations

from typing import cast

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
    "bitsandbytes": "keeps its settings by the position of a parameter in the groups",
    "apex.contrib": "flattens its groups when it is built",
}
"""Reason for the refusal, by the package that the class comes from."""
PLANNED = "specdiag_plan"
"""Mark of groups whose decays hold a plan's ratios already."""
_WRAPPERS = ("accelerate", "lightning", "pytorch_lightning")


def unwrap_optimizer(optimizer: object) -> torch.optim.Optimizer:
    """Return the torch optimizer whose `step()` reads its groups, without wrappers of accelerate and Lightning.

    Args:
        optimizer: of torch, wrapped or not.

    Returns:
        An optimizer with step hooks and a decay in each group.

    Raises:
        UsageError: a changed decay would not reach this optimizer's step; the message shows how to fix the decays when
            the optimizer is built.
    """
    while True:
        for package, why in _REFUSED.items():
            if any(_is_from(base, package) for base in type(optimizer).__mro__):
                raise UsageError(refusal(optimizer, why))
        inner = getattr(optimizer, "optimizer", None)
        if inner is None or not any(_is_from(type(optimizer), package) for package in _WRAPPERS):
            break
        optimizer = inner
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(refusal(optimizer, "is no torch.optim.Optimizer, so it has no step hooks"))
    nested = [value for value in vars(optimizer).values() if isinstance(value, torch.optim.Optimizer)]
    if nested:
        raise UsageError(
            f"{_name(optimizer)} wraps a {_name(nested[0])}, whose step reads groups of its own: pass that one instead"
        )
    if _is_compiled(optimizer.step):
        raise UsageError(refusal(optimizer, "has a compiled step(), which compiles anew for every decay"))
    if not all("weight_decay" in group for group in optimizer.param_groups):
        raise UsageError(f"{_name(optimizer)} has groups without 'weight_decay': there is no decay to change")
    return optimizer


def unwrap_optimizers(optimizer: object) -> list[torch.optim.Optimizer]:
    """Unwrap one optimizer or several, such as Muon and AdamW.

    Args:
        optimizer: one, a list or a tuple.

    Returns:
        What `unwrap_optimizer` returns for each, in the same order.

    Raises:
        UsageError: a changed decay would not reach the step of one of them.
    """
    several = isinstance(optimizer, (list, tuple))
    return [unwrap_optimizer(each) for each in (cast("list[object]", optimizer) if several else [optimizer])]


def refusal(optimizer: object, why: str) -> str:
    """Write the message of a refusal, with the code that works instead: decays fixed when the optimizer is built.

    Args:
        optimizer: is refused; the message names its class.
        why: the reason, as the predicate of the sentence whose subject is the class.

    Returns:
        The message of a UsageError.
    """
    return (
        f"{_name(optimizer)} {why}, so a decay that changes with the weights would not reach it. Fix the decays when "
        "the optimizer is built: plan = specdiag.recommend(model, weight_decay=...); "
        "optimizer = torch.optim.AdamW(plan.param_groups(model, lr=...))"
    )


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


def _is_from(kind: type, package: str) -> bool:
    return kind.__module__ == package or kind.__module__.startswith(f"{package}.")


def _name(optimizer: object) -> str:
    kind = type(optimizer)
    return f"{kind.__module__}.{kind.__qualname__}"
