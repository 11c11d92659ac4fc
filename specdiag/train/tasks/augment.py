"""Random changes of training images, each drawn from a given generator.

RandAugment is that of big_vision for Simple ViT: 2 of 16 operations at level 10 of 10, with grey in uncovered areas
(torchvision's has other operations; github.com/EIFY/mup-vit measured them). Contrast is Pillow's, because the mean in
big_vision's depends on the number of pixels. Lengths are for 224 pixels and scale with the size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

from numpy.random import Generator
from PIL import Image, ImageEnhance, ImageOps

Augment = Literal["none", "crop", "randaugment", "mixup"]
"""Changes, each with all before it: none, inception crop and flip, RandAugment(2, 10), MixUp of batches (0.2)."""
AUGMENTS: tuple[Augment, ...] = get_args(Augment)

_SMALLEST = 0.05
"""Smallest crop as a fraction of the image's area; torchvision's default is 0.08."""
_ASPECT = 4 / 3
_ATTEMPTS = 10
_CENTRAL = 224 / 256
_N_OPERATIONS = 2
_GREY = (128, 128, 128)
_SHEAR, _DEGREES, _ENHANCED, _BITS, _ADDED = 0.3, 30.0, 1.9, 4, 110
_TRANSLATED, _CUT = 100 / 224, 40 / 224


def central_crop(image: Image.Image, size: int) -> Image.Image:
    """Cut the middle of an image: a square of 224/256 of its shorter side.

    Args:
        image: the image.
        size: side of the result in pixels.
    """
    side = min(image.size) * _CENTRAL
    left, top = ((length - side) / 2 for length in image.size)
    return _resized(image, size, (left, top, left + side, top + side))


def inception_crop(image: Image.Image, size: int, generator: Generator) -> Image.Image:
    """Cut a part of random area, aspect and place (Szegedy et al. 2015), and scale it to a square.

    Args:
        image: the image.
        size: side of the result in pixels.
        generator: source of random numbers.
    """
    width, height = image.size
    for _ in range(_ATTEMPTS):
        area = width * height * generator.uniform(_SMALLEST, 1)
        aspect = math.exp(generator.uniform(-math.log(_ASPECT), math.log(_ASPECT)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(generator.integers(width - w + 1)), int(generator.integers(height - h + 1))
            return _resized(image, size, (left, top, left + w, top + h))
    return central_crop(image, size)


def flip(image: Image.Image, generator: Generator) -> Image.Image:
    """Mirror the image with probability 1/2."""
    return ImageOps.mirror(image) if generator.random() < 0.5 else image


def rand_augment(image: Image.Image, generator: Generator) -> Image.Image:
    """Change an image by two random operations at full strength: RandAugment(2, 10)."""
    for chosen in generator.integers(len(OPERATIONS), size=_N_OPERATIONS):
        image = OPERATIONS[chosen](image, generator)
    return image


def _resized(image: Image.Image, size: int, box: tuple[float, float, float, float]) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def _affine(column: float = 0, left: float = 0, row: float = 0, up: float = 0) -> Callable[..., Image.Image]:
    """Make an operation that shears, or shifts by a fraction of the size, to a random side."""

    def moved(image: Image.Image, generator: Generator) -> Image.Image:
        sign = _sign(generator)
        matrix = (1, sign * column, sign * left * image.width, sign * row, 1, sign * up * image.height)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=_GREY)

    return moved


def _cutout(image: Image.Image, generator: Generator) -> Image.Image:
    x, y = int(generator.integers(image.width)), int(generator.integers(image.height))
    half = round(_CUT * image.width)
    image = image.copy()
    image.paste(_GREY, (max(0, x - half), max(0, y - half), min(image.width, x + half), min(image.height, y + half)))
    return image


def _solarize_add(image: Image.Image, _: Generator) -> Image.Image:
    return image.point([v + _ADDED if v < 128 else v for v in range(256)] * 3)


def _sign(generator: Generator) -> int:
    return 1 if generator.random() < 0.5 else -1


OPERATIONS: tuple[Callable[[Image.Image, Generator], Image.Image], ...] = (
    lambda image, _: ImageOps.autocontrast(image),
    lambda image, _: ImageOps.equalize(image),
    lambda image, _: ImageOps.invert(image),
    lambda image, generator: image.rotate(_sign(generator) * _DEGREES, fillcolor=_GREY),
    lambda image, _: ImageOps.posterize(image, _BITS),
    lambda image, _: ImageOps.invert(image),  # solarize: at level 10 of 10 nothing is below its threshold
    lambda image, _: ImageEnhance.Color(image).enhance(_ENHANCED),
    lambda image, _: ImageEnhance.Contrast(image).enhance(_ENHANCED),
    lambda image, _: ImageEnhance.Brightness(image).enhance(_ENHANCED),
    lambda image, _: ImageEnhance.Sharpness(image).enhance(_ENHANCED),
    _affine(column=_SHEAR),
    _affine(row=_SHEAR),
    _affine(left=_TRANSLATED),
    _affine(up=_TRANSLATED),
    _cutout,
    _solarize_add,
)
"""Operations of RandAugment, in the order of big_vision."""
