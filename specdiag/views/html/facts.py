"""All numbers of a matrix in words, and what each of them means."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import asdict

from specdiag.records import ModuleRecord
from specdiag.views.reading import meanings

_WORDS = {"n_": "", "mp_": "Marchenko-Pastur ", "pl_": "power law ", "ks": "KS distance", "llr_": "likelihood against "}
"""Words for the beginning of a field's name."""
_IN_THE_TITLE = ("name", "part")


def facts(record: ModuleRecord) -> list[tuple[str, str]]:
    """List each field of a record that has a value, its name in words."""
    return [(_words(name), f"{v:.6g}" if isinstance(v, float) else str(v)) for name, v in _known(record).items()]


def glossary(records: Iterable[ModuleRecord]) -> list[tuple[str, str]]:
    """List the fields that some record has, in words, each with its meaning."""
    known = meanings()
    fields = dict.fromkeys(name for record in records for name in _known(record))
    return [(_words(name), known[name]) for name in fields if name in known]


def _known(record: ModuleRecord) -> dict[str, object]:
    return {name: v for name, v in asdict(record).items() if v is not None and name not in _IN_THE_TITLE}


def _words(name: str) -> str:
    for start, words in _WORDS.items():
        if name.startswith(start):
            name = words + name.removeprefix(start)
    return name if name.startswith("square_") else name.replace("_", " ")
