"""The layers of a report, with every tensor of each: matrices, norm gains, biases."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from specdiag.records import ModuleRecord
from specdiag.report import SpectralReport

_NUMBER = re.compile(r"(?<![^.])([0-9]{1,9})(?![^.])")


Member = tuple[str, str | None]
"""The name of a matrix after the number of its layer, and its part."""


@dataclass
class Layer:
    """The tensors of a layer, under their names after its number.

    Attributes:
        matrices: records by name and part.
        small: shapes of tensors of one axis that were left out, by name.
    """

    matrices: dict[Member, ModuleRecord] = field(default_factory=dict[Member, ModuleRecord])
    small: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])

    def all_of(self, role: str, *, experts: bool = False) -> list[ModuleRecord]:
        """List the matrices of a role, apart from those of experts and of cross attention.

        Args:
            role: such as `gate`.
            experts: True for those of experts alone.
        """
        return [
            r for (name, part), r in self.matrices.items()
            if r.role == role and not r.cross_attention and is_expert(name, part) == experts
        ]  # fmt: skip


def stacks(report: SpectralReport) -> dict[str, dict[int, Layer]]:
    """Collect the numbered layers that hold attention, by the name before their number.

    Args:
        report: of a whole checkpoint.
    """
    found: dict[str, dict[int, Layer]] = {}
    for r in report:
        if r.layer is not None and r.family != "embedding":
            for stem, number, rest in _split(r.name, r.layer):
                found.setdefault(stem, {}).setdefault(number, Layer()).matrices[rest, r.part] = r
    for s in report.skipped:
        for match in _NUMBER.finditer(s.name):
            if match.start() and s.name[: match.start()] in found and len(s.shape) == 1:
                layer = found[s.name[: match.start()]].get(int(match[1]))
                if layer is not None:
                    layer.small[s.name[match.end() + 1 :]] = s.shape
                break
    return {
        stem: layers
        for stem, layers in found.items()
        if any(r.family == "attention" for layer in layers.values() for r in layer.matrices.values())
    }


def is_expert(name: str, part: str | None) -> bool:
    """Tell whether a matrix belongs to an expert.

    Args:
        name: after the number of its layer.
        part: the part of a stacked tensor.
    """
    return "expert" in name or (part is not None and part.startswith("expert"))


def _split(name: str, layer: int) -> Iterator[tuple[str, int, str]]:
    """Split a name at the number of its layer."""
    for match in _NUMBER.finditer(name):
        if int(match[1]) == layer:
            yield name[: match.start()], layer, name[match.end() + 1 :]
            return
