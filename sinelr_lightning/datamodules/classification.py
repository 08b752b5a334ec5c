"""Images with their classes: folders, torchvision's data sets, and handwritten digits that need no download."""

from pathlib import Path

import numpy as np
from PIL import Image

from sinelr_lightning.datamodules.augmentation import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PLAIN,
    RECIPE,
    Augmentation,
    Colour,
    Interpolation,
    Preprocessing,
)
from sinelr_lightning.datamodules.image_data import ImageData
from sinelr_lightning.datamodules.image_folder import Splits, read_image_folder
from sinelr_lightning.datamodules.torchvision_sources import TorchvisionImages, find_entry, open_split
from sinelr_lightning.errors import UserError

__all__ = ["DigitsData", "ImageFolderData", "TorchvisionData"]


class ImageFolderData(ImageData):
    """A folder of images of any kind, a subfolder a class.

    `root/train/CLASS/…` with `root/val/CLASS/…` (or `valid`, `validation`) and, if there is one, `root/test/CLASS/…`;
    or `root/CLASS/…`. Images may lie at any depth below their class. Without `val`, every `hold`-th image of each
    class, in the order of the paths, is held out of training; without `test`, the validation images serve as it.
    Classes are numbered in the order of their names.

    Args:
        root: the folder.
        image_size: side of the network's square input, pixels.
        hold: every how many-th image of a class is held out, where there is no `val`.
        skip_unreadable: leave unreadable files out, and say so, in place of stopping at the first.
        crop_ratio: share of the shorter side that evaluation keeps; 224/256 is the usual one.
        mean, std: of red, green and blue on the scale from 0 to 1; those of ImageNet.
        interpolation: bilinear or bicubic.
        augmentation: random changes of the training images.
        batch_size: images a step, over all processes.
        epoch_steps: steps between two validations; null for one pass over the training images.
        workers: processes that read images; 0 reads them between the steps.
        predict: file or folder of images for `sinelr predict`; null for the test images.

    Raises:
        UserError: from `setup`, with the path: no such folder, no class or only one, an empty class, classes of
            `val` or `test` that differ from those of `train`, an unreadable file. A file that is damaged behind its
            header raises it when it is decoded.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 224,
        hold: int = 5,
        skip_unreadable: bool = False,
        crop_ratio: float = 0.875,
        mean: Colour = IMAGENET_MEAN,
        std: Colour = IMAGENET_STD,
        interpolation: Interpolation = "bilinear",
        augmentation: Augmentation = RECIPE,
        batch_size: int = 256,
        epoch_steps: int | None = None,
        workers: int = 0,
        predict: str | None = None,
    ) -> None:
        preprocessing = Preprocessing(image_size, crop_ratio, mean, std, interpolation)
        super().__init__(preprocessing, augmentation, batch_size, epoch_steps, workers, predict, skip_unreadable)
        if hold < 2:
            raise UserError(f"data.hold must be at least 2, got {hold}")
        self.root, self.hold = root, hold

    @property
    def dataset_name(self) -> str:
        """The folder's name."""
        return Path(self.root).resolve().name

    def read_splits(self) -> Splits:
        """List and check the files."""
        return read_image_folder(self.root, self.hold, self.skip_unreadable)


