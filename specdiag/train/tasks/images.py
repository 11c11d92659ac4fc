"""Image classification, measured by top-1 accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from specdiag.errors import MissingExtraError, SourceError, UsageError
from specdiag.train.data.blocks import held_out_of
from specdiag.train.data.fingerprint import Fingerprint
from specdiag.train.data.tokens import Data
from specdiag.train.tasks.augment import AUGMENTS, Augment, central_crop, flip, inception_crop, rand_augment
from specdiag.train.tasks.image_sources import ImageSource, open_images

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise MissingExtraError("training needs transformers: pip install transformers accelerate") from error

if TYPE_CHECKING:
    from transformers import EvalPrediction

_MIXTURE = 0.2
"""Both parameters of the beta distribution of MixUp's fractions."""


class Images(torch.utils.data.Dataset[dict[str, Any]]):
    """Images as tensors from -1 to 1; training images are changed at random.

    The changes depend only on the seed, the epoch and the number of the image, so that a run that was interrupted gets
    the same images as one that was not, with any number of loading processes.
    """

    def __init__(self, source: ImageSource, numbers: NDArray[np.int64], size: int, augment: Augment, seed: int) -> None:
        self.source, self.numbers, self.size, self.augment, self.seed = source, numbers, size, augment, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.numbers)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which decides the random changes."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return an image and its class; for MixUp, the class and the fraction of this image."""
        number = int(self.numbers[index])
        image, label = self.source.open(number)
        if self.augment == "none":
            return {"pixel_values": _pixels(central_crop(image, self.size)), "labels": label}
        generator = np.random.default_rng((self.seed, self.epoch, number))
        image = flip(inception_crop(image, self.size, generator), generator)
        if self.augment != "crop":
            image = rand_augment(image, generator)
        if self.augment != "mixup":
            return {"pixel_values": _pixels(image), "labels": label}
        fraction = float(generator.beta(_MIXTURE, _MIXTURE))
        return {"pixel_values": _pixels(image), "labels": (label, max(fraction, 1 - fraction))}


class EpochCallback(TrainerCallback):
    """Sets the epoch of images. Every run needs it: accelerate does not set it when a run continues within an epoch."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Set the epoch before its first batch, or the first one after a resume, is loaded."""
        self.images.set_epoch(int(state.epoch or 0))


def load_images(paths: Sequence[str | Path], *, size: int, augment: Augment = "crop", seed: int) -> Data:
    """Open images for training. Pass `EpochCallback(data.train)` to the Trainer.

    Args:
        paths: one folder, `ROOT/CLASS/*.png`, or `ROOT/train/CLASS/*` with `val`, `validation` or `test` next to it; or
            one dataset of the hub (`name` or `name:config`) with an image and a class label. If it has no held-out
            split, one image in 64 is held out, by a hash of its number.
        size: side in pixels to which images are cut and scaled; held-out images are cut in their middle.
        augment: changes of training images. `mixup` makes labels probabilities of classes, for a model whose loss takes
            them, as SimpleViT's; models of transformers take them for independent labels.
        seed: seed of the changes.

    Raises:
        UsageError: there is not exactly one source, or `augment` is unknown.
        SourceError: the source does not exist, or has fewer than two images or classes.
    """
    if augment not in AUGMENTS:
        raise UsageError(f"unknown augmentation '{augment}'; choose from {', '.join(AUGMENTS)}")
    if len(paths) != 1:
        raise UsageError("images come from one folder of classes, or one dataset of the hub")
    opened = open_images(paths[0])
    if len(opened.classes) < 2 or len(opened.train) < 2:
        counts = f"{len(opened.train)} images of {len(opened.classes)} classes"
        raise SourceError(f"{paths[0]} holds {counts}, and at least two of each are needed: ROOT/CLASS/*.png")
    all_numbers = np.arange(len(opened.train), dtype=np.int64)
    shared = opened.held_out is opened.train
    is_held_out = held_out_of(len(all_numbers), most=len(all_numbers)) if shared else np.zeros(len(all_numbers), bool)
    numbers = all_numbers[is_held_out] if shared else np.arange(len(opened.held_out), dtype=np.int64)
    return Data(
        train=Images(opened.train, all_numbers[~is_held_out], size, augment, seed),
        held_out=Images(opened.held_out, numbers, size, "none", seed),
        fingerprint=Fingerprint(files=opened.marks, tokens=f"images, {augment}", block_size=size, seed=seed),
        collate=partial(_batch, n_classes=len(opened.classes)),
        metrics=_top_1,
        labels=opened.classes,
        split_off=shared,
    )


def _pixels(image: Image.Image) -> torch.Tensor:
    """Scale an image from 0..255 to -1..1, as a tensor of shape [3, size, size]."""
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).astype(np.float32)).div_(127.5).sub_(1)


def _batch(examples: list[dict[str, Any]], n_classes: int) -> dict[str, torch.Tensor]:
    """Make a batch. MixUp uses the fraction of the first image for all, and mixes each image with the one before."""
    pixels = torch.stack([example["pixel_values"] for example in examples])
    labels = [example["labels"] for example in examples]
    if not isinstance(labels[0], tuple):
        return {"pixel_values": pixels, "labels": torch.tensor(labels)}
    fraction = labels[0][1]
    hot = F.one_hot(torch.tensor([label for label, _ in labels]), n_classes).float()
    tensors = {"pixel_values": pixels, "labels": hot}
    return {name: fraction * t + (1 - fraction) * t.roll(1, 0) for name, t in tensors.items()}


def _top_1(predicted: EvalPrediction) -> dict[str, float]:
    logits: Any = predicted.predictions[0] if isinstance(predicted.predictions, tuple) else predicted.predictions
    return {"accuracy": float((logits.argmax(-1) == predicted.label_ids).mean())}
