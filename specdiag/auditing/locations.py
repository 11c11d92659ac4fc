"""Paths of a repository as the viewers of findings want them: relative to its root, and as URIs."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from specdiag.auditing.outcomes import Outcome
from specdiag.auditing.records import Finding


def repository_root(folder: Path) -> Path:
    """Find the root of the git repository that a folder lies in; the folder itself outside of one.

    Args:
        folder: where the program runs.
    """
    folder = folder.absolute()
    return next((path for path in (folder, *folder.parents) if (path / ".git").exists()), folder)


def inside(path: str | os.PathLike[str], root: Path) -> str | None:
    """Write a path relative to the root, with slashes; None where it leads outside.

    Args:
        path: absolute, or relative to the working directory.
        root: absolute.
    """
    written = Path(os.path.abspath(path))  # noqa: PTH100 - Path.resolve would follow links into a cache
    for candidate in (written, written.resolve()):
        for base in (root, root.resolve()):
            if candidate.is_relative_to(base):
                return candidate.relative_to(base).as_posix()
    return None


class Places:
    """Places of findings in a repository. Each file is looked up once.

    Args:
        root: of the repository, absolute.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._found: dict[str, str | None] = {}

    def of(self, outcome: Outcome, finding: Finding) -> str | None:
        """Write where a finding is, relative to the root; None where its source lies outside, as a model of the hub.

        Args:
            outcome: the audit that it belongs to.
            finding: a finding of it.
        """
        if not outcome.is_local:
            return None
        file = outcome.file_of(finding)
        if file not in self._found:
            self._found[file] = inside(file, self._root)
        return self._found[file]


def uri(path: str) -> str:
    """Write a path as a relative URI, whatever bytes its name has.

    Args:
        path: relative, with slashes.
    """
    written = quote(os.fsencode(path))
    return f"./{written}" if ":" in written.partition("/")[0] else written
