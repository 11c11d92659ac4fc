"""Cutting one tensor into its matrices, by its number of axes, its name and its rule."""

from __future__ import annotations

import re
from functools import lru_cache
from math import prod

from msgspec import Struct
from msgspec.structs import replace

from specdiag.architecture import fused
from specdiag.architecture.names import is_kernel, numbered
from specdiag.architecture.rules import FAMILY, Rule
from specdiag.architecture.split import Slicer, kernels, stack, unfold, whole
from specdiag.architecture.survey import Shape, Survey
from specdiag.architecture.widths import UNKNOWN
from specdiag.records import Family, Role

_EXPERTS = re.compile(r"expert|_exps", re.IGNORECASE)
_PATCH = re.compile(r"patch_?(embed|conv|proj)|patchify|^conv_proj$", re.IGNORECASE)
_STEM = re.compile(r"(?:^|\.)stem\.proj$")
"""timm's patch embedding by another name."""

_BANKS = (("other", "attention"), ("other", "mlp"))

# A last axis this short is taken for a convolution's kernel where the name says nothing.
_SHORT = 16

# Stems of convolutions have kernels of at most this size; larger ones over pixels are patches.
_LARGEST_STEM = 7


class Piece(Struct, frozen=True, gc=False):
    """A matrix of a tensor: its role, how it is cut, and its name among the parts of its tensor."""

    role: Role
    family: Family
    slicer: Slicer
    part: str | None = None


def cut(survey: Survey, name: str) -> tuple[list[Piece], str | None]:
    """Cut a tensor into its matrices.

    Args:
        survey: the checkpoint.
        name: one of its tensors, of two axes or more.

    Returns:
        The matrices in stored order; the reason why a fused tensor is left whole, None for any other.
    """
    shape, rule, path = survey.shapes[name], survey.rules[name], survey.names[name].path
    if len(shape) == 2:
        return _matrix(survey, name, (shape[0], shape[1]))
    role = rule.role if rule is not None else None
    is_convolution = _names_convolution(path, numbered(name))
    if rule is not None and len(shape) in (3, 4) and _has_axis(rule, shape):
        return _side_by_side(rule, shape), None
    if len(shape) == 3 and not is_convolution and _is_expert(path, rule, shape):
        return _experts(survey, name)
    if not is_convolution:
        shape = _without_leading_ones(shape)
    if len(shape) == 2 or (set(shape[2:]) == {1} and _is_linear(rule)):
        return _matrix(survey, name, (shape[0], shape[1]))
    is_short = shape[-1:] <= (_SHORT,)
    if rule is not None and not is_convolution and _is_bank(rule, shape):
        return [_bank(rule, shape)], None
    if is_short and len(shape) == 3 and shape[1] == 1:
        is_convolution = True
    if is_convolution or len(shape) > 3 or (is_short and role in (None, "other", "conv")):
        return [_convolution(survey, name, shape, is_convolution)], None
    return [_cube(survey, name, shape)], None


@lru_cache(maxsize=65536)
def _names_convolution(path: str, pattern: str) -> bool:
    return "conv" in ".".join([*path.split(".")[-3:], *pattern.split(".")[-2:]]).lower()


