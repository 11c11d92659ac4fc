"""Images with a class each, judged by top-1 accuracy."""

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


class Images(torch.utils.data.Dataset[dict[str, Any]]):
    """Images as tensors from -1 to 1; those of training are changed at random.

    The changes follow from the seed, the epoch and the number of the image alone, so that a run that was interrupted
    sees what it would have seen, with any number of loading processes.
    """

    def __init__(self, source: ImageSource, numbers: NDArray[np.int64], size: int, augment: Augment, seed: int) -> None:
        self.source, self.numbers, self.size, self.augment, self.seed = source, numbers, size, augment, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.numbers)

    def set_epoch(self, epoch: int) -> None:
        """Other changes from here on."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return an image and its class; for a mixture, its class and its share."""
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
        share = float(generator.beta(_MIXTURE, _MIXTURE))
        return {"pixel_values": _pixels(image), "labels": (label, max(share, 1 - share))}


class EpochCallback(TrainerCallback):
    """Tells images which epoch it is. Every run needs it: accelerate does not when one goes on within an epoch."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Before the first batch of an epoch, or of the rest of one, is loaded."""
        self.images.set_epoch(int(state.epoch or 0))


def load_images(paths: Sequence[str | Path], *, size: int, augment: Augment = "crop", seed: int) -> Data:
    """Open images for training. Pass `EpochCallback(data.train)` to the Trainer.

    Args:
        paths: one folder, `ROOT/CLASS/*.png` or `ROOT/train/CLASS/*` with `val`, `validation` or `test` beside it, or
            one dataset of the hub (`name` or `name:config`) with an image and a class label. Where nothing is set
            aside, one image in 64 is, by a hash of its number.
        size: side in pixels that images are cut and scaled to, in their middle where they are held out.
        augment: of the images of training. `mixup` makes labels probabilities of classes: for a model whose loss takes
            them, as SimpleViT's; those of transformers take them for independent labels.
        seed: of the changes.

    Raises:
        UsageError: not one source, or an unknown `augment`.
        SourceError: it does not exist, or has not enough images or classes.
    """
    if augment not in AUGMENTS:
        raise UsageError(f"unknown augmentation '{augment}'; choose from {', '.join(AUGMENTS)}")
    if len(paths) != 1:
        raise UsageError("images come from one folder of classes, or one dataset of the hub")
    opened = open_images(paths[0])
    if len(opened.classes) < 2 or len(opened.train) < 2:
        found = f"{len(opened.train)} images of {len(opened.classes)} classes"
        raise SourceError(f"{paths[0]} holds {found}, and at least two of each are needed: ROOT/CLASS/*.png")
    everything = np.arange(len(opened.train), dtype=np.int64)
    shared = opened.held_out is opened.train
    apart = held_out_of(len(everything), most=len(everything)) if shared else np.zeros(len(everything), bool)
    numbers = everything[apart] if shared else np.arange(len(opened.held_out), dtype=np.int64)
    return Data(
        train=Images(opened.train, everything[~apart], size, augment, seed),
        held_out=Images(opened.held_out, numbers, size, "none", seed),
        fingerprint=Fingerprint(files=opened.marks, tokens=f"images, {augment}", block_size=size, seed=seed),
        collate=partial(_batch, n_classes=len(opened.classes)),
        metrics=_top_1,
        labels=opened.classes,
    )


def _pixels(image: Image.Image) -> torch.Tensor:
    """[3, size, size], mean and standard deviation one half."""
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).astype(np.float32)).div_(127.5).sub_(1)


def _batch(examples: list[dict[str, Any]], n_classes: int) -> dict[str, torch.Tensor]:
    """A batch; mixtures take the share of its first image for all, and the image before as their other part."""
    pixels = torch.stack([example["pixel_values"] for example in examples])
    labels = [example["labels"] for example in examples]
    if not isinstance(labels[0], tuple):
        return {"pixel_values": pixels, "labels": torch.tensor(labels)}
    share = labels[0][1]
    hot = F.one_hot(torch.tensor([label for label, _ in labels]), n_classes).float()
    return {name: share * t + (1 - share) * t.roll(1, 0) for name, t in (("pixel_values", pixels), ("labels", hot))}


def _top_1(predicted: EvalPrediction) -> dict[str, float]:
    logits: Any = predicted.predictions[0] if isinstance(predicted.predictions, tuple) else predicted.predictions
    return {"accuracy": float((logits.argmax(-1) == predicted.label_ids).mean())}
