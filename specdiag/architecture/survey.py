"""The names and shapes of a checkpoint taken together: each tensor's rule, block and neighbours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial

from specdiag.architecture import config as settings
from specdiag.architecture import depth as places
from specdiag.architecture import fused
from specdiag.architecture.doubts import Doubt
from specdiag.architecture.names import Name, Neighbours, is_kernel, numbered, parse
from specdiag.architecture.rules import Fused, Rule, find_rule
from specdiag.architecture.structure import refine
from specdiag.architecture.widths import Width
from specdiag.records import Role

Shape = tuple[int, ...]

_TOKENS = re.compile(r"\b(embed_tokens|embed_in|wte|shared|tok(ens?)?_emb\w*|word_emb\w*)\b", re.IGNORECASE)
_OUTPUTS: tuple[Role, ...] = ("o", "down")


@dataclass(frozen=True, slots=True)
class Survey:
    """A checkpoint's tensors, as far as names and shapes go.

    Attributes:
        shapes: the shape of every tensor that may hold weight matrices.
        names: their names taken apart.
        rules: the rule of each, None where no rule knows it.
        layers: the block index of each.
        components: the piece of the model of each.
        outputs: shape of the nearest `o` and `down` below each module path.
        config: config.json, empty without one.
        architectures: the entries of architectures.toml that hold.
        widths: the residual width by the path of the block.
        merged: (experts, rows, cols) of each tensor of two axes that holds a matrix of every expert.
        doubts: what neither names nor shapes tell.
    """

    shapes: dict[str, Shape]
    names: dict[str, Name]
    rules: dict[str, Rule | None]
    layers: dict[str, int | None]
    components: dict[str, str | None]
    outputs: dict[tuple[str, Role], Shape]
    config: Mapping[str, object]
    architectures: tuple[Fused, ...]
    widths: dict[str, Width]
    merged: dict[str, Shape]
    doubts: list[Doubt]
    _chains: dict[str | None, list[Mapping[str, object]]] = field(
        default_factory=dict[str | None, list[Mapping[str, object]]], repr=False
    )

    def sections(self, component: str | None) -> list[Mapping[str, object]]:
        """Look up the sections of the config that describe a piece of the model.

        Args:
            component: as for `config.sections`.
        """
        if component not in self._chains:
            self._chains[component] = settings.sections(self.config, component)
        return self._chains[component]

    def output(self, name: str, role: Role) -> Shape | None:
        """Find the shape of the projection that follows a tensor in its module or block.

        Args:
            name: of the tensor.
            role: `o` or `down`.

        Returns:
            None where there is no such projection.
        """
        outputs = (self.outputs.get((path, role)) for path in _upwards(self.names[name]))
        return next((shape for shape in outputs if shape is not None), None)


def survey(shapes: dict[str, Shape], all_shapes: Mapping[str, Shape], config: Mapping[str, object]) -> Survey:
    """Read the names of a checkpoint.

    Args:
        shapes: the tensors that may hold weight matrices.
        all_shapes: the shape of every tensor of the checkpoint.
        config: config.json, empty without one.
    """
    neighbours = Neighbours(all_shapes)
    names = {name: parse(name, neighbours) for name in shapes}
    structure = refine(shapes, names, _by_name(shapes, names, neighbours, config), all_shapes)
    return Survey(
        shapes=shapes,
        names=names,
        rules=structure.rules,
        layers=places.layers(names),
        components=places.components(names),
        outputs=_outputs(shapes, names, structure.rules),
        config=config,
        architectures=fused.applicable(config, map(numbered, all_shapes)),
        widths=structure.widths,
        merged=structure.merged,
        doubts=structure.doubts,
    )


def _by_name(
    shapes: dict[str, Shape],
    names: dict[str, Name],
    neighbours: Neighbours,
    config: Mapping[str, object],
) -> dict[str, Rule | None]:
    vocabulary = settings.number(settings.sections(config, "text"), ("vocab_size",)) or max(
        (shape[0] for name, shape in shapes.items() if len(shape) == 2 and _counts_tokens(numbered(name))), default=0
    )
    ends = _sequence_ends(names)
    return {
        name: find_rule(
            names[name].path,
            names[name].context,
            partial(neighbours.below, names[name].parent),
            ends.get(name),
            _has_vocabulary(name, shape, vocabulary),
        )
        for name, shape in shapes.items()
    }


@lru_cache(maxsize=65536)
def _counts_tokens(pattern: str) -> bool:
    """Tell a table of tokens by its name with every index written `#`."""
    return _TOKENS.search(pattern) is not None


def _has_vocabulary(name: str, shape: Shape, vocabulary: int) -> bool:
    """Tell whether a tensor has a row for each token, or a column where it is stored (in, out)."""
    tokens, width = (shape[-1], shape[0]) if is_kernel(name) else shape[:2]
    return tokens == vocabulary and tokens > width


def _sequence_ends(names: dict[str, Name]) -> dict[str, str]:
    """Mark the outermost weights of every sequential container of two or more as `first` and `last`."""
    containers: dict[str, list[tuple[int, str]]] = {}
    for key, name in names.items():
        if name.sequence is not None:
            containers.setdefault(f"{name.parent}.{name.path.removesuffix('.#')}", []).append((name.sequence, key))
    ends: dict[str, str] = {}
    for members in containers.values():
        if len(members) > 1:
            ends[min(members)[1]] = "first"
            ends[max(members)[1]] = "last"
    return ends


def _outputs(
    shapes: dict[str, Shape], names: dict[str, Name], rules: dict[str, Rule | None]
) -> dict[tuple[str, Role], Shape]:
    outputs: dict[tuple[str, Role], Shape] = {}
    for key, rule in rules.items():
        if rule is not None and rule.role in _OUTPUTS:
            for path in _upwards(names[key]):
                outputs.setdefault((path, rule.role), shapes[key])
    return outputs


def _upwards(name: Name) -> Iterator[str]:
    """Yield the path that holds a module and the two above it, but none outside of its block."""
    path = name.parent
    for _ in range(3):
        yield path
        if path == name.block:
            return
        path = path.rpartition(".")[0]
