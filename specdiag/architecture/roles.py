"""The role of each tensor of a checkpoint and its cut into weight matrices, from names and shapes alone.

The rules are data: data/rules.toml for names, data/architectures.toml for what only the architecture can say.
No values are read, and nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec import Struct

from specdiag.architecture.biases import find_biases
from specdiag.architecture.cutting import Piece, cut
from specdiag.architecture.doubts import sentences
from specdiag.architecture.names import numbered
from specdiag.architecture.parametrised import parametrised_shapes, parts_with_reasons
from specdiag.architecture.role_map import MapRule, load_role_map
from specdiag.architecture.rules import Rule, find_skip
from specdiag.architecture.split import Slicer
from specdiag.architecture.survey import Shape, Survey, survey
from specdiag.records import ModuleRole
from specdiag.text import checks


class Part(Struct, frozen=True, gc=False):
    """A weight matrix of a stored tensor: its role, and how it is cut."""

    module: ModuleRole
    slicer: Slicer


@dataclass(frozen=True, slots=True)
class Modules:
    """The tensors of a checkpoint, sorted. Every name is in exactly one of `parts` and `skipped`.

    Attributes:
        parts: the matrices of each tensor that holds any, in stored order.
        skipped: why each other tensor holds none.
        notes: sentences for the report, such as on a fused tensor that could not be split.
    """

    parts: dict[str, tuple[Part, ...]]
    skipped: dict[str, str]
    notes: list[str]


def roles(
    shapes: Mapping[str, Sequence[int]], config: Mapping[str, object] | None = None
) -> dict[str, list[ModuleRole]]:
    """Name the role of every weight matrix of a checkpoint.

    Args:
        shapes: the shape of every tensor of the checkpoint by its name; a role depends on neighbouring tensors.
        config: config.json as a dict; without it, tensors that fuse q, k and v head by head stay whole.

    Returns:
        For each name one entry a part, in stored order; none for a tensor that is no weight matrix.

    Raises:
        UsageError: a name is no text, a shape has a size that is no whole number, or an argument is no mapping.

    Example:
        >>> roles({"layers.0.attn.q_proj.weight": (64, 64)})["layers.0.attn.q_proj.weight"][0].role
        'q'
    """
    checks.instance("shapes", shapes, Mapping, "of names to shapes")
    if config is not None:
        checks.instance("config", config, Mapping, "as config.json holds it")
    sizes = {
        checks.text("a name", name): checks.wholes(f"the shape of {name}", shape) for name, shape in shapes.items()
    }
    parts = modules(sizes, config).parts
    return {name: [part.module for part in parts.get(name, ())] for name in shapes}


def modules(
    shapes: Mapping[str, Sequence[int]],
    config: Mapping[str, object] | None = None,
    role_map: Path | None = None,
    *,
    trained: Container[str] = (),
    unread: Mapping[str, Shape] | None = None,
) -> Modules:
    """Find the weight matrices of a checkpoint, and how each is cut from its tensor.

    Args:
        shapes: the shape of each tensor by its name, of the whole checkpoint.
        config: config.json as a dict.
        role_map: a TOML file of rules that come before the built-in ones, see `role_map.load_role_map`.
        trained: names of tensors that are weights by their values, although their names sound like buffers.
        unread: names and shapes of weights whose values cannot be had; they get no part and no reason, but tell what
            lies beside them.

    Returns:
        The matrices, and the reason why each other tensor holds none.

    Raises:
        UsageError: the role map is not valid, or one of its patterns matches no tensor.
    """
    mapped = load_role_map(role_map, list(shapes)) if role_map is not None else {}
    sizes = {name: tuple(shape) for name, shape in shapes.items()}
    beside = parametrised_shapes(sizes) | dict(unread or {})
    everything = beside | sizes
    skipped = {
        name: why
        for name, shape in everything.items()
        if (why := _why_not(name, shape, name in mapped or name in trained))
    }
    skipped |= {
        name: why for name, why in (find_biases(sizes) | parts_with_reasons(sizes)).items() if name not in mapped
    }
    surveyed = survey({n: shape for n, shape in everything.items() if n not in skipped}, everything, config or {})
    for name in mapped.keys() & surveyed.rules.keys():
        surveyed.rules[name] = Rule("", role=mapped[name].role, family=mapped[name].family)
    parts: dict[str, tuple[Part, ...]] = {}
    problems: dict[str, str] = {}
    for name in (name for name in surveyed.shapes if name in sizes):
        pieces, problem = cut(surveyed, name)
        if all(min(piece.slicer.shape[1:]) < 2 for piece in pieces):
            skipped[name] = _too_thin(pieces)
            continue
        parts[name] = tuple(_part(surveyed, name, piece, mapped.get(name)) for piece in pieces)
        if problem is not None:
            problems[name] = problem
    notes = [*_notes(problems, parts), *sentences(surveyed.doubts)]
    return Modules(parts, {name: skipped[name] for name in sizes if name in skipped}, notes)


def _why_not(name: str, shape: Shape, is_weight: bool) -> str | None:
    """Say why a tensor is no weight matrix by name and shape; None where it may be one.

    A rule of the user overrides the name, and so do values that are no buffer's.
    """
    if 0 in shape:
        return "empty: a dimension is 0"
    if not shape:
        return "0-D: a single value"
    if len(shape) < 2:
        return "1-D: bias, norm or vector"
    return None if is_weight else find_skip(numbered(name))


def _too_thin(pieces: Sequence[Piece]) -> str:
    is_convolution = any(piece.role == "conv" for piece in pieces)
    return "depthwise or one-channel convolution: N < 2" if is_convolution else "N < 2: at most one eigenvalue"


def _part(surveyed: Survey, name: str, piece: Piece, mapped: MapRule | None) -> Part:
    layer = surveyed.layers[name] if mapped is None or mapped.layer is None else mapped.layer
    module = ModuleRole(
        role=piece.role,
        family=piece.family,
        layer=layer,
        component=surveyed.components[name],
        cross_attention=piece.family == "attention" and surveyed.names[name].cross,
        part=piece.part,
        recognised=surveyed.rules[name] is not None or (piece.role, piece.family) != ("other", "other"),
    )
    return Part(module, piece.slicer)


def _notes(problems: Mapping[str, str], parts: Mapping[str, Sequence[Part]]) -> list[str]:
    """Write a sentence for all fused tensors of a kind that were left whole."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for name, problem in problems.items():
        kinds.setdefault((numbered(name), problem), []).append(name)
    return [
        f"{names[0]}{f' and {len(names) - 1} more like it' if len(names) > 1 else ''} is fused and could not be split: "
        f"{problem}. Analysed as one matrix of role {parts[names[0]][0].module.role}."
        for (_, problem), names in kinds.items()
    ]
