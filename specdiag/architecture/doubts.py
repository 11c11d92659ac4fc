"""Doubts about the matrices of a block, which neither names nor shapes settle, and the sentence on each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Question = Literal["gate", "direction", "order"]


@dataclass(frozen=True, slots=True)
class Doubt:
    """Matrices of a block that names and shapes do not tell apart.

    Attributes:
        question: `gate`: which of two matrices that read into an MLP is its gate; `direction`: which of two is up and
            which is down; `order`: which of a list in attention is q, k, v or o.
        names: of the matrices, in the order of their names.
    """

    question: Question
    names: tuple[str, ...]


def sentences(doubts: Sequence[Doubt]) -> list[str]:
    """Write a sentence on all doubts of a kind.

    Args:
        doubts: those of a checkpoint.
    """
    kinds: dict[Question, list[Doubt]] = {}
    for doubt in doubts:
        kinds.setdefault(doubt.question, []).append(doubt)
    return [_sentence(question, some) for question, some in kinds.items()]


def _sentence(question: Question, doubts: Sequence[Doubt]) -> str:
    first, *_, last = doubts[0].names
    kind = "list" if question == "order" else "pair"
    n_more = len(doubts) - 1
    more = f", there and in {n_more} more {kind}{'s' if n_more > 1 else ''}" if n_more else ""
    if question == "order":
        return f"Nothing tells which of {first} to {last} are q, k, v and o{more}: all have the role other."
    if question == "gate":
        return f"Neither names nor shapes tell which is the gate, {first} or {last}{more}: both have the role up."
    return (
        f"{first} and {last} are up and down if matrices are stored (in, out), as their names suggest, but down and up "
        f"if (out, in). Nothing tells which{more}: both have the role other."
    )
