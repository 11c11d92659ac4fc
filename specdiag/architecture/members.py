"""The matrices of a block as structure sees them: what each is called, where it lies, whether its role is open."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from msgspec import Struct

from specdiag.architecture.names import Name
from specdiag.architecture.rules import Rule
from specdiag.architecture.tokens import Word, is_plain, qkv_word
from specdiag.records import Role

_LEVELS = 5
"""Paths above a matrix in which its siblings are looked for."""
_SIDES: tuple[Role, ...] = ("gate", "up", "down")


class Member(Struct, frozen=True, gc=False):
    """A matrix of a block.

    Attributes:
        key: its full name.
        name: that name taken apart.
        shape: (rows, cols).
        rule: what its name says, None where that is nothing.
        stem: the module's own name.
        holder: the path of the module that holds it.
        word: `q`, `k`, ... where its name says so.
    """

    key: str
    name: Name
    shape: tuple[int, int]
    rule: Rule | None
    stem: str
    holder: str
    word: Word | None

    @classmethod
    def of(cls, key: str, name: Name, shape: tuple[int, int], rule: Rule | None) -> Member:
        """Describe a matrix.

        Args:
            key: its full name.
            name: that name taken apart.
            shape: (rows, cols).
            rule: what its name says.
        """
        stem = key[len(name.parent) + 1 :].partition(".")[0] if name.parent else key.partition(".")[0]
        holder = name.parent
        word = qkv_word(name)
        if word is not None and is_plain(stem):
            holder, _, stem = holder.rpartition(".")
        return cls(key, name, shape, rule, stem, holder, word)

    @property
    def is_open(self) -> bool:
        """True where its name decides nothing."""
        return self.rule is None or self.rule.weak

    @property
    def role(self) -> Role | None:
        """The role that its name gives it, None where that is open or it has parts."""
        return None if self.rule is None or self.rule.weak or self.rule.parts else self.rule.role

    @property
    def side(self) -> Role | None:
        """Its side of an MLP by its name: `gate`, `up`, `down`, or None."""
        return self.role if self.role in _SIDES else None

    @property
    def container(self) -> str:
        """The path of the list or module that it stands in."""
        return f"{self.holder}.{self.stem}" if self.is_sequential else self.holder

    @property
    def is_sequential(self) -> bool:
        """True where it stands in a list and has no name of its own."""
        return self.name.sequence is not None


def by_holder(members: Sequence[Member]) -> Iterator[tuple[str, list[Member]]]:
    """Yield each path within a block that holds several matrices, and these, from the innermost path outwards.

    Args:
        members: matrices of one block.
    """
    held: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        for path in _upwards(member.container, member.name.block):
            held[path].append(member)
    for path in sorted(held, key=lambda path: (-path.count("."), path)):
        if len(held[path]) > 1:
            yield path, held[path]


def _upwards(path: str, block: str) -> Iterator[str]:
    """Yield a path and those above it, up to the block."""
    for _ in range(_LEVELS):
        if len(path) < len(block):
            return
        yield path
        path = path.rpartition(".")[0]
