"""The first sentence about a plan: whether to use it. It goes with the plan into every file."""

from __future__ import annotations

from specdiag.decay.effect import AGREE, Answer
from specdiag.decay.plan import DecayPlan
from specdiag.text.counts import percent

_DISAGREE: Answer = "the two measures disagree"
_HEADLINES: dict[Answer, str] = {
    "explained by shape": (
        "Do not use this plan: it is explained by shape. An untrained network would get nearly the same plan."
    ),
    _DISAGREE: (
        "Do not use this plan: the two measures without shapes, square_alpha and rho, call for different plans."
    ),
    "cannot show in the steps left": (
        "This plan cannot show in the steps left. More steps, or a larger base decay, would be needed."
    ),
    "worth a run": "Worth a run. Hold it against uniform decay of the same mean, from the same checkpoint.",
}


def headline(plan: DecayPlan) -> str:
    """Answer whether to use the plan, as far as that is known.

    Args:
        plan: the plan.
    """
    if plan.verdict is not None:
        answer = plan.verdict.answer
        if answer == "explained by shape":
            return f"{_HEADLINES[answer]} {_uniform(plan)}"
        return _disagreement(plan) if answer == _DISAGREE else _HEADLINES[answer]
    if plan.rule in ("uniform", "none"):
        return f"The rule {plan.rule} gives every module the same decay."
    if all(entry.value is None for entry in plan.entries):
        return "Do not use this plan: no module has a number that it could rest on."
    if plan.shape_share is not None and plan.explained_by_shape:
        return f"Do not use this plan: {percent(plan.shape_share)} of it is explained by shape. {_uniform(plan)}"
    if plan.basis == "square" and (plan.agreement is None or plan.agreement < AGREE):
        return _disagreement(plan)
    return "Keep one decay for all modules for now. Judging this plan needs the base decay, the lr and the steps left."


def _disagreement(plan: DecayPlan) -> str:
    if plan.agreement is None:
        return "Do not use this plan: too few modules have both square_alpha and rho to confirm it."
    return f"{_HEADLINES[_DISAGREE]} {_uniform(plan)}"


def _uniform(plan: DecayPlan) -> str:
    base = plan.base_weight_decay
    return f"Keep one decay for all modules{'' if base is None else f': {base:.3g}'}."
