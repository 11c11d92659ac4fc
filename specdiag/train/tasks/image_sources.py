"""Opens sources of images: folders of classes, or a dataset of the hub."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from PIL import Image

from specdiag.errors import SourceError
from specdiag.train.data.fingerprint import DataFile
from specdiag.train.data.hub import import_datasets, locate, resolve, translate_hub_errors

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_HELD_OUT = ("val", "validation", "test")


class ImageSource(Protocol):
    """Images that are opened by number."""

    def __len__(self) -> int: ...

    def open(self, index: int) -> tuple[Image.Image, int]:
        """Open an image by its number; return it in RGB, with the number of its class."""
        ...


@dataclass(frozen=True)
class OpenedImages:
    """Images that were found.

    Attributes:
        train: images of the training split, or all if there is no split.
        held_out: images that are never trained on; the same object as `train` if the source has no such split.
        classes: names of the classes in the order of their numbers.
        marks: identity of the images by names and sizes or classes, compared when a run continues.
    """

    train: ImageSource
    held_out: ImageSource
    classes: tuple[str, ...]
    marks: tuple[DataFile, ...]


def open_images(where: str | Path) -> OpenedImages:
    """Open a source of images.

    Args:
        where: a folder of classes, or one with `train` and perhaps `val`, `validation` or `test` in it; or a dataset of
            the hub.

    Raises:
        SourceError: the source does not exist, a class has no images, or a held-out class is not trained on.
    """
    return _folders(Path(where)) if Path(where).is_dir() else _hub(str(where))


@dataclass(frozen=True)
class _ImageFiles:
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
class _HubImages:
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
    held_out_folder = next((root / name for name in _HELD_OUT if main is not root and (root / name).is_dir()), None)
    classes = _subfolders(main)
    train, mark = _files(main, classes)
    if held_out_folder is None:
        return OpenedImages(train, train, tuple(classes), (mark,))
    unknown = [name for name in _subfolders(held_out_folder) if name not in classes]
    if unknown:
        raise SourceError(f"{held_out_folder / unknown[0]} is a class that {main} does not have")
    held_out, held_out_mark = _files(held_out_folder, {name: classes[name] for name in _subfolders(held_out_folder)})
    return OpenedImages(train, held_out, tuple(classes), (mark, held_out_mark))


def _subfolders(folder: Path) -> dict[str, int]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return {name: number for number, name in enumerate(names)}


def _files(folder: Path, classes: dict[str, int]) -> tuple[_ImageFiles, DataFile]:
    """List all images of these classes by class and name, and identify them by names and sizes."""
    paths: list[Path] = []
    labels: list[int] = []
    for name, label in classes.items():
        images = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not images:
            raise SourceError(f"{folder / name} holds no {', '.join(SUFFIXES)} files")
        paths += images
        labels += [label] * len(images)
    sizes = [path.stat().st_size for path in paths]
    described = "\n".join(f"{path.relative_to(folder)} {size}" for path, size in zip(paths, sizes, strict=True))
    return _ImageFiles(paths, labels), DataFile(name=folder.name, size=sum(sizes), ends=_digest(described))


def _hub(name: str) -> OpenedImages:
    data = locate(name)
    if isinstance(data, Path):
        raise SourceError(f"{name} is no folder of classes with images")
    data = resolve(data)
    datasets = import_datasets()
    with translate_hub_errors(data, f"name a part as {data.repo}:CONFIG"):
        splits = cast("dict[str, Any]", datasets.load_dataset(data.repo, data.config, revision=data.revision))
    if "train" not in splits:
        raise SourceError(f"{data.name} has no split 'train', but {', '.join(splits)}")
    features: dict[str, Any] = splits["train"].features
    image = next((n for n, f in features.items() if isinstance(f, datasets.Image)), None)
    label = next((n for n, f in features.items() if isinstance(f, datasets.ClassLabel)), None)
    if image is None or label is None:
        raise SourceError(f"{data.name} has no column of images and one of classes, but {', '.join(features)}")
    held_out = next((n for n in _HELD_OUT if n in splits and min(splits[n][label]) >= 0), "train")  # -1: no label
    sides = {n: _HubImages(splits[n], image, label) for n in ("train", held_out)}
    marks = tuple(
        DataFile(
            name=f"{data.name}/{n}",
            size=len(side),
            ends=_digest(str(list(side.rows[label]))),
            commit=data.revision or "",
        )
        for n, side in sides.items()
    )
    return OpenedImages(sides["train"], sides[held_out], tuple(features[label].names), marks)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
