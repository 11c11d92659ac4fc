"""Which file may hold what is written: one decision for all commands, made before any work."""

from __future__ import annotations

from pathlib import Path

from specdiag.errors import UsageError

_SUFFIXES = {
    "json": (".json",),
    "csv": (".csv",),
    "md": (".md", ".markdown"),
    "parquet": (".parquet", ".pq"),
    "toml": (".toml",),
    "code": (".py",),
    "html": (".html", ".htm"),
    "figure": (".png", ".svg", ".pdf"),
    "sarif": (".sarif", ".json"),
    "junit": (".xml",),
}
_CONTENTS = {"table": "json", "torch": "code", "transformers": "code"}
_NAMES = {
    "json": "JSON",
    "csv": "csv",
    "md": "Markdown",
    "code": "Python code",
    "toml": "TOML",
    "sarif": "SARIF",
    "junit": "JUnit XML",
}


def check_apart(out: Path | None, *sources: str) -> None:
    """Raise UsageError where a file would be replaced by what is made of it.

    Args:
        out: the file; None for none.
        sources: what it is made of.
    """
    if out is None or not out.exists():
        return
    for source in map(Path, sources):
        if source.exists() and source.samefile(out):
            raise UsageError(f"--out {out} is the SOURCE itself, which would be lost: choose another name")


def check_file(out: Path | None, format: str, instead: str = "") -> None:
    """Raise UsageError where a file cannot be written, or its suffix says that it holds something else.

    Args:
        out: the file; None for none.
        format: what it would hold, as the options name it. Beside a table JSON is saved.
        instead: advice for another format, put at the end of the refusal.
    """
    from specdiag.files import check_writable

    if out is None:
        return
    _check_dash(out, "file")
    content = _CONTENTS.get(format, format)
    if not fits(out, content):
        named = f"name a {_SUFFIXES[content][0]} file"
        advice = f"{named}, or {instead}" if instead else named
        raise UsageError(f"'{out.name}' would hold {_NAMES.get(content, content)}: {advice}")
    check_writable(out)


def folder_or_file(out: Path | None, format: str) -> tuple[Path | None, Path | None]:
    """Tell the folder of a trajectory from a JSON file that is to hold it, whose folder is the usual one.

    Args:
        out: as it was given.
        format: of what is printed; data of another format than JSON is not saved beside it.

    Returns:
        The folder and the file, each None where it was not given.

    Raises:
        UsageError: it is the name of another file, or cannot be written.
    """
    if out is not None and out.suffix.lower() == ".json" and not out.is_dir() and format in ("table", "json"):
        check_file(out, "json")
        return None, out
    check_folder(out, f"the {'table' if format == 'table' else format}")
    return out, None


def check_folder(out: Path | None, printed: str = "") -> None:
    """Raise UsageError where a name of a file is given for a folder.

    Args:
        out: the folder; None for the usual one.
        printed: what the command prints, for the person who wanted it in a file.
    """
    _check_dash(out, "folder")
    known = [suffix for suffixes in _SUFFIXES.values() for suffix in suffixes]
    if out is not None and out.suffix.lower() in known and not out.is_dir():
        advice = f"; {printed} is printed: send it to a file with > {out.name}" if printed else ""
        raise UsageError(f"--out names a folder, and '{out.name}' looks like a file{advice}")


def _check_dash(out: Path | None, kind: str) -> None:
    if str(out) == "-":
        raise UsageError(f"-o - would write a {kind} called '-': name a {kind}, or leave out -o to print")


def fits(out: Path, content: str) -> bool:
    """False where the suffix belongs to another content. JSON is found again by its suffix, and needs it.

    Devices, pipes and folders have no suffix that counts.
    """
    if out.exists() and not out.is_file():
        return True
    suffix = out.suffix.lower()
    if suffix in _SUFFIXES[content]:
        return True
    return content != "json" and all(suffix not in suffixes for suffixes in _SUFFIXES.values())
