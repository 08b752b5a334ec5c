"""Folders of photographs: list them, make them smaller once, load them into one tensor."""

import logging
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sinelr_lightning.errors import UserError

__all__ = ["downsampled", "has_alpha", "image_size", "list_images", "load_images"]

log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
GREY = {"white": 255, "black": 0}
Background = Literal["white", "black"]


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """The jpg, jpeg, png and webp files of `folder` and its subfolders, sorted by path; hidden ones are skipped.

    Raises:
        UserError: `folder` does not exist or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of images")
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not found:
        raise UserError(f"{folder}: holds no image ({', '.join(s[1:] for s in SUFFIXES)} are read)")
    return found


def load_images(
    paths: Sequence[str | os.PathLike[str]], background: Background | None = None, factor: int = 1
) -> Tensor:
    """Load images of one size as uint8 [N, H, W, 3]; grey becomes RGB, EXIF orientation is not applied.

    Transparency is composited in the stored (gamma-encoded) values, `rgb·a + background·(1-a)`: half-transparent
    red (255, 0, 0) over white is (255, 128, 128) at a = 127/255. With `background=None` alpha is dropped.

    Args:
        paths: the N files.
        background: what transparent pixels show, None to ignore transparency.
        factor: shrink each image by area to round(W/factor) × round(H/factor), after compositing.

    Raises:
        UserError: a file cannot be decoded, has 16-bit grey values, or differs in size from the first one.
    """
    images: Tensor | None = None
    for index, path in enumerate(paths):
        pixels = _shrink(_over(_open(path), background), factor, Image.Resampling.BOX)
        array = torch.from_numpy(np.array(pixels))  # np.array copies: torch refuses PIL's read-only buffer
        if images is None:
            images = torch.empty((len(paths), *array.shape), dtype=torch.uint8)
        if array.shape != images.shape[1:]:
            raise UserError(
                f"{path}: {pixels.width} × {pixels.height} pixels, but {Path(paths[0]).name} has "
                f"{images.shape[2]} × {images.shape[1]}; all images of a scene must have one size"
            )
        images[index] = array
    if images is None:
        raise UserError("no images to load")
    return images


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) from the file's header alone.

    Raises:
        UserError: the file is missing or is no image.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError) as error:
        raise _unreadable(path, error) from error


def has_alpha(path: str | os.PathLike[str]) -> bool:
    """True if the image carries transparency."""
    return _open(path).mode == "RGBA"


def downsampled(folder: str | os.PathLike[str], factor: int | None) -> Path:
    """The folder with `folder`'s images shrunk by `factor`, made beside it as `{folder}_{factor}` if missing.

    Factor 1 or None gives `folder` itself. A folder that is already there is used as it is, also when `folder`
    itself is not there. What is made are PNG files of round(W/factor) × round(H/factor) pixels (Lanczos), kept for
    the next run: 4032 × 3024 at factor 8 becomes 504 × 378. The new folder appears whole or not at all; of two
    processes that make it at once, the second one uses the first one's.

    Raises:
        UserError: factor < 1, no such folder, an image count that differs from `folder`'s, an unreadable image,
            two images that differ only in their suffix, or a place that cannot be written to.
    """
    folder, factor = Path(folder), 1 if factor is None else factor
    if factor < 1:
        raise UserError(f"factor: {factor}; it must be a whole number from 1 upward")
    target = folder if factor == 1 else folder.with_name(f"{folder.name}_{factor}")
    if target.is_dir():
        if factor > 1 and folder.is_dir():
            _same_count(folder, target)
        return target
    if not folder.is_dir():
        others = sorted(path.name for path in folder.parent.glob(f"{folder.name}_*") if path.is_dir())
        hint = f"; there is {', '.join(others)}: set factor to match" if others else ""
        raise UserError(f"{target}: no such folder of images{hint}")
    _make(folder, target, factor)
    _same_count(folder, target)
    return target


def _make(folder: Path, target: Path, factor: int) -> None:
    sources = list_images(folder)
    names = [path.relative_to(folder).with_suffix(".png") for path in sources]
    if sorted(set(names)) != names:  # poses go by the sorted order, so new suffixes must not change it
        raise UserError(f"{folder}: file names that differ only in their suffix; rename them or make {target}")
    log.info("shrinking %d images by %d into %s, once", len(sources), factor, target)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir()
        for source, name in zip(sources, names, strict=True):
            small = _shrink(_open(source), factor, Image.Resampling.LANCZOS)
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            small.save(temporary / name)
        temporary.rename(target)
    except OSError as error:
        if not target.is_dir():  # another process may have been first; then its folder is used
            raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _same_count(folder: Path, target: Path) -> None:
    full, small = len(list_images(folder)), len(list_images(target))
    if full != small:
        raise UserError(
            f"{target}: holds {small} images, but {folder.name} holds {full}; delete {target.name}, it is made anew"
        )


def _open(path: str | os.PathLike[str]) -> Image.Image:
    """The decoded image, RGBA if it has any transparency, else RGB."""
    try:
        image = Image.open(path)
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error
    if image.mode[0] in "IF":  # converting these to RGB clips instead of scaling
        raise UserError(f"{path}: has more than 8 bits of grey; 8 bits a channel are read")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _unreadable(path: str | os.PathLike[str], error: BaseException) -> UserError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return UserError(f"{path}: cannot be read as an image ({reason})")


def _over(image: Image.Image, background: Background | None) -> Image.Image:
    """RGB, with transparency composited over `background`."""
    if background is None or image.mode == "RGB":
        return image.convert("RGB")
    canvas = Image.new("RGBA", image.size, (GREY[background],) * 3 + (255,))
    return Image.alpha_composite(canvas, image).convert("RGB")


def _shrink(image: Image.Image, factor: int, resample: Image.Resampling) -> Image.Image:
    if factor == 1:
        return image
    size = (max(1, round(image.width / factor)), max(1, round(image.height / factor)))
    return image.resize(size, resample)
