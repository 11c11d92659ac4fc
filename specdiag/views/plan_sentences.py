"""A decay plan, and how far it can be trusted, in sentences."""

from __future__ import annotations

from statistics import fmean

from specdiag.decay.effect import AGREE
from specdiag.decay.headline import MOSTLY_GEOMETRY
from specdiag.decay.plan import DecayPlan
from specdiag.text.counts import percent


def findings(plan: DecayPlan) -> list[str]:
    """Describe total decay, what shapes explain, the tail fraction, and the notes.

    Args:
        plan: the plan.
    """
    if all(entry.value is None for entry in plan.entries):
        return list(plan.notes)
    return [_total(plan), *_shapes(plan), *_held_fixed(plan), *_tail_fraction(plan), *plan.notes]


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
    if abs(change) < 0.02 or plan.rule in ("uniform", "none"):
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
    if plan.shape_share >= MOSTLY_GEOMETRY:
        return [f"{share} Most of it reflects the shapes, not training. {_instead(plan)}".rstrip()]
    return [share]


def has_square_plan(plan: DecayPlan) -> bool:
    """Tell whether shapes explain most of a plan, and the square basis may give a better one."""
    explained = plan.shape_share is not None and plan.shape_share >= MOSTLY_GEOMETRY
    return explained and plan.basis != "square" and (plan.agreement is None or plan.agreement >= AGREE)


def _instead(plan: DecayPlan) -> str:
    if plan.basis == "square":
        return ""
    if has_square_plan(plan):
        return "basis='square' takes the shapes out."
    return (
        "Two measures take the shapes out, square_alpha and rho, and they agree too little (correlation "
        f"{plan.agreement:+.2f}, {AGREE} needed). So basis='square' gives no better plan."
    )


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
