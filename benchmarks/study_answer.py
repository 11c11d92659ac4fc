"""The answer of benchmarks/study.py in sentences, by the rule that docs/study.md fixed before the first run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from study_design import (
    BEST_UNIFORM,
    COMPARISONS,
    MARGIN,
    NULL,
    PRESERVED,
    PUBLISHED,
    REVERSED,
)
from study_order import due
from study_statistics import N_INTERVALS, Difference, difference

_NAMES = {
    PUBLISHED: "AlphaDecay as published",
    PRESERVED: "AlphaDecay at the same total decay",
    BEST_UNIFORM: "the best uniform decay",
    NULL: "the plan of random matrices",
    REVERSED: "its reverse",
}
ENOUGH = 3
"""Seeds from which an interval is shown."""
_CLAIMS = (
    (("AlphaDecay as published helps", "AlphaDecay as published is not shown to help"), ("H1",)),
    (("The exponents help", "The exponents are not shown to help"), ("H2", "H3")),
)
"""Claim, its negative, and the comparisons that must all be better for it."""


def hypotheses(losses: Mapping[str, float], size: str) -> dict[str, Difference]:
    """Return the difference of each hypothesis that has enough seeds, with intervals that hold together."""
    found = {name: difference(losses, size, arm, rival, intervals=N_INTERVALS) for name, arm, rival, _ in COMPARISONS}
    return {name: each for name, each in found.items() if each is not None and len(each.values) >= ENOUGH}


def told(found: Difference) -> str:
    """Return mean and half width of the interval."""
    return f"{found.mean:+.4f} ± {found.half:.4f}"


def answer(losses: Mapping[str, float], sizes: Sequence[str]) -> str:
    """Answer the study's question, as far as its runs go.

    Args:
        losses: held-out loss by key of the run.
        sizes: all that the claims are about.
    """
    known = {size: hypotheses(losses, size) for size in sizes}
    complete = [size for size in sizes if not due(size, losses, explore=False)]
    claims = [_claim(text, names, known, complete) for text, names in _CLAIMS] if complete else []
    if len(complete) < len(sizes):
        left = [size for size in sizes if size not in complete]
        claims.append(f"The runs of the headline are incomplete at {' and '.join(left)}.")
    sentences = [_sentence(size, name, found) for size, each in known.items() for name, found in each.items()]
    return "\n".join(["**" + " ".join(claims) + "**", *(["", *sentences] if sentences else [])])


def _claim(
    text: tuple[str, str], names: Sequence[str], known: Mapping[str, Mapping[str, Difference]], complete: Sequence[str]
) -> str:
    where = [
        size
        for size in complete
        if all(name in known[size] and known[size][name].verdict == "better" for name in names)
    ]
    return f"{text[0]} at {' and '.join(where)}." if where else f"{text[1]} at {' or '.join(complete)}."


def _sentence(size: str, name: str, found: Difference) -> str:
    _, arm, rival, _ = next(each for each in COMPARISONS if each[0] == name)
    ours, theirs = _NAMES[arm], _NAMES[rival]
    match found.verdict:
        case "better":
            told_so = f"{ours} ends below {theirs}: {told(found)} nats a token."
        case "worse":
            told_so = f"{ours} ends above {theirs}: {told(found)} nats a token."
        case "undecided":
            told_so = f"{ours} against {theirs} is undecided: {told(found)} nats a token."
        case _:
            told_so = f"{ours} and {theirs} differ by less than {MARGIN:g} nats a token: {told(found)}."
    return f"- {name}, {size}: {told_so}"
