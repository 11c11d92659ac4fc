"""Where images come from: folders of classes, or a dataset of the hub."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from PIL import Image

from specdiag.errors import SourceError
from specdiag.train.data.fingerprint import DataFile
from specdiag.train.data.hub import import_datasets, in_one_sentence, locate, resolve

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_HELD_OUT = ("val", "validation", "test")


class ImageSource(Protocol):
    """Images by their number."""

    def __len__(self) -> int: ...

    def open(self, index: int) -> tuple[Image.Image, int]:
        """An image in RGB and the number of its class."""
        ...


@dataclass(frozen=True)
class OpenedImages:
    """Images that were found.

    Attributes:
        train: all that is no other split.
        held_out: what is never trained on; the same object as `train` where nothing is set aside.
        classes: names, in the order of their numbers.
        marks: of names, sizes and classes, for comparison when a run goes on.
    """

    train: ImageSource
    held_out: ImageSource
    classes: tuple[str, ...]
    marks: tuple[DataFile, ...]


def open_images(where: str | Path) -> OpenedImages:
    """A folder of classes (with or without `train`, and `val`, `validation` or `test`), else a dataset of the hub.

    Raises:
        SourceError: there is none, a class has no images, or one that is held out is not trained on.
    """
    return _folders(Path(where)) if Path(where).is_dir() else _hub(str(where))


@dataclass(frozen=True)
class _Files:
    paths: list[Path]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, index: int) -> tuple[Image.Image, int]:
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                return image.convert("RGB"), self.labels[index]
        except (OSError, Image.DecompressionBombError) as error:
            raise SourceError(f"{path} is no image that can be read ({error})") from error


@dataclass(frozen=True)
class _Rows:
    rows: Any
    image: str
    label: str

    def __len__(self) -> int:
        return len(self.rows)

    def open(self, index: int) -> tuple[Image.Image, int]:
        row = self.rows[index]
        return cast("Image.Image", row[self.image]).convert("RGB"), int(row[self.label])


def _folders(root: Path) -> OpenedImages:
    main = root / "train" if (root / "train").is_dir() else root
    apart = next((root / name for name in _HELD_OUT if main is not root and (root / name).is_dir()), None)
    classes = _subfolders(main)
    train, mark = _files(main, classes)
    if apart is None:
        return OpenedImages(train, train, tuple(classes), (mark,))
    unknown = [name for name in _subfolders(apart) if name not in classes]
    if unknown:
        raise SourceError(f"{apart / unknown[0]} is a class that {main} does not have")
    held_out, mark_apart = _files(apart, {name: classes[name] for name in _subfolders(apart)})
    return OpenedImages(train, held_out, tuple(classes), (mark, mark_apart))


def _subfolders(folder: Path) -> dict[str, int]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return {name: number for number, name in enumerate(names)}


def _files(folder: Path, classes: dict[str, int]) -> tuple[_Files, DataFile]:
    """All images of these classes by class and name, and a mark of their names and sizes."""
    paths: list[Path] = []
    labels: list[int] = []
    for name, label in classes.items():
        found = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not found:
            raise SourceError(f"{folder / name} holds no {', '.join(SUFFIXES)} files")
        paths += found
        labels += [label] * len(found)
    sizes = [path.stat().st_size for path in paths]
    described = "\n".join(f"{path.relative_to(folder)} {size}" for path, size in zip(paths, sizes, strict=True))
    return _Files(paths, labels), DataFile(name=folder.name, size=sum(sizes), ends=_digest(described))


def _hub(name: str) -> OpenedImages:
    data = locate(name)
    if isinstance(data, Path):
        raise SourceError(f"{name} is no folder of classes with images")
    data = resolve(data)
    datasets = import_datasets()
    with in_one_sentence(data, f"name a part as {data.repo}:CONFIG"):
        splits = cast("dict[str, Any]", datasets.load_dataset(data.repo, data.config, revision=data.revision))
    if "train" not in splits:
        raise SourceError(f"{data.name} has no split 'train', but {', '.join(splits)}")
    features: dict[str, Any] = splits["train"].features
    image = next((n for n, f in features.items() if isinstance(f, datasets.Image)), None)
    label = next((n for n, f in features.items() if isinstance(f, datasets.ClassLabel)), None)
    if image is None or label is None:
        raise SourceError(f"{data.name} has no column of images and one of classes, but {', '.join(features)}")
    apart = next((n for n in _HELD_OUT if n in splits and min(splits[n][label]) >= 0), "train")  # -1: not told
    sides = {n: _Rows(splits[n], image, label) for n in ("train", apart)}
    marks = tuple(
        DataFile(
            name=f"{data.name}/{n}",
            size=len(side),
            ends=_digest(str(list(side.rows[label]))),
            commit=data.revision or "",
        )
        for n, side in sides.items()
    )
    return OpenedImages(sides["train"], sides[apart], tuple(features[label].names), marks)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
