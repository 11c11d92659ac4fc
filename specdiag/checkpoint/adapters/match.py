"""Finding the base model's name of a module that an adapter names.

Prefixes differ between model classes, kohya's scripts write underscores for dots, and transformers 5 has new names for
the modules of encoders.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from specdiag.checkpoint.adapters.names import flattened
from specdiag.checkpoint.adapters.versions import places
from specdiag.errors import SourceError

_MOST_ENDS = 32


class Names:
    """The names of a base model, to be found by their ends."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_end: dict[str, list[str]] = defaultdict(list)
        self._places: dict[str, list[str]] = defaultdict(list)
        self._flat: dict[str, list[str]] = defaultdict(list)
        for name in dict.fromkeys(names):
            for end in _ends(name):
                self._by_end[end].append(name)
                self._flat[end.replace(".", "_")].append(name)
            for spot in places(name):
                self._places[spot].append(name)
        self._names = {name for ends in self._by_end.values() for name in ends}

    def find(self, name: str) -> str | None:
        """Find the base model's name of what an adapter names.

        Args:
            name: a parameter as the adapter names it.

        Returns:
            The same name where there is one. Else the only name that ends in `name`, the longest that `name` ends in,
                or the only one of the same place in an encoder.
            None without one.

        Raises:
            SourceError: several names end in `name`.
        """
        if name in self._names:
            return name
        is_flat = "." not in name.removesuffix(".weight")
        longer = self._flat.get(flattened(name), []) if is_flat else self._by_end.get(name, [])
        if len(longer) > 1:
            raise SourceError(f"the adapter's '{name}' may be {' or '.join(longer[:4])} in its base model")
        shorter = (end for end in _ends(name) if end in self._names)
        return next(iter(longer), None) or next(shorter, None) or self._at_its_place(name)

    def _at_its_place(self, name: str) -> str | None:
        """Find the one matrix of the same place that has the name of another version of transformers.

        One of the two may lack the name of the model in front, not have another.
        """
        for spot in (own := places(name)):
            found = self._places.get(spot, [])
            if len(found) == 1 and (spot == own[0] or len(places(found[0])) == 1):
                return found[0]
        return None


def _ends(name: str) -> Iterable[str]:
    """Yield a name without its first 0, 1, 2, ... segments.

    The leaf alone is left out, and of very long names all but the last ends.
    """
    segments = name.split(".")
    return (".".join(segments[i:]) for i in range(max(0, len(segments) - _MOST_ENDS), max(1, len(segments) - 1)))
