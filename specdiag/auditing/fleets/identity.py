"""Identity of an audited model: while it is the same, its audit need not be made again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from specdiag.auditing.fleets.rows import FleetRow
from specdiag.checkpoint.fingerprint import fingerprint_files
from specdiag.checkpoint.formats import WEIGHT_SUFFIXES
from specdiag.checkpoint.other_files import names_below
from specdiag.checkpoint.source import Location, locate
from specdiag.errors import SourceError, SpecdiagError
from specdiag.files import read_whole
from specdiag.report import is_report
from specdiag.system.distributions import version

_MEANS = ("stream", "jobs", "memory", "cache")
"""Options that do not change what is found."""
_SOURCES = ("baseline", "base")
"""Options that name another model."""
_FILES = ("thresholds", "role_map", "reference")
_WRITTEN = (".parquet", ".pq", ".jsonl")
"""Endings of the files that are written while models are audited, perhaps into the folder of one."""


def fingerprint(source: str) -> str | None:
    """Hash the names, sizes and times of a model's files, without reading them.

    Args:
        source: a path or a hub id.

    Returns:
        SHA-256 in hexadecimal digits; None for a model of the hub, and where the files cannot be looked at.
    """
    try:
        path = locate(source).path
        return None if path is None else _of_path(path)
    except (SpecdiagError, OSError):
        return None


def is_current(model: FleetRow, settings: str, revision: str | None) -> bool:
    """Tell whether the audit of a model still holds: same model, settings and specdiag. Failures never do.

    The hub is asked for the commit of a model, unless a commit was named.

    Args:
        model: its row.
        settings: the options that it is to be audited with.
        revision: branch, tag or commit among them.
    """
    if (model.settings, model.specdiag) != (settings, version("specdiag")) or model.verdict in (None, "error"):
        return False
    try:
        place = locate(model.source, revision)
        if place.path is None:
            return model.commit == _commit(place)
        return model.fingerprint == _of_path(place.path)
    except (SpecdiagError, OSError):
        return False  # the audit will say why


def settings(options: Mapping[str, object]) -> str:
    """Write the options that decide what an audit finds, with the content of files and the state of models they name.

    Args:
        options: arguments of `audit`. Those that are None count as not given.
    """
    given = {name: value for name, value in options.items() if value is not None and name not in _MEANS}
    if given.get("reference_model"):
        given["transformers"] = _transformers()
    return ", ".join(f"{name}={_spelt(name, value)}" for name, value in sorted(given.items()))


def _spelt(name: str, value: object) -> str:
    text = repr(str(value) if isinstance(value, Path) else value)
    if name in _FILES:
        return f"{text} ({_digest(Path(str(value)))})"
    return f"{text} ({_state(str(value))})" if name in _SOURCES else text


def _state(source: str) -> str:
    try:
        place = locate(source)
        return _commit(place) if place.path is None else _of_path(place.path)[:16]
    except (SpecdiagError, OSError) as error:
        return str(error)


def _commit(place: Location) -> str:
    from huggingface_hub import constants

    from specdiag.checkpoint import hub
    from specdiag.checkpoint.stream import FULL_COMMIT, commit_of

    if place.revision is not None and FULL_COMMIT.fullmatch(place.revision):
        return place.revision
    repo = place.repo or ""
    return hub.resolve(repo, place.revision).commit if constants.HF_HUB_OFFLINE else commit_of(repo, place.revision)


def _of_path(path: Path) -> str:
    if is_report(path):
        return fingerprint_files([(path.name, path)])
    if path.is_dir() or not path.name.endswith(WEIGHT_SUFFIXES):  # an index, or .metadata: it names others
        folder = path if path.is_dir() else path.parent
        names = (name for name in names_below(folder)[0] if not name.endswith(_WRITTEN))
        return fingerprint_files((name, folder / name) for name in sorted(names))
    beside = sorted(path.parent.glob("*.json"))
    return fingerprint_files((other.name, other) for other in (path, *beside))


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(read_whole(path)).hexdigest()[:16]
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error


def _transformers() -> str:
    try:
        return version("transformers")
    except PackageNotFoundError:
        return "not installed"
