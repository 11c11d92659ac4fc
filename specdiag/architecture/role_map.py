"""A user's role map: roles of names that the rules do not know, and the wiring of architectures that are not listed."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from specdiag.architecture.wiring import Wiring
from specdiag.errors import UsageError
from specdiag.files import read_whole, shortened, toml_decoder
from specdiag.records import FAMILIES, ROLES, Family, Role
from specdiag.text.globs import fits

LIMIT = 1 << 20
"""Bytes of the largest role map that is read."""


class MapRule(Struct, frozen=True, forbid_unknown_fields=True):
    """A rule of a user's role map."""

    pattern: str
    role: Role
    family: Family | None = None
    layer: int | None = None


class RoleMap(Struct, frozen=True, forbid_unknown_fields=True):
    """A user's role map: roles of names, and the wiring of architectures."""

    rule: tuple[MapRule, ...] = ()
    wiring: tuple[Wiring, ...] = ()


_decode_role_map = toml_decoder(RoleMap)


def load_role_map(path: Path, names: list[str]) -> dict[str, MapRule]:
    """Read a role map.

    Args:
        path: a TOML file of `[[rule]]` tables with `pattern` (a glob on the whole name), `role`, and
            optionally `family` and `layer`.
        names: every name of the checkpoint.

    Returns:
        The first rule that fits, for each name that one fits.

    Raises:
        UsageError: the file cannot be read, holds an unknown key, role or family, or a pattern fits no name.
    """
    rules = _read_role_map(path).rule
    for rule in rules:
        if not fits(names, [rule.pattern]):
            raise UsageError(
                f"The pattern {shortened(repr(rule.pattern))} in the role map {path} matches no tensor. Patterns are "
                f"globs on the whole name, such as {shortened(repr(names[0] if names else 'blocks.*.weight'))}."
            )
    first: dict[str, MapRule] = {}
    for name in names:
        for rule in rules:
            if fits([name], [rule.pattern]):
                first[name] = rule
                break
    return first


def load_wirings(path: Path) -> tuple[Wiring, ...]:
    """Read the `[[wiring]]` tables of a role map.

    Args:
        path: the TOML file.

    Raises:
        UsageError: the file cannot be read, or an entry is not valid.
    """
    return _read_role_map(path).wiring


def _read_role_map(path: Path) -> RoleMap:
    try:
        found = _decode_role_map(read_whole(path, LIMIT))
    except OSError as error:
        raise UsageError(f"The role map {path} cannot be read: {error.strerror}.") from error
    except msgspec.DecodeError as error:
        raise UsageError(
            f"The role map {path} is not valid: {error}. A [[rule]] takes pattern, role, family and layer. "
            f"Roles are {', '.join(ROLES)}; families are {', '.join(FAMILIES)}. A [[wiring]] takes "
            f"{', '.join(Wiring.__struct_fields__)}: see docs/function.md."
        ) from error
    if not (found.rule or found.wiring):
        raise UsageError(f"The role map {path} holds neither a [[rule]] nor a [[wiring]].")
    return found
