"""The base model's name for what an adapter names: prefixes differ between model classes, kohya's dots are gone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from specdiag.checkpoint.adapters.names import flattened
from specdiag.errors import SourceError

_MOST_ENDS = 32


class Names:
    """The names of a base model, to be found by their ends."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_end: dict[str, list[str]] = defaultdict(list)
        self._flat: dict[str, list[str]] = defaultdict(list)
        for name in dict.fromkeys(names):
            for end in _ends(name):
                self._by_end[end].append(name)
                self._flat[end.replace(".", "_")].append(name)
        self._names = {name for known in self._by_end.values() for name in known}

    def find(self, name: str) -> str | None:
        """The same name, or else the only one that ends in it, or the longest that it ends in; None without one.

        Raises:
            SourceError: several end in it.
        """
        if name in self._names:
            return name
        is_flat = "." not in name.removesuffix(".weight")
        longer = self._flat.get(flattened(name), []) if is_flat else self._by_end.get(name, [])
        if len(longer) > 1:
            raise SourceError(f"the adapter's '{name}' may be {' or '.join(longer[:4])} in its base model")
        shorter = (end for end in _ends(name) if end in self._names)
        return next(iter(longer), None) or next(shorter, None)


def _ends(name: str) -> Iterable[str]:
    """The name without its first 0, 1, 2, ... segments, the leaf alone left out; of very many the last ones."""
    segments = name.split(".")
    return (".".join(segments[i:]) for i in range(max(0, len(segments) - _MOST_ENDS), max(1, len(segments) - 1)))
