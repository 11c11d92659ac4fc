"""The modules that an adapter's settings name, by the rules of PEFT's `check_target_module_exists`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import cast

from specdiag.checkpoint.adapters.patterns import Patterns

_LONGEST_NUMBER, _MOST_ENDS = 9, 32


class Targets:
    """Modules that are adapted by the settings."""

    def __init__(self, settings: Mapping[str, object]) -> None:
        """Take the settings; patterns are read when a module is looked for.

        Args:
            settings: adapter_config.json.
        """
        self._settings = settings
        self._declared = settings.get("target_modules")

    @property
    def are_listed(self) -> bool:
        """True where the settings tell which modules are adapted."""
        if isinstance(self._declared, str):
            return self._declared.lower() not in ("", "all-linear")
        return isinstance(self._declared, list) and bool(cast("list[object]", self._declared))

    @property
    def entries(self) -> list[str]:
        """The names that the settings list; none of an expression."""
        return _texts(self._declared) if isinstance(self._declared, list) else []

    def include(self, module: str) -> bool:
        """Tell whether PEFT would adapt a module.

        Args:
            module: its path in the base model.

        Raises:
            SourceError: an expression cannot be followed.
        """
        if self._excludes(module):
            return False
        if isinstance(self._declared, str):
            return _fits(self._expression, module)
        if module in self._paths:
            return True
        return not self._paths.isdisjoint(ends(module)) and self._is_of_a_layer(module)

    def layer(self, module: str) -> int | None:
        """Find the number of the layer that holds a module; None outside of the layers.

        Args:
            module: its path in the base model.
        """
        parts = module.split(".")
        words = _texts(self._settings.get("layers_pattern"))
        for i, part in enumerate(parts[1:-1], 1):
            if _is_number(part) and (not words or parts[i - 1] in words):
                return int(part)
        return None

    @property
    def layers(self) -> list[object] | None:
        """The chosen layers; None for all."""
        chosen = self._settings.get("layers_to_transform")
        layers = cast("list[object]", chosen) if isinstance(chosen, list) else [chosen]
        return None if chosen is None or not layers else layers

    def _is_of_a_layer(self, module: str) -> bool:
        return self.layers is None or self.layer(module) in self.layers

    def _excludes(self, module: str) -> bool:
        excluded = self._settings.get("exclude_modules")
        if isinstance(excluded, str):
            return bool(excluded) and _fits(self._exclusion, module)
        return not frozenset(_texts(excluded)).isdisjoint(ends(module))

    @cached_property
    def _expression(self) -> Patterns:
        return _whole(str(self._declared))

    @cached_property
    def _exclusion(self) -> Patterns:
        return _whole(str(self._settings.get("exclude_modules")))

    @cached_property
    def _paths(self) -> frozenset[str]:
        parameters = (path.rpartition(".")[0] for path in _texts(self._settings.get("target_parameters")))
        return frozenset((*_texts(self._declared), *parameters))


def ends(module: str) -> Iterator[str]:
    """Yield a path without its first 0, 1, 2, ... segments.

    Args:
        module: a path.
    """
    parts = module.split(".")
    return (".".join(parts[first:]) for first in range(len(parts) - min(len(parts), _MOST_ENDS), len(parts)))


def split_at_layer(module: str) -> tuple[str, int, str] | None:
    """Split a path at its first number: what stands before, the number, what follows; None without one.

    Args:
        module: a path.
    """
    parts = module.split(".")
    for i, part in enumerate(parts[1:-1], 1):
        if _is_number(part):
            return ".".join(parts[:i]), int(part), ".".join(parts[i + 1 :])
    return None


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdecimal() and len(part) < _LONGEST_NUMBER


def _whole(expression: str) -> Patterns:
    return Patterns({f"^(?:{expression})": True})


def _fits(expression: Patterns, module: str) -> bool:
    return bool(expression.first(module, False))


def _texts(value: object) -> list[str]:
    entries = cast("list[object]", value) if isinstance(value, list) else [value]
    return [entry for entry in entries if isinstance(entry, str)]
