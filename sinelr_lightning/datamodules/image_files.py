"""Image files of every kind as 8-bit RGB: found below a folder, checked by their headers, decoded one at a time."""

import os
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from sinelr_lightning.errors import UserError

__all__ = ["SUFFIXES", "ImageFiles", "find_images", "read_rgb", "to_rgb", "unreadable"]

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".tif", ".tiff")
# What Pillow raises on damaged files, depending on the format and on where the damage is.
DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
ORIENTATION, BITS, SAMPLE_FORMAT = 0x0112, 258, 339  # tags of EXIF and TIFF
SIGNED = 2
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageFiles:
    """Files below a folder, with the number of each one's class.

    The names are one array of bytes: of a list of a million strings, every worker process would soon own a copy, for
    counting references writes into the shared pages.

    Args:
        root: the folder.
        names: paths relative to it.
        labels: class of each, or None where it is not known.

    Attributes:
        left_out: unreadable files that were taken away.
    """

    def __init__(self, root: Path, names: Sequence[str], labels: Sequence[int] | np.ndarray | None = None) -> None:
        self.root = root
        self._names = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)
        self.labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        self.left_out = 0

    def __len__(self) -> int:
        return len(self._names)

    def path(self, index: int) -> Path:
        """The file with this number."""
        return self.root / os.fsdecode(self._names[index])

    def read(self, index: int) -> tuple[Image.Image, int | None]:
        """Decode a file; give it in RGB with the number of its class.

        Raises:
            UserError: it cannot be decoded.
        """
        return read_rgb(self.path(index)), None if self.labels is None else int(self.labels[index])

    def only(self, keep: np.ndarray) -> "ImageFiles":
        """Those files for which `keep` is true."""
        part = ImageFiles(self.root, [], None if self.labels is None else self.labels[keep])
        part._names = self._names[keep]
        return part


def find_images(folder: Path) -> list[str]:
    """Image files at any depth below `folder`, relative to it, sorted; links are followed, hidden ones left out."""
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = os.path.relpath(parent, folder)
        found += [
            os.path.normpath(os.path.join(below, name))
            for name in files
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    return sorted(found)


def unreadable(files: ImageFiles, limit: int = 100_000) -> dict[int, str]:
    """Numbers of the files whose header is no image's, each with one line that names it.

    Only headers are read, about 0.1 ms a file: decoding everything would take as long as the first epoch. A file
    that is cut off behind its header is found when it is decoded. Of more files than `limit`, that many evenly spaced
    ones are looked at, so that a folder of something else is noticed while a million files do not delay the start.
    """
    numbers = range(0, len(files), max(1, -(-len(files) // limit)))
    with ThreadPoolExecutor(8) as pool:  # on a network drive the time goes into waiting
        lines = pool.map(lambda number: _header(files.path(number)), numbers)
        return {number: line for number, line in zip(numbers, lines, strict=True) if line}


def _header(path: Path) -> str | None:
    try:
        with Image.open(path):
            return None
    except DAMAGE as error:
        return _line(path, error)


def read_rgb(path: str | os.PathLike[str]) -> Image.Image:
    """Decode a file to 8-bit RGB, upright as its EXIF orientation says; see `to_rgb`.

    Raises:
        UserError: the file is missing, no image, cut off, damaged, or has floating-point values.
    """
    try:
        with Image.open(path) as image:
            image.load()
            turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
            rgb = to_rgb(image, path)
    except DAMAGE as error:
        raise UserError(_line(path, error)) from error
    return rgb if turn is None else rgb.transpose(turn)


def to_rgb(image: Image.Image, name: object = "image") -> Image.Image:
    """Convert any of Pillow's modes to 8-bit RGB.

    Transparency, of a palette too, is composited over white in the stored values. Grey of more bits is scaled by the
    range of its type, 255·(v − min)/(max − min), where Pillow's own conversion clips at 255: 32,768 of 16 bits
    becomes 128.

    Args:
        image: what was decoded.
        name: what an error calls it.

    Raises:
        UserError: floating-point values, whose range nothing tells.
    """
    if image.mode == "F":
        raise UserError(f"{name}: has floating-point values; 8, 16 or 32 bits of whole numbers are read")
    if image.mode.startswith("I"):
        return _narrow(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
    # Pillow knows no direct way from premultiplied grey.
    layer = image.convert("LA") if image.mode == "La" else image
    return Image.alpha_composite(canvas, layer.convert("RGBA")).convert("RGB")


def _narrow(image: Image.Image) -> Image.Image:
    """Scale whole numbers of up to 32 bits to grey of 8."""
    bits, signed = 16, False  # PNG and PGM, whichever mode Pillow puts them into
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = int(image.tag_v2.get(BITS, (16,))[0])
        signed = int(image.tag_v2.get(SAMPLE_FORMAT, (1,))[0]) == SIGNED
    values = np.asarray(image).astype(np.int64)
    if signed:
        values += 1 << (bits - 1)
    else:
        values &= (1 << bits) - 1  # Pillow holds 32 unsigned bits as signed ones
    return Image.fromarray(np.rint(values * (255 / ((1 << bits) - 1))).astype(np.uint8))


def _line(path: str | os.PathLike[str], error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"{path}: is no image, or none of a format that Pillow reads"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return f"{path}: cannot be read as an image ({' '.join(str(reason).split())})"
