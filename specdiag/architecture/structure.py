"""Roles that names leave open, decided by the structure of the blocks: by shapes, siblings and sister layers."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from specdiag.architecture.attention_structure import attentions
from specdiag.architecture.doubts import Doubt
from specdiag.architecture.members import Member
from specdiag.architecture.mixtures import merged_experts, mixture_sizes, routers
from specdiag.architecture.mlp_structure import misfits, mlps
from specdiag.architecture.names import Name, is_index, is_kernel
from specdiag.architecture.rules import Rule
from specdiag.architecture.widths import UNKNOWN, Width, widths
from specdiag.records import Role

Shape = tuple[int, ...]
_NO_TOKENS = re.compile(
    r"pos|type|seg|time|patch|layers?_|level|class|bbox|score|iou|label|anchor|mem|bank|proto|queue", re.IGNORECASE
)
_SIDES = ("gate", "up", "down")
_RECURRENCE = re.compile(r"(.*)\.(?:a_log|\w*conv\w*|dt_\w+|[bx]_proj|\w*filter\w*|a|d)(?:\.|$)", re.IGNORECASE)
Rules = dict[str, Rule | None]


@dataclass(frozen=True, slots=True)
class Structure:
    """The roles that the blocks of a checkpoint tell.

    Attributes:
        rules: the rule of each tensor.
        widths: the residual width by the path of the block.
        merged: (experts, rows, cols) of each tensor of two axes that holds a matrix of every expert.
        doubts: what could not be told.
    """

    rules: Rules
    widths: dict[str, Width]
    merged: dict[str, Shape]
    doubts: list[Doubt]


def refine(
    shapes: Mapping[str, Shape], names: Mapping[str, Name], rules: Rules, all_shapes: Mapping[str, Shape]
) -> Structure:
    """Decide by structure what names leave open, and correct numbers that shapes contradict.

    Args:
        shapes: of the tensors that may hold weight matrices.
        names: their names taken apart.
        rules: the rule of each by its name, None where no rule knows it.
        all_shapes: of every tensor of the checkpoint.
    """
    width_of = widths(shapes, names, rules, all_shapes)
    names = _without_mixed_lists(shapes, names)
    merged = merged_experts(shapes, rules)
    blocks: dict[str, list[Member]] = defaultdict(list)
    for key, shape in shapes.items():
        if len(shape) == 2 and names[key].block and key not in merged:
            blocks[names[key].block].append(Member.of(key, names[key], (shape[0], shape[1]), rules[key]))
    mixtures = mixture_sizes(shapes, rules)
    has_mixers = any(name.context == "ssm" for name in names.values())
    recurrences = {match[1] for key in all_shapes if has_mixers and (match := _RECURRENCE.match(key)) is not None}
    decided: dict[str, Rule] = {}
    doubts: list[Doubt] = []
    alike: dict[tuple[object, ...], tuple[str, dict[str, Rule], list[Doubt]]] = {}
    for block, members in blocks.items():
        width = width_of.get(block, UNKNOWN)
        traits = (width, *(_traits(member, recurrences, mixtures) for member in members))
        if traits not in alike:
            alike[traits] = (block, *_decide(members, width, recurrences, mixtures))
        first, rules_of_first, doubts_of_first = alike[traits]
        if rules_of_first:
            decided |= {block + key[len(first) :]: rule for key, rule in rules_of_first.items()}
        if doubts_of_first:
            doubts += [Doubt(d.question, tuple(block + key[len(first) :] for key in d.names)) for d in doubts_of_first]
    everyone = [member for members in blocks.values() for member in members]
    refined = {**rules, **_for_sisters(decided, everyone)}
    return Structure({**refined, **_heads(shapes, names, refined)}, width_of, merged, doubts)


def _decide(
    members: list[Member], width: Width, recurrences: Container[str], mixtures: Mapping[str, frozenset[int]]
) -> tuple[dict[str, Rule], list[Doubt]]:
    """Decide the open roles of one block. All that is asked of a member here is among its traits."""
    attention, unsorted = attentions(members, width, recurrences)
    found = routers(members, width, mixtures) | attention
    free = [m for m in members if m.key not in found and not (m.is_open and m.holder in mixtures)]
    sides, undecided = mlps(free, width)
    known = found | sides
    return misfits([m for m in members if m.key not in known], width) | known, [*unsorted, *undecided]


def _traits(member: Member, recurrences: Container[str], mixtures: Mapping[str, frozenset[int]]) -> tuple[object, ...]:
    """Give what blocks are decided by: blocks whose members have the same traits differ in their paths alone."""
    name = member.name
    below = member.key[len(name.block) :]
    beside = member.holder in recurrences, mixtures.get(member.holder)
    return below, member.stem, member.shape, member.rule, name.path, name.context, *beside


def _without_mixed_lists(shapes: Mapping[str, Shape], names: Mapping[str, Name]) -> dict[str, Name]:
    """Take a list of matrices and modules within a block for a sequence, not for blocks: fn.0.proj beside fn.2."""
    sequences = {
        f"{name.block}.{key[len(name.block) + 1 :].partition('.')[0]}": name.block
        for key, name in names.items()
        if name.block and name.sequence is not None and len(shapes[key]) == 2 and name.parent == name.block
    }
    return {
        key: name
        if (block := sequences.get(name.block.rpartition(".")[0])) is None
        else replace(name, block=block, indices=name.indices[:-1])
        for key, name in names.items()
    }


def _for_sisters(decided: Mapping[str, Rule], members: Sequence[Member]) -> dict[str, Rule]:
    """Give every layer what most of its sisters were given; nothing where they disagree by halves."""
    if not decided:
        return {}
    sisters: dict[tuple[object, ...], list[Member]] = defaultdict(list)
    for member in members:
        if member.is_open or member.side is not None:
            sisters[_place(member.name)].append(member)
    agreed: dict[str, Rule] = {}
    for alike in sisters.values():
        votes = Counter(_kind(rule) for member in alike if (rule := decided.get(member.key)) is not None)
        if not votes or 2 * max(votes.values()) <= votes.total():
            continue
        kind = max(votes, key=lambda kind: votes[kind])
        rule = next(rule for member in alike if (rule := decided.get(member.key)) and _kind(rule) == kind)
        for member in alike:
            is_right = member.rule is not None and not member.is_open and _kind(member.rule) == kind
            if not is_right:
                agreed[member.key] = rule
    return agreed


def _place(name: Name) -> tuple[object, ...]:
    """Describe where a matrix lies in its layer: the stack, the path below its block, and its index in lists there."""
    *_, above, last = ("", *name.block.split("."))
    below = name.path.split(".")[name.block.count(".") + 1 :]
    return name.stack, ".".join(below), name.sequence, int(last) if is_index(above) else None


def _kind(rule: Rule) -> tuple[Role, tuple[Role, ...]]:
    return rule.role, rule.parts


def _heads(shapes: Mapping[str, Shape], names: Mapping[str, Name], rules: Rules) -> dict[str, Rule]:
    """Take as output layer what has the shape of the table of tokens, outside of all blocks, and no other name."""
    outside = [key for key, shape in shapes.items() if len(shape) == 2 and not names[key].indices]
    tables = {
        shapes[key]
        for key in outside
        if (rule := rules[key]) is not None and rule.role == "embed" and not _NO_TOKENS.search(key)
    }
    largest = max((rows for rows, _ in tables), default=0)
    return {
        key: Rule("", role="head")
        for key in outside
        if (shape := shapes[key][::-1] if is_kernel(key) else shapes[key]) in tables
        and largest == shape[0] != shape[1]
        and not _NO_TOKENS.search(key)
        and ((rule := rules[key]) is None or (rule.role, rule.kind) == ("other", "other") or rule.role in _SIDES)
    }
