"""torchvision's classification data sets: how each one's splits are asked for, and what is usual with it."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torchvision
from PIL import Image

from sinelr_lightning.datamodules.augmentation import IMAGENET_MEAN, IMAGENET_STD, RECIPE, Augmentation, Colour
from sinelr_lightning.datamodules.image_files import DAMAGE, to_rgb
from sinelr_lightning.errors import UserError

__all__ = ["DATASETS", "Entry", "TorchvisionImages", "find_entry", "open_split"]

SMALL = Augmentation(crop="padded", randaugment=0, mixup=0.0, cutmix=0.0)
SIGNS = Augmentation(crop="padded", flip=0.0, randaugment=0, mixup=0.0, cutmix=0.0)  # mirrored, they mean others


@dataclass(frozen=True)
class Entry:
    """One data set. A split is the keyword arguments that ask for it; without `val`, the test split serves as it.

    Statistics and sizes are those in common use; None for `classes` where the data set names its classes itself.
    """

    train: dict[str, Any]
    test: dict[str, Any]
    val: dict[str, Any] | None = None
    size: int = 224
    crop_ratio: float = 0.875
    mean: Colour = IMAGENET_MEAN
    std: Colour = IMAGENET_STD
    augmentation: Augmentation = RECIPE
    classes: int | None = None
    downloads: bool = True


def _by_flag(**usual: Any) -> Entry:
    return Entry({"train": True}, {"train": False}, crop_ratio=1.0, **usual)


def _by_name(train: str = "train", test: str = "test", val: str | None = None, **usual: Any) -> Entry:
    return Entry({"split": train}, {"split": test}, None if val is None else {"split": val}, **usual)


def _grey(mean: float, std: float) -> dict[str, Any]:
    return {"size": 28, "mean": (mean,) * 3, "std": (std,) * 3}


DATASETS: dict[str, Entry] = {
    "CIFAR10": _by_flag(
        size=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), augmentation=SMALL
    ),
    "CIFAR100": _by_flag(
        size=32, mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762), augmentation=SMALL
    ),
    "MNIST": _by_flag(**_grey(0.1307, 0.3081), augmentation=SIGNS),
    "FashionMNIST": _by_flag(**_grey(0.2860, 0.3530), augmentation=SMALL),
    "KMNIST": _by_flag(**_grey(0.1918, 0.3483), augmentation=SIGNS),
    "SVHN": _by_name(
        size=32, crop_ratio=1.0, mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970), augmentation=SIGNS,
        classes=10,
    ),
    "STL10": _by_name(
        size=96, crop_ratio=1.0, mean=(0.4467, 0.4398, 0.4066), std=(0.2603, 0.2566, 0.2713), augmentation=SMALL
    ),
    "GTSRB": _by_name(size=32, crop_ratio=1.0, augmentation=SIGNS, classes=43),
    "Flowers102": _by_name(val="val", classes=102),
    "Food101": _by_name(),
    "DTD": _by_name(val="val"),
    "FGVCAircraft": _by_name(val="val"),
    "OxfordIIITPet": _by_name(train="trainval"),
    "Country211": _by_name(val="valid"),
    "RenderedSST2": _by_name(val="val", augmentation=SIGNS),
    "StanfordCars": _by_name(downloads=False),
    "Imagenette": _by_name(test="val"),
    "ImageNet": _by_name(test="val", downloads=False),
}  # fmt: skip


class TorchvisionImages:
    """Some samples of a torchvision data set of (image, class) pairs.

    Args:
        dataset: the data set.
        name: what an error calls it.
        indices: the samples, in order.
    """

    def __init__(self, dataset: Any, name: str, indices: list[int] | range | None = None) -> None:
        self.dataset, self.name = dataset, name
        self.indices = range(len(dataset)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> tuple[Image.Image, int | None]:
        """Give a sample in RGB.

        Raises:
            UserError: it cannot be decoded.
        """
        try:
            image, label = self.dataset[self.indices[index]]
            return to_rgb(image, self.name), int(label)
        except DAMAGE as error:
            raise UserError(f"{self.name}: image {self.indices[index]} cannot be read ({error})") from error


def find_entry(name: str) -> Entry:
    """Look a data set up.

    Raises:
        UserError: unknown name; near ones are named.
    """
    if name in DATASETS:
        return DATASETS[name]
    lower = {known.lower(): known for known in DATASETS}
    near = [lower[match] for match in difflib.get_close_matches(name.lower().replace("-", ""), lower, 3, 0.6)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(DATASETS)}"
    raise UserError(f"data.dataset: unknown torchvision data set {name!r}; {hint}")


def open_split(name: str, split: dict[str, Any], root: str, download: bool) -> Any:
    """Make the data set of one split, downloading it if asked to.

    Raises:
        UserError: its files are not there, or cannot be downloaded.
    """
    options = {"download": download} if DATASETS[name].downloads else {}
    try:
        return getattr(torchvision.datasets, name)(root, **split, **options)
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        # torchvision reports a missing network, a broken archive and missing files by these.
        reason = " ".join(str(error).split()).removesuffix(". You can use download=True to download it")
        if download and DATASETS[name].downloads:
            reason = f"they cannot be downloaded ({reason})"
        elif DATASETS[name].downloads:
            reason = f"{reason}; data.download: true gets them"
        raise UserError(
            f"{Path(root).absolute()}: the files of {name} are expected in this folder, laid out as "
            f"torchvision.datasets.{name} has them; {reason}"
        ) from error
