"""From an RGB picture to the network's input: preprocessing, random changes of one image, mixing of a batch."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from sinelr_lightning.datamodules.loaders import seeded_generator
from sinelr_lightning.errors import UserError

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "PLAIN",
    "RECIPE",
    "Augmentation",
    "Colour",
    "Interpolation",
    "Preprocessing",
    "evaluation_transform",
    "mix",
    "normalise",
    "seeded",
    "training_transform",
]

Colour = tuple[float, float, float]
Interpolation = Literal["bilinear", "bicubic"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """What is done to every image: resize, crop the centre, and x ↦ (x/255 − mean)/std.

    Args:
        image_size: side of the square input, pixels.
        crop_ratio: share of the shorter side that the crop keeps: it is resized to image_size/crop_ratio.
        mean, std: of red, green and blue on the scale from 0 to 1.
        interpolation: of the resizing, bilinear or bicubic, both with antialiasing.

    Raises:
        UserError: a value outside its range.
    """

    image_size: int = 224
    crop_ratio: float = 0.875
    mean: Colour = IMAGENET_MEAN
    std: Colour = IMAGENET_STD
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise UserError(f"data.image_size must be at least 1 pixel, got {self.image_size}")
        if not 0 < self.crop_ratio <= 1:
            raise UserError(f"data.crop_ratio must be in (0, 1], got {self.crop_ratio}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UserError(
                f"data.mean and data.std take three numbers each, std above 0; got {self.mean}, {self.std}"
            )
        if self.interpolation not in ("bilinear", "bicubic"):
            raise UserError(f"data.interpolation must be bilinear or bicubic, got {self.interpolation!r}")

    def plain(self) -> dict[str, Any]:
        """The values as they go into a checkpoint or beside an exported model."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images. The defaults are those of torchvision's recipe for ViT-B/16 on ImageNet.

    That recipe: RandomResizedCrop, flip, RandAugment(2, 9), and per batch either MixUp(0.2) or CutMix(1.0), with no
    erasing (github.com/pytorch/vision, references/classification, vit_b_16; its label smoothing of 0.11 belongs to
    the loss, its repeated augmentation is not here).

    Args:
        crop: resized (a random part of random shape, resized), padded (resize the shorter side, pad, cut a random
            square; usual for images of 32 pixels) or none (the crop of the evaluation).
        min_area: smallest share of the image that `resized` takes.
        padding: pixels of black that `padded` adds on each side.
        flip: probability of a horizontal flip.
        randaugment: number of RandAugment's operations an image (Cubuk et al. 2020), 0 for none.
        magnitude: their strength, 0 to 30.
        erasing: probability that a random rectangle is set to the mean colour (Zhong et al. 2020).
        mixup: α of MixUp, λ ~ Beta(α, α) (Zhang et al. 2018), 0 for none.
        cutmix: α of CutMix (Yun et al. 2019), 0 for none. With both, each batch takes one of them, evenly.

    Raises:
        UserError: a value outside its range.
    """

    crop: Literal["resized", "padded", "none"] = "resized"
    min_area: float = 0.08
    padding: int = 4
    flip: float = 0.5
    randaugment: int = 2
    magnitude: int = 9
    erasing: float = 0.0
    mixup: float = 0.2
    cutmix: float = 1.0

    def __post_init__(self) -> None:
        if self.crop not in ("resized", "padded", "none"):
            raise UserError(f"data.augmentation.crop must be resized, padded or none, got {self.crop!r}")
        if not 0 < self.min_area <= 1:
            raise UserError(f"data.augmentation.min_area must be in (0, 1], got {self.min_area}")
        for name in ("flip", "erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"data.augmentation.{name} must be a probability, got {getattr(self, name)}")
        for name in ("padding", "randaugment", "mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise UserError(f"data.augmentation.{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.magnitude <= 30:
            raise UserError(f"data.augmentation.magnitude must be 0 to 30, got {self.magnitude}")

    @property
    def mixes(self) -> bool:
        """Whether labels become soft."""
        return self.mixup > 0 or self.cutmix > 0


RECIPE = Augmentation()
PLAIN = Augmentation(crop="none", flip=0.0, randaugment=0, mixup=0.0, cutmix=0.0)


class _Fit:
    """Resize the shorter side to `side`, then cut out the centre if asked to. What fits already is left alone."""

    def __init__(self, preprocessing: Preprocessing, side: int, crop: bool) -> None:
        self.resample = Image.Resampling[preprocessing.interpolation.upper()]
        self.size, self.side, self.crop = preprocessing.image_size, side, crop

    def __call__(self, image: Image.Image) -> Image.Image:
        short = min(image.size)
        if short != self.side:
            width, height = (int(self.side * length / short) for length in image.size)
            image = image.resize((width, height), self.resample)
        if not self.crop or image.size == (self.size, self.size):
            return image
        left, top = (round((length - self.size) / 2) for length in image.size)
        return image.crop((left, top, left + self.size, top + self.size))


def evaluation_transform(preprocessing: Preprocessing) -> Callable[[Image.Image], Tensor]:
    """RGB picture → uint8 [3, S, S]: the shorter side resized to S/crop_ratio, the centre cut out."""
    side = round(preprocessing.image_size / preprocessing.crop_ratio)
    return v2.Compose([_Fit(preprocessing, side, crop=True), v2.PILToTensor()])


def training_transform(augmentation: Augmentation, preprocessing: Preprocessing) -> Callable[[Image.Image], Tensor]:
    """RGB picture → uint8 [3, S, S], changed at random; draws from torch's global generator, see `seeded`."""
    size, mode = preprocessing.image_size, InterpolationMode(preprocessing.interpolation)
    steps: list[Callable] = []
    if augmentation.crop == "resized":
        steps.append(v2.RandomResizedCrop(size, scale=(augmentation.min_area, 1.0), interpolation=mode))
    elif augmentation.crop == "padded":
        steps += [_Fit(preprocessing, size, crop=False), v2.RandomCrop(size, padding=augmentation.padding)]
    else:
        steps.append(_Fit(preprocessing, round(size / preprocessing.crop_ratio), crop=True))
    if augmentation.flip:
        steps.append(v2.RandomHorizontalFlip(augmentation.flip))
    if augmentation.randaugment:
        steps.append(v2.RandAugment(augmentation.randaugment, augmentation.magnitude, interpolation=mode))
    steps.append(v2.PILToTensor())
    if augmentation.erasing:
        mean = [float(round(255 * channel)) for channel in preprocessing.mean]
        steps.append(v2.RandomErasing(augmentation.erasing, value=mean))  # ty: ignore[invalid-argument-type]
    return v2.Compose(steps)


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 [B, 3, H, W] → float32, (x/255 − mean)/std."""
    scaled = functional.to_dtype(images, torch.float32, scale=True)
    return functional.normalize(scaled, list(preprocessing.mean), list(preprocessing.std), inplace=True)


def mix(
    images: Tensor, labels: Tensor, classes: int, augmentation: Augmentation, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """MixUp or CutMix of a batch with itself, rolled by one: labels [B] become soft ones [B, classes].

    The choice, λ and the rectangle follow from the seed and the step alone; each rank mixes its own images.
    """
    choices: list[Callable] = []
    if augmentation.mixup:
        choices.append(v2.MixUp(alpha=augmentation.mixup, num_classes=classes))
    if augmentation.cutmix:
        choices.append(v2.CutMix(alpha=augmentation.cutmix, num_classes=classes))
    with seeded(seed + 1, step):  # with the seed itself, the numbers are those of single images
        return v2.RandomChoice(choices)(images, labels)


@contextmanager
def seeded(seed: int, number: int) -> Generator[None]:
    """Let what draws from torch's global CPU generator, as torchvision does, draw from a `seeded_generator`."""
    # Not torch.manual_seed in fork_rng: that would also seed the devices, and not give their state back.
    generator = torch.default_generator
    before = generator.get_state()
    generator.set_state(seeded_generator(seed, number).get_state())
    try:
        yield
    finally:
        generator.set_state(before)
