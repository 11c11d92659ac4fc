"""Reads labelled texts from files or the hub, and holds some of them out."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdiag.errors import SourceError, UsageError
from specdiag.files import Table
from specdiag.train.data.hub import HubData, import_datasets, resolve, translate_hub_errors
from specdiag.train.data.tokens import data_files, read_rows

READERS: Mapping[str, tuple[str, Table]] = {
    ".csv": ("csv", {"keep_default_na": False}),
    ".tsv": ("csv", {"keep_default_na": False, "sep": "\t", "quoting": 3}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".parquet": ("parquet", {}),
}
"""Readers of `datasets` by suffix. The word NA is text; in tsv, so are quotation marks, as in the files of GLUE."""
HELD_OUT_SHARE = 10
"""Number of distinct texts per held-out text, if no file is held out."""
HELD_OUT_MOST = 5000
"""Largest number of held-out texts then."""
_WORDS = {
    "train": "train", "training": "train",
    "validation": "held out", "valid": "held out", "val": "held out", "dev": "held out", "heldout": "held out",
    "eval": "test", "test": "test", "testing": "test",
}  # fmt: skip
"""Splits by words in names of files."""
_OTHER_GENRES = "mismatched"


@dataclass(frozen=True)
class Row:
    """A labelled example.

    Attributes:
        texts: one or two texts.
        label: a number or the name of a class.
        at: place of the row in its file or dataset, for messages.
    """

    texts: tuple[str, ...]
    label: object
    at: str


@dataclass(frozen=True)
class Rows:
    """Labelled examples of a data set.

    Attributes:
        train: rows to train on.
        held_out: rows that are never trained on.
        sources: files or dataset of the rows.
        columns: names of the columns with texts, then of the label.
        names: names of the classes, if the dataset has them; else None.
        split_off: True if the held-out rows are a tenth of the training data.
    """

    train: list[Row]
    held_out: list[Row]
    sources: list[Path | HubData]
    columns: tuple[str, ...]
    names: tuple[str, ...] | None = None
    split_off: bool = False


def read(paths: Sequence[str | Path], columns: Sequence[str] | None, usual: Sequence[Sequence[str]]) -> Rows:
    """Read labelled texts.

    Files are held out by their names: those with `validation`, `valid`, `val`, `dev` or `heldout` as a word, or those
    with `test` if there are none; files with `mismatched`, as in MNLI, are ignored. Of a dataset on the hub, the split
    of such a name is held out. Otherwise a tenth of the texts is held out by their hashes: the same texts for every
    order and seed, and equal texts all on one side.

    Args:
        paths: files and folders, or one dataset on the hub.
        columns: names of one or two columns with texts, then of the label; None for the usual ones.
        usual: usual names of columns; the first set of which all exist is used.

    Raises:
        UsageError: the paths or columns cannot be read.
        SourceError: a file is damaged or lacks the columns, or the hub does not give it.
    """
    if columns is not None and len(columns) not in (2, 3):
        raise UsageError(f"name one or two columns with text and then the label, not {', '.join(columns) or 'nothing'}")
    column_sets = usual if columns is None else [columns]
    sources = data_files(paths, tuple(READERS))
    hub = next((source for source in sources if isinstance(source, HubData)), None)
    if hub is None:
        return _read_files([source for source in sources if isinstance(source, Path)], column_sets)
    if len(sources) > 1:
        raise UsageError(
            f"there is no path {hub} here, and a dataset of the hub has its own held-out split: give it alone"
        )
    return _read_hub(hub, column_sets)


def _read_files(files: Sequence[Path], column_sets: Sequence[Sequence[str]]) -> Rows:
    files_by_split: dict[str, list[Path]] = {"train": [], "held out": [], "test": []}
    for path in files:
        words = re.split(r"[^a-z]+", path.stem.lower().replace("held_out", "heldout").replace("held-out", "heldout"))
        if _OTHER_GENRES not in words:
            files_by_split[next((_WORDS[word] for word in words if word in _WORDS), "train")].append(path)
    held_out = files_by_split["held out"] or files_by_split["test"]
    if not files_by_split["train"]:
        raise UsageError(f"{', '.join(p.name for p in held_out)} would be held out, and nothing is there to train on")
    columns: tuple[str, ...] | None = None

    def rows(paths: Iterable[Path]) -> Iterator[Row]:
        nonlocal columns
        for path in paths:
            kind, options = READERS[path.suffix]
            for number, row in enumerate(list(read_rows(path, kind, **options)), start=1):
                columns = columns or _columns(row, column_sets, str(path))
                yield _row(row, columns, f"row {number} of {path}")

    train, held_out_rows = list(rows(files_by_split["train"])), list(rows(held_out))
    sources: list[Path | HubData] = [*files_by_split["train"], *held_out]
    if columns is None or not train:
        raise SourceError(f"{files_by_split['train'][0]} holds no rows")
    if not held_out:
        train, held_out_rows = _split(train, str(files[0]))
    elif not held_out_rows:
        raise SourceError(f"{held_out[0]} holds no rows")
    return Rows(train, held_out_rows, sources, columns, split_off=not held_out)


def _read_hub(data: HubData, column_sets: Sequence[Sequence[str]]) -> Rows:
    if data.split:
        raise UsageError(f"{data} names a split, and training takes that of its name: leave out /{data.split}")
    data = resolve(data)
    datasets = import_datasets()
    with translate_hub_errors(data, f"name a part as {data.repo}:CONFIG"):
        splits: Any = datasets.load_dataset(data.repo, data.config, revision=data.revision)
    if "train" not in splits:
        raise SourceError(f"{data.name} has no split train, but {', '.join(splits)}")
    held_out = next((n for n in ("validation_matched", "validation", "dev", "test") if n in splits), None)
    columns = _columns(dict.fromkeys(splits["train"].column_names), column_sets, data.name)
    names: list[str] | None = getattr(splits["train"].features[columns[-1]], "names", None)

    def rows(split: str) -> Iterator[Row]:
        examples: Any = splits[split]
        for number, values in enumerate(zip(*(list(examples[name]) for name in columns), strict=True), start=1):
            row = _row(dict(zip(columns, values, strict=True)), columns, f"row {number} of {data.name}, {split}")
            if names is not None and isinstance(row.label, int) and 0 <= row.label < len(names):
                row = dataclasses.replace(row, label=names[row.label])
            yield row

    train = list(rows("train"))
    train, held_out_rows = (train, list(rows(held_out))) if held_out else _split(train, data.name)
    return Rows(train, held_out_rows, [data], columns, tuple(names) if names else None, split_off=held_out is None)


def _columns(row: Mapping[str, Any], column_sets: Sequence[Sequence[str]], label: str) -> tuple[str, ...]:
    columns = next((names for names in column_sets if all(name in row for name in names)), None)
    if columns is None:
        raise SourceError(
            f"{label} has columns {', '.join(row)} and not {' or '.join(', '.join(names) for names in column_sets)}: "
            "name the columns with text, then the label, with columns="
        )
    return tuple(columns)


def _row(row: Mapping[str, Any], columns: Sequence[str], at: str) -> Row:
    *texts, label = (row.get(name) for name in columns)
    for name, text in zip(columns, texts, strict=False):
        if not isinstance(text, (str, int, float)):  # a column of numerals was read as numbers
            raise SourceError(f"{at} has no text in its column {name}")
    return Row(tuple(str(text) for text in texts), label, at)


def _split(rows: list[Row], label: str) -> tuple[list[Row], list[Row]]:
    """Split rows into those to train on, and those of a tenth of the distinct texts."""
    hashes = [hashlib.sha256("\0".join(row.texts).encode()).digest() for row in rows]
    distinct = sorted(set(hashes))
    if len(distinct) < 2:
        raise SourceError(f"{label} holds {len(distinct)} different texts: at least two are needed, one is held out")
    last = distinct[max(1, min(len(distinct) // HELD_OUT_SHARE, HELD_OUT_MOST)) - 1]
    train = [row for row, digest in zip(rows, hashes, strict=True) if digest > last]
    return train, [row for row, digest in zip(rows, hashes, strict=True) if digest <= last]
