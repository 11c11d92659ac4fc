"""The rules that turn names into roles, decoded from data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache
from importlib.resources import files
from typing import Literal, TypeVar

import msgspec
from msgspec import Struct

from specdiag.files import Table, toml_decoder
from specdiag.records import Family, Role

FAMILY: dict[Role, Family] = {
    "q": "attention", "k": "attention", "v": "attention", "kv": "attention", "o": "attention",
    "gate": "mlp", "up": "mlp", "down": "mlp",
    "embed": "embedding", "head": "embedding",
    "router": "other", "conv": "other", "ssm": "other", "other": "other",
}  # fmt: skip

# What may follow the name of a module without changing what it is: to_out.0, q_proj_weight.
_TAIL = r"(?:_weight)?(?:\.\#)*"

Layout = Literal["contiguous", "grouped", "interleaved", "stacked", "unknown"]


class _Entry(Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """Base of the entries in the data files."""


class Skip(_Entry, frozen=True):
    """A name that is no weight matrix."""

    match: str
    reason: str

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Fits the end of a full name with its indices written `#`."""
        return re.compile(rf"(?:^|\.)(?:{self.match})$", re.IGNORECASE)


class Context(_Entry, frozen=True):
    """Words that say what a module contains."""

    name: str
    words: tuple[str, ...]
    weak: bool = False

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Fits each of the words within a segment in snake case."""
        return re.compile(rf"(?:(?<=_)|^)(?:{'|'.join(self.words)})(?=_|\d|$)")


class Label(_Entry, frozen=True):
    """A segment that names a piece of the model."""

    name: str
    match: str

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Fits the whole segment in snake case."""
        return re.compile(self.match)


class Rule(_Entry, frozen=True):
    """The role of the names that fit, or the parts of a fused tensor."""

    match: str
    role: Role = "other"
    family: Family | None = None
    parts: tuple[Role, ...] = ()
    layout: Layout | None = None
    halves: tuple[Role, ...] = ("gate", "up")
    """The parts where the shape shows that an `up` is two in one."""
    within: tuple[str, ...] = ()
    """Contexts where the rule holds; any where none is given."""
    not_within: tuple[str, ...] = ()
    beside: str | None = None
    """A module that must lie beside this one."""
    sequence: Literal["first", "last"] | None = None
    """Position among the weights of a sequential container."""
    vocabulary: bool = False
    """True where the tensor must have one row a token."""
    weak: bool = False
    """True where the name leaves the role open: the structure of its block may decide it."""

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Fits the end of a module path."""
        return re.compile(rf"(?:^|\.)(?:{self.match}){_TAIL}$", re.IGNORECASE)

    @cached_property
    def sibling(self) -> re.Pattern[str] | None:
        """Fits the whole name of the sibling that must exist."""
        return None if self.beside is None else re.compile(self.beside, re.IGNORECASE)

    @property
    def kind(self) -> Family:
        """The family: the one given, or that of the role."""
        return self.family or FAMILY[self.parts[0] if self.parts else self.role]


class Gated(_Entry, frozen=True):
    """The names of a gated MLP in a public code base, which do not say which is the gate."""

    gate: str
    up: str
    down: str


class Rules(Struct, frozen=True, forbid_unknown_fields=True):
    """data/rules.toml."""

    skips: tuple[Skip, ...] = msgspec.field(name="skip")
    contexts: tuple[Context, ...] = msgspec.field(name="context")
    rules: tuple[Rule, ...] = msgspec.field(name="rule")
    gated: tuple[Gated, ...]
    components: tuple[Label, ...] = msgspec.field(name="component")
    sides: tuple[Label, ...] = msgspec.field(name="side")


class Fused(_Entry, frozen=True):
    """How the fused tensors of an architecture lie."""

    model_type: tuple[str, ...]
    match: str
    layout: Layout
    signature: str | None = None
    when: Table = {}
    groups: int | tuple[str, ...] = ()
    heads: int | None = None
    parts: tuple[Role, ...] = ()

    @cached_property
    def mark(self) -> re.Pattern[str] | None:
        """Fits the end of a full name that only this architecture has."""
        return None if self.signature is None else re.compile(rf"(?:^|\.)(?:{self.signature})$")

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Fits the end of a module path."""
        return re.compile(rf"(?:^|\.)(?:{self.match}){_TAIL}$", re.IGNORECASE)


class Architectures(Struct, frozen=True, forbid_unknown_fields=True):
    """data/architectures.toml."""

    fused: tuple[Fused, ...]


_T = TypeVar("_T")


def _load(file: str, kind: type[_T]) -> _T:
    return toml_decoder(kind)((files("specdiag.architecture") / "data" / file).read_bytes())


BUILTIN = _load("rules.toml", Rules)
ARCHITECTURES = _load("architectures.toml", Architectures)


def find_rule(
    path: str, context: str, siblings: Callable[[], Iterable[str]], position: str | None, is_vocabulary: bool
) -> Rule | None:
    """Find the first rule that fits.

    Args:
        path: the module path, indices written `#`.
        context: what the module lies in.
        siblings: gives the names of the modules beside it, where a rule asks for them.
        position: `first` or `last` among the weights of a sequential container, or None.
        is_vocabulary: whether the tensor has one row a token.

    Returns:
        The rule, None where none fits.
    """
    for rule in _fitting(path, context, position, is_vocabulary):
        if rule.sibling is None or any(rule.sibling.fullmatch(name) for name in siblings()):
            return rule
    return None


@lru_cache(maxsize=65536)
def _fitting(path: str, context: str, position: str | None, is_vocabulary: bool) -> tuple[Rule, ...]:
    """List the rules that fit as far as no sibling is asked for, up to the first that asks for none."""
    found: list[Rule] = []
    for rule in BUILTIN.rules:
        if (
            (not rule.within or context in rule.within)
            and context not in rule.not_within
            and (rule.sequence is None or rule.sequence == position)
            and (is_vocabulary or not rule.vocabulary)
            and rule.pattern.search(path)
        ):
            found.append(rule)
            if rule.sibling is None:
                break
    return tuple(found)


@lru_cache(maxsize=65536)
def find_skip(path: str) -> str | None:
    """Explain why a tensor of this name is no weight matrix.

    Args:
        path: a full name, indices written `#`.

    Returns:
        The reason, None where the tensor may be a weight matrix.
    """
    return next((skip.reason for skip in BUILTIN.skips if skip.pattern.search(path)), None)
