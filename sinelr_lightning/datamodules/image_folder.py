"""Folders of classes: train/CLASS/… with val/ and test/ beside it, or CLASS/… alone with images held out."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sinelr_lightning.datamodules.image_batches import Source
from sinelr_lightning.datamodules.image_files import SUFFIXES, ImageFiles, find_images, unreadable
from sinelr_lightning.errors import UserError

__all__ = ["Splits", "image_files", "read_image_folder"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Splits:
    """The images of the three splits. `notes` says what else a protocol should."""

    train: Source
    val: Source
    test: Source
    class_names: list[str]
    notes: dict[str, Any] = field(default_factory=dict)


def read_image_folder(root: str, hold: int = 5, skip: bool = False) -> Splits:
    """List and check the images below `root`; see `ImageFolderData` for the layouts.

    Raises:
        UserError: what `ImageFolderData` names.
    """
    folder = Path(root)
    names = _subfolders(folder)
    own = next((name for name in ("val", "valid", "validation") if name in names), "val")
    if names and set(names) <= {own, "test"}:
        raise UserError(f"{folder}: has {' and '.join(names)} but no train; put the training images into train/CLASS")
    divided = "train" in names and (len(names) == 1 or own in names or "test" in names)
    train, classes = _class_folder(folder / "train" if divided else folder, skip)
    own_val, own_test = divided and own in names, divided and "test" in names
    notes: dict[str, Any] = {}
    left_out = train.left_out
    if own_val:
        val = _same_classes(folder / own, folder / "train", classes, skip)
        left_out += val.left_out
    else:
        train, val = _hold_out(train, classes, hold)
        notes["hold"] = hold
    test = val
    if own_test:
        test = _same_classes(folder / "test", folder / "train", classes, skip)
        left_out += test.left_out
    if skip:
        notes["left_out"] = left_out
    return Splits(train, val, test, classes, {**notes, "test_is_val": not own_test})


def image_files(path: str, skip: bool = False) -> ImageFiles:
    """One image file, or all at any depth below a folder, without classes.

    Raises:
        UserError: there is no image, or one that is unreadable, unless `skip`.
    """
    place = Path(path)
    if place.is_file():
        return _checked(ImageFiles(place.parent, [place.name]), skip)
    if not place.is_dir():
        raise UserError(f"{place}: no such image or folder of images")
    files = ImageFiles(place, find_images(place))
    if not len(files):
        raise UserError(f"{place}: holds no image ({_kinds()} are read)")
    return _checked(files, skip)


def _kinds() -> str:
    return ", ".join(suffix[1:] for suffix in SUFFIXES)


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of images")
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _class_folder(folder: Path, skip: bool) -> tuple[ImageFiles, list[str]]:
    """The images of all classes, in the order of class and path, and the classes in the order of their names."""
    classes = _subfolders(folder)
    if not classes:
        raise UserError(f"{folder}: holds no folder of a class; images are expected in {folder}/CLASS/")
    if len(classes) == 1:
        raise UserError(f"{folder}: holds only one class, {classes[0]}; at least two are needed")
    names, labels = [], []
    for label, name in enumerate(classes):
        found = find_images(folder / name)
        names += [f"{name}/{path}" for path in found]
        labels += [label] * len(found)
        if not found:
            raise UserError(f"{folder / name}: holds no image ({_kinds()} are read)")
    files = _checked(ImageFiles(folder, names, labels), skip)
    for label, count in enumerate(_counts(files, classes)):
        if not count:
            raise UserError(f"{folder / classes[label]}: holds no readable image")
    return files, classes


def _same_classes(folder: Path, train: Path, classes: list[str], skip: bool) -> ImageFiles:
    files, here = _class_folder(folder, skip)
    more, fewer = sorted(set(here) - set(classes)), sorted(set(classes) - set(here))
    if more or fewer:
        parts = [f"{kind} {', '.join(names[:5])}" for kind, names in (("lacks", fewer), ("adds", more)) if names]
        raise UserError(f"{folder}: its classes differ from those of {train}: it {' and '.join(parts)}")
    return files


def _counts(files: ImageFiles, classes: list[str]) -> list[int]:
    assert files.labels is not None
    return np.bincount(files.labels, minlength=len(classes)).tolist()


def _hold_out(files: ImageFiles, classes: list[str], hold: int) -> tuple[ImageFiles, ImageFiles]:
    """Every `hold`-th image of each class, from its first on, goes from training to validation."""
    counts = _counts(files, classes)
    if min(counts) < 2:
        name = classes[counts.index(min(counts))]
        raise UserError(f"{files.root / name}: holds one image; two are needed where a part is held out (data.hold)")
    # The images lie class by class, so a count within each class is the number less the class's first.
    within = np.concatenate([np.arange(count) for count in counts])
    return files.only(within % hold != 0), files.only(within % hold == 0)


def _checked(files: ImageFiles, skip: bool) -> ImageFiles:
    wrong = unreadable(files)
    if not wrong:
        return files
    first = next(iter(wrong.values()))
    if not skip:
        raise UserError(f"{first}{_and_more(len(wrong))}; data.skip_unreadable leaves such files out")
    log.warning("left out %d unreadable image(s), the first: %s", len(wrong), first)
    keep = np.ones(len(files), dtype=bool)
    keep[list(wrong)] = False
    kept = files.only(keep)
    kept.left_out = len(wrong)
    return kept


def _and_more(count: int) -> str:
    return f" (and {count - 1} more)" if count > 1 else ""