def _matrix(survey: Survey, name: str, shape: tuple[int, int]) -> tuple[list[Piece], str | None]:
    rule = survey.rules[name]
    if rule is None:
        return [Piece("other", "other", whole(shape))], None
    tensor = _tensor(survey, name, shape, rule)
    n_experts = fused.experts(tensor)
    if n_experts is not None and shape[0] % n_experts == 0:
        return _merged(rule, (n_experts, shape[0] // n_experts, shape[1])), None
    if name in survey.merged:
        merged = _merged_halves if _is_doubled(survey, name) else _merged
        return merged(rule, survey.merged[name]), None
    return _parts(tensor)


def _parts(tensor: fused.Tensor, index: int | None = None) -> tuple[list[Piece], str | None]:
    """Cut a matrix into its parts; give the matrix itself where it has none or they cannot be told apart."""
    rule = tensor.rule
    if not rule.parts:
        return [Piece(rule.role, rule.kind, whole(tensor.shape, index))], None
    try:
        parts = fused.split(tensor, index)
    except fused.UnknownLayout as error:
        return [Piece(rule.role, rule.kind, whole(tensor.shape, index))], str(error)
    return [Piece(role, FAMILY[role], slicer, role) for role, slicer in parts], None


def _experts(survey: Survey, name: str) -> tuple[list[Piece], str | None]:
    """Cut a stack [experts, rows, cols] into slices, each of which is read alone."""
    n_experts, rows, cols = survey.shapes[name]
    rule = survey.rules[name] or Rule("", family="mlp")
    tensor = _tensor(survey, name, (rows, cols), rule)
    pieces: list[Piece] = []
    problem: str | None = None
    for index in range(n_experts):
        parts, problem = _parts(tensor, index)
        pieces += [replace(piece, part=_expert(index, piece.part)) for piece in parts]
    return pieces, problem


def _has_axis(rule: Rule, shape: Shape) -> bool:
    """Tell whether the parts of a fused tensor have an axis of their own."""
    n_parts = len(rule.parts)
    return n_parts > 0 and (
        shape[0] == n_parts if rule.layout == "stacked" else rule.kind == "attention" and shape.count(n_parts) == 1
    )


def _side_by_side(rule: Rule, shape: Shape) -> list[Piece]:
    """Cut parts that have an axis of their own: [3, rows, cols], [d, 3, heads, head_dim], [2, heads, d, head_dim]."""
    axis = shape.index(len(rule.parts))
    rest = shape[:axis] + shape[axis + 1 :]
    is_middle = len(rest) == 3 and rest[1] > max(rest[0], rest[2])
    rows = rest[0] * rest[2] if is_middle else rest[0] if _longest_end(rest) == 0 else prod(rest[:-1])
    sides = (1, rows, prod(rest) // rows)
    axes = (0, 2, 1) if is_middle else None
    select = (slice(None),) * axis
    slicers = [
        Slicer(sides, i, axes=axes) if axis == 0 else Slicer(sides, select=(*select, i), axes=axes)
        for i in range(len(rule.parts))
    ]
    return [Piece(role, FAMILY[role], slicer, role) for role, slicer in zip(rule.parts, slicers, strict=True)]


def _is_bank(rule: Rule, shape: Shape) -> bool:
    """Tell whether four axes are matrices of several kinds and layers: no kernel is as large as their last two."""
    return len(shape) == 4 and (rule.role, rule.kind) in _BANKS and min(shape[2:]) > _SHORT


def _bank(rule: Rule, shape: Shape) -> Piece:
    """Cut a tensor [layers, kinds, rows, cols] of whole matrices; their eigenvalues are pooled."""
    n_slices, rows, cols = shape[0] * shape[1], shape[2], shape[3]
    return Piece(rule.role, rule.kind, Slicer((n_slices, rows, cols)))


def _is_linear(rule: Rule | None) -> bool:
    """Tell whether a convolution that reads one position is a linear map."""
    if rule is None or rule.role in ("embed", "conv"):
        return False
    return rule.role != "other" or rule.kind == "attention" or bool(rule.parts)


def _is_expert(path: str, rule: Rule | None, shape: Shape) -> bool:
    """Tell whether three axes are a stack of experts: by name, or because an MLP has no other use for them."""
    return _EXPERTS.search(path) is not None or (rule is not None and rule.kind == "mlp" and shape[-1] > _SHORT)


def _merged(rule: Rule, view: Shape) -> list[Piece]:
    """Cut the experts of a tensor of two axes that lies in memory as [experts, rows, cols]."""
    n_experts, rows, cols = view
    return [
        Piece(rule.role, rule.kind, Slicer((1, rows, cols), view=view, select=(i,)), _expert(i))
        for i in range(n_experts)
    ]


def _merged_halves(rule: Rule, view: Shape) -> list[Piece]:
    """Cut such experts each into gate and up, one after the other along its columns."""
    n_experts, rows, cols = view[0], view[1], view[2] // 2
    halves = (slice(cols), slice(cols, None))
    return [
        Piece(role, FAMILY[role], Slicer((1, rows, cols), view=view, select=(i, slice(None), half)), _expert(i, role))
        for i in range(n_experts)
        for role, half in zip(rule.halves, halves, strict=True)
    ]


def _is_doubled(survey: Survey, name: str) -> bool:
    """Tell whether Megatron's first matrices of all experts hold gate and up: twice as wide as the second take."""
    holder, _, last = name.rpartition(".")
    second = survey.merged.get(f"{holder}.weight2")
    return last == "weight1" and second is not None and survey.merged[name][2] == 2 * second[1]


def _tensor(survey: Survey, name: str, shape: tuple[int, int], rule: Rule) -> fused.Tensor:
    follows: Role = "o" if rule.kind == "attention" else "down"
    output = survey.output(name, follows)
    width = survey.widths.get(survey.names[name].block, UNKNOWN).size
    if rule.role == "up" and not rule.parts and fused.is_doubled(shape, output, width):
        rule = replace(rule, parts=rule.halves)
    return fused.Tensor(
        name=survey.names[name],
        shape=shape,
        rule=rule,
        output=None if output is None else (output[-2], output[-1]),
        config=survey.sections(survey.names[name].component),
        architectures=survey.architectures,
        transposed=is_kernel(name),
    )


def _convolution(survey: Survey, name: str, shape: Shape, is_named: bool) -> Piece:
    """Cut a convolution: a patch embedding is one flat matrix, others have one matrix for each kernel position."""
    rule, path = survey.rules[name], survey.names[name].path
    spatial, out = (shape[:-2], len(shape) - 1) if is_kernel(name) else (shape[2:], 0)
    is_embedding = rule is not None and rule.role == "embed"
    least = _LARGEST_STEM if is_embedding and is_named else 1 if _STEM.search(path) else None
    is_first = least is not None and shape[1] == 3 and min(spatial) > least
    if _PATCH.search(path) or is_first or _is_patch(survey, name, spatial):
        return Piece("embed", "embedding", unfold(shape, out))
    if is_embedding and not is_named:
        return Piece("embed", "embedding", unfold(shape, _longest_end(shape)))
    slicer = Slicer((prod(spatial), shape[-2], shape[-1])) if is_kernel(name) else kernels(shape)
    return Piece("other" if survey.names[name].context == "memory" else "conv", "other", slicer)


def _cube(survey: Survey, name: str, shape: Shape) -> Piece:
    """Cut a tensor of three axes and no kernel.

    It is a projection or table with one axis split in two, or a stack of matrices. In a projection that is stored
    transposed for each head the axis that is not split lies in the middle.
    """
    rule = survey.rules[name]
    if rule is None:
        return Piece("other", "other", stack(shape, shape.index(min(shape))))
    if rule.kind in ("attention", "embedding"):
        is_middle = rule.kind == "attention" and shape[1] > max(shape[0], shape[2])
        axis = 0 if _PATCH.search(survey.names[name].path) else 1 if is_middle else _longest_end(shape)
        return Piece(rule.role, rule.kind, unfold(shape, axis))
    return Piece(rule.role, rule.kind, stack(shape, shape.index(min(shape))))


def _is_patch(survey: Survey, name: str, kernel: Shape) -> bool:
    """Tell whether a kernel of two or more axes is as large as the config's patches."""
    for part in survey.sections(survey.names[name].component or "vision"):
        size = part.get("patch_size")
        if size is not None:
            return len(kernel) > 1 and size in (list(kernel), kernel[-1])
    return False


def _longest_end(shape: Shape) -> int:
    """Choose the first or the last axis, whichever is longer: it is the one that no reshape has split."""
    return 0 if shape[0] > shape[-1] else len(shape) - 1


def _without_leading_ones(shape: Shape) -> Shape:
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _expert(index: int, part: str | None = None) -> str:
    return f"expert={index}" if part is None else f"expert={index}.{part}"
