"""A decay plan, and how far it can be trusted, in sentences."""

from __future__ import annotations

from statistics import fmean

from specdiag.decay.effect import AGREE
from specdiag.decay.plan import DecayPlan
from specdiag.text.counts import percent

STUDY = (
    "Our own study, of LLaMAs with 0.35 M weights, does not show AlphaDecay's plan to be better than the best uniform "
    "decay, or than its reverse (docs/study.md)."
)
_SAME_TOTAL = 0.02
"""Change of the total decay that is not told."""


def findings(plan: DecayPlan) -> list[str]:
    """Describe total decay, what shapes explain, the tail fraction, and the notes.

    Args:
        plan: the plan.
    """
    if all(entry.value is None for entry in plan.entries):
        return list(plan.notes)
    return [_total(plan), *_shapes(plan), *_held_fixed(plan), *_tail_fraction(plan), *plan.notes]


def instead(plan: DecayPlan) -> list[tuple[str, str]]:
    """Tell what may take the place of a plan that shapes explain: subjects and sentences; none for other plans.

    Args:
        plan: the plan.
    """
    if not plan.explained_by_shape:
        return []
    facts: list[tuple[str, str]] = []
    if plan.basis != "square" and (without := _without_shapes(plan)):
        facts.append(("Without the shapes", without))
    if abs(plan.mean_ratio_weighted - 1) >= _SAME_TOTAL:
        base = plan.base_weight_decay
        uniform = f"{plan.mean_ratio_weighted:.3g} times the base" if base is None else _uniform(plan, base)
        facts.append(("More decay alone", f"{uniform} for all modules has the same total"))
    return facts


def _uniform(plan: DecayPlan, base: float) -> str:
    return f"{plan.mean_ratio_weighted * base:.3g}"


def _without_shapes(plan: DecayPlan) -> str:
    agreed = "" if plan.agreement is None else f" (correlation {plan.agreement:+.2f}, {AGREE} needed)"
    if plan.has_square_ratios:
        ratios = f"mean ratios by square_alpha are {_by_family(plan, 'square_ratio')}"
    elif plan.basis == "alpha":
        return ""
    else:
        ratios = "basis='square'"
    if has_square_plan(plan):
        return f"{ratios}; rho, the other such measure, agrees{agreed}" if agreed else ratios
    return f"{ratios}: no better plan, because rho, the other such measure, differs{agreed}"


def limits(plan: DecayPlan) -> list[str]:
    """Say where a plan goes beyond what was tested.

    Args:
        plan: the plan.
    """
    sentences = [
        "The paper tested decay during pretraining from scratch, up to 1B parameters and without experts. Plans from "
        "finished or fine-tuned checkpoints were not tested."
    ]
    if plan.rule not in ("uniform", "none"):
        sentences.append(STUDY)
        sentences.append(
            "Base values do not carry over between coupled (Adam with L2) and decoupled decay (AdamW); ratios do."
        )
    if plan.rule not in ("uniform", "none") and plan.verdict is None:
        sentences.append(
            "Decay takes about 1/(lr x weight decay) steps to change norms, which then go as ratio^-1/2. Shorter runs "
            "show no effect."
        )
    return sentences


def _total(plan: DecayPlan) -> str:
    ratios = [entry.ratio for entry in plan.entries]
    millions = sum(entry.n_parameters for entry in plan.entries) / 1e6
    text = (
        f"{len(ratios)} Parameters with {millions:.2f} M values get ratios from {min(ratios):.2f} to "
        f"{max(ratios):.2f}; mean {plan.mean_ratio:.2f}, weighted by parameters {plan.mean_ratio_weighted:.2f}"
    )
    change = plan.mean_ratio_weighted - 1
    if abs(change) < _SAME_TOTAL or plan.rule in ("uniform", "none"):
        return text + "."
    verb = "rises" if change > 0 else "falls"
    return text + f". Total decay {verb} by {100 * abs(change):.0f} %: preserve_mean=True keeps it constant."


def _shapes(plan: DecayPlan) -> list[str]:
    if plan.shape_share is None:
        if plan.rule in ("uniform", "none"):
            return []
        if any(entry.random_ratio is not None for entry in plan.entries):
            return ["Too few modules differ to tell how much of the plan shapes explain."]
        return [
            f"No random twin is known for the tail rule {plan.tail}: how much of the plan shapes explain stays open."
        ]
    if len({entry.random_ratio for entry in plan.entries if entry.value is not None}) == 1:
        return ["Random weights would get one ratio for all, whatever their shapes: shapes do not explain this plan."]
    explained = f"{percent(plan.shape_share)} of this plan (R^2)"
    share = f"Random weights of the same shapes would get ratios that explain {explained}."
    return [f"{share} Most of it reflects the shapes, not training." if plan.explained_by_shape else share]


def has_square_plan(plan: DecayPlan) -> bool:
    """Tell whether shapes explain most of a plan, and the square basis may give a better one."""
    return plan.explained_by_shape and plan.basis != "square" and (plan.agreement is None or plan.agreement >= AGREE)


def _held_fixed(plan: DecayPlan) -> list[str]:
    """Tell where the square basis rests on a choice, with what either way gives."""
    if plan.basis != "square" or plan.rule in ("uniform", "none"):
        return []
    if plan.agreement is None:
        return ["Fewer than three modules have both square_alpha and rho, so nothing confirms the plan."]
    if plan.agreement >= AGREE:
        return [f"rho, the other measure without shapes, agrees (correlation {plan.agreement:+.2f})."]
    return [
        f"The two measures agree too little (correlation {plan.agreement:+.2f}, {AGREE} needed). Mean ratios: "
        f"{_by_family(plan, 'ratio')} by square_alpha, {_by_family(plan, 'rho_ratio')} by rho."
    ]


def _by_family(plan: DecayPlan, ratio: str) -> str:
    families = [family for family in ("attention", "mlp") if any(e.family == family for e in plan.entries)]
    return " and ".join(f"{family} {_family_mean(plan, family, ratio):.2f}" for family in families)


def _family_mean(plan: DecayPlan, family: str, ratio: str) -> float:
    ratios = [getattr(entry, ratio) for entry in plan.entries if entry.family == family]
    return fmean(1.0 if value is None else value for value in ratios)


def _tail_fraction(plan: DecayPlan) -> list[str]:
    if plan.tail_shift is None:
        return []
    return [f"With tail fractions 0.25 and 0.75 in place of 0.5, a ratio differs by {plan.tail_shift:.2f} (median)."]
