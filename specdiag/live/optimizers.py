"""Which optimizers take another weight decay for each step, and what to do with the others."""

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
"""By the package that the class comes from."""
PLANNED = "specdiag_plan"
"""Mark of groups whose decays hold a plan's ratios already."""
_WRAPPERS = ("accelerate", "lightning", "pytorch_lightning")


def servable(optimizer: object) -> torch.optim.Optimizer:
    """Return the torch optimizer whose `step()` reads its groups, without wrappers of accelerate and Lightning.

    Args:
        optimizer: of torch, wrapped or not.

    Returns:
        An optimizer with step hooks and a decay in each group.

    Raises:
        UsageError: another decay would not reach this optimizer's step; the message shows the static way.
    """
    while True:
        for home, why in _REFUSED.items():
            if any(_is_from(base, home) for base in type(optimizer).__mro__):
                raise UsageError(refusal(optimizer, why))
        inner = getattr(optimizer, "optimizer", None)
        if inner is None or not any(_is_from(type(optimizer), home) for home in _WRAPPERS):
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


def servables(optimizer: object) -> list[torch.optim.Optimizer]:
    """Return the torch optimizers of one optimizer or of several, as Muon and AdamW.

    Args:
        optimizer: one, a list or a tuple.

    Raises:
        UsageError: another decay would not reach the step of one of them.
    """
    several = isinstance(optimizer, (list, tuple))
    return [servable(each) for each in (cast("list[object]", optimizer) if several else [optimizer])]


def refusal(optimizer: object, why: str) -> str:
    """Why this optimizer is refused, and the code that serves it: groups that never change."""
    return (
        f"{_name(optimizer)} {why}, so a decay that changes with the weights would not reach it. Fix the decays when "
        "the optimizer is built: plan = specdiag.recommend(model, weight_decay=...); "
        "optimizer = torch.optim.AdamW(plan.param_groups(model, lr=...))"
    )


def check_traceable(optimizer: torch.optim.Optimizer) -> None:
    """Called inside `step()`.

    Raises:
        UsageError: the step is being compiled or captured in a CUDA graph: what it reads now, it would read for ever.
    """
    if torch.compiler.is_compiling():
        raise UsageError(refusal(optimizer, "is being compiled, with its decay baked in"))
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise UsageError(refusal(optimizer, "is being captured in a CUDA graph, with its decay baked in"))


def _is_compiled(step: object) -> bool:
    """Recognise a step that torch.compile made. torch.compiler.disable leaves the same mark and a second one."""
    return hasattr(step, "_torchdynamo_orig_callable") and not getattr(step, "_torchdynamo_disable", False)


def _is_from(kind: type, home: str) -> bool:
    return kind.__module__ == home or kind.__module__.startswith(f"{home}.")


def _name(optimizer: object) -> str:
    kind = type(optimizer)
    return f"{kind.__module__}.{kind.__qualname__}"