class TorchvisionData(ImageData):
    """One of torchvision's classification data sets, under its name there.

    What is None follows the data set: CIFAR10, CIFAR100, MNIST, … in their own size with padded crops, those of
    photographs (Food101, Flowers102, ImageNet, …) in 224 pixels with ImageNet's statistics and the recipe of
    `Augmentation`. A data set without a validation split validates on its test split, as is usual with it, unless
    `hold` says otherwise.

    Args:
        dataset: name of the class in torchvision.datasets; `torchvision_sources.DATASETS` lists them.
        root: folder of the files.
        download: get missing files; ImageNet and StanfordCars cannot be downloaded.
        hold: hold every how many-th training image out as the validation split.
        image_size: side of the network's square input, pixels.
        crop_ratio: share of the shorter side that evaluation keeps.
        mean, std: of red, green and blue on the scale from 0 to 1.
        interpolation: bilinear or bicubic.
        augmentation: random changes of the training images; given in part, the rest is as in `Augmentation`.
        batch_size: images a step, over all processes.
        epoch_steps: steps between two validations; null for one pass over the training images.
        workers: processes that make batches; 0 makes them between the steps.
        predict: file or folder of images for `sinelr predict`; null for the test images.

    Raises:
        UserError: unknown data set; from `setup`, files that are missing or cannot be downloaded.
    """

    def __init__(
        self,
        dataset: str = "CIFAR10",
        root: str = "data/torchvision",
        download: bool = True,
        hold: int | None = None,
        image_size: int | None = None,
        crop_ratio: float | None = None,
        mean: Colour | None = None,
        std: Colour | None = None,
        interpolation: Interpolation = "bilinear",
        augmentation: Augmentation | None = None,
        batch_size: int = 128,
        epoch_steps: int | None = None,
        workers: int = 0,
        predict: str | None = None,
    ) -> None:
        entry = find_entry(dataset)
        if hold is not None and hold < 2:
            raise UserError(f"data.hold must be at least 2, or null, got {hold}")
        preprocessing = Preprocessing(
            entry.size if image_size is None else image_size,
            entry.crop_ratio if crop_ratio is None else crop_ratio,
            mean or entry.mean,
            std or entry.std,
            interpolation,
        )
        super().__init__(preprocessing, augmentation or entry.augmentation, batch_size, epoch_steps, workers, predict)
        self.dataset, self.entry, self.root, self.download, self.hold = dataset, entry, root, download, hold

    @property
    def dataset_name(self) -> str:
        """torchvision's name."""
        return self.dataset

    def prepare_data(self) -> None:
        """Download what is missing, before the other processes ask."""
        if self.download and not self.only_predicts:
            for split in (self.entry.train, self.entry.val, self.entry.test):
                if split is not None:
                    open_split(self.dataset, split, self.root, download=True)

    def read_splits(self) -> Splits:
        """Open the splits."""
        train, test = (open_split(self.dataset, s, self.root, False) for s in (self.entry.train, self.entry.test))
        names = getattr(train, "classes", None) or [str(number) for number in range(self.entry.classes or 0)]
        # ImageNet has several words a class.
        classes = [name if isinstance(name, str) else ", ".join(name) for name in names]
        tested = TorchvisionImages(test, self.dataset)
        if self.hold is not None:
            held = range(0, len(train), self.hold)
            kept = [index for index in range(len(train)) if index % self.hold]
            parts = (TorchvisionImages(train, self.dataset, part) for part in (kept, held))
            return Splits(*parts, tested, classes, {"hold": self.hold, "test_is_val": False})
        trained = TorchvisionImages(train, self.dataset)
        if self.entry.val is None:
            return Splits(trained, tested, tested, classes, {"test_is_val": True})
        val = open_split(self.dataset, self.entry.val, self.root, False)
        return Splits(trained, TorchvisionImages(val, self.dataset), tested, classes, {"test_is_val": False})


DIGITS_MEAN, DIGITS_STD = (0.3047, 0.3047, 0.3047), (0.3754, 0.3754, 0.3754)  # of the training images


class DigitImages:
    """Some of the digits: grey images [N, 8, 8] of 17 levels with their labels [N]."""

    def __init__(self, levels: np.ndarray, labels: np.ndarray) -> None:
        self.grey = np.rint(levels * (255 / 16)).astype(np.uint8)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> tuple[Image.Image, int | None]:
        """Give a digit in RGB, 0 … 16 as 0 … 255."""
        return Image.fromarray(self.grey[index]).convert("RGB"), int(self.labels[index])


class DigitsData(ImageData):
    """Handwritten digits, 1,797 real grey images of 8 × 8 pixels, which come with scikit-learn: no download.

    Of each digit 60 % are for training, 20 % for validation and 20 % for testing, drawn with seed 0. They are UCI's
    "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998, CC BY 4.0), the part that was its test set.

    Args:
        image_size: side of the network's square input, pixels; larger than 8, the digits are enlarged.
        augmentation: random changes of the training images; none, unless asked for.
        batch_size: images a step, over all processes.
        epoch_steps: steps between two validations; null for one pass over the training images.
        workers: processes that make batches; 0 makes them between the steps.
        predict: file or folder of images for `sinelr predict`; null for the test images.

    Raises:
        UserError: a value outside its range.
    """

    def __init__(
        self,
        image_size: int = 8,
        augmentation: Augmentation = PLAIN,
        batch_size: int = 64,
        epoch_steps: int | None = None,
        workers: int = 0,
        predict: str | None = None,
    ) -> None:
        preprocessing = Preprocessing(image_size, 1.0, DIGITS_MEAN, DIGITS_STD)
        super().__init__(preprocessing, augmentation, batch_size, epoch_steps, workers, predict)

    @property
    def dataset_name(self) -> str:
        """Its name."""
        return "digits"

    def read_splits(self) -> Splits:
        """Read the digits and divide them."""
        from sklearn.datasets import load_digits  # a second's import, for this class alone

        digits = load_digits()
        parts: list[list[np.ndarray]] = [[], [], []]
        random = np.random.RandomState(0)  # its streams never change, unlike those of default_rng
        for label in range(10):
            own = random.permutation(np.flatnonzero(digits.target == label))
            pieces = np.split(own, [round(0.6 * len(own)), round(0.8 * len(own))])
            for part, piece in zip(parts, pieces, strict=True):
                part.append(piece)
        rows = [np.sort(np.concatenate(part)) for part in parts]
        train, val, test = (DigitImages(digits.images[row], digits.target[row]) for row in rows)
        return Splits(train, val, test, [str(digit) for digit in range(10)])
