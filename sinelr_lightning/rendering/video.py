"""Frames to a film: H.264 where PyAV is installed, else an animated WebP; or a folder of PNGs."""

import importlib
import itertools
import logging
import os
import shutil
import uuid
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from sinelr_lightning.errors import UserError
from sinelr_lightning.files import atomic_path
from sinelr_lightning.rendering.image import save_png

__all__ = ["save_video"]

_log = logging.getLogger(__name__)

_BT709, _LIMITED_RANGE = 1, 1  # as ITU-T H.273 numbers them


def save_video(path: str | os.PathLike[str], frames: Iterable[Tensor], fps: float = 30) -> Path:
    """Write frames as a film, in the format that the path's suffix names, whole or not at all.

    - `.mp4`: H.264, yuv420p, BT.709, faststart, so that a browser plays it while it loads (PyAV, extra `video`). Odd
      sizes are padded to even by repeating the last row or column. Without PyAV an animated WebP is written beside,
      and a warning says so.
    - `.webp`, `.gif`: animated, endless.
    - no suffix, or an existing folder: `0000.png`, `0001.png`, … An existing folder may hold only such files, which
      are replaced.

    Frames are taken one at a time, so a generator that renders is fine; the animated formats keep them (as bytes)
    until the end, because their encoder wants all at once.

    Args:
        path: where to.
        frames: uint8 tensors [H, W, 3] of one size, on any device.
        fps: frames a second.

    Returns:
        the path that was written.

    Raises:
        UserError: unknown suffix, or a folder that holds other files.
        ValueError: no frames, or frames of other shapes or dtypes than the first.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if not suffix or path.is_dir():
        return _save_folder(path, _checked(frames))
    if suffix not in {".mp4", ".webp", ".gif"}:
        raise UserError(f"{path}: unknown suffix {suffix}; accepted are .mp4, .webp, .gif, or a folder for PNGs")
    if suffix == ".mp4":
        av = _import_av()
        if av is not None:
            return _save_mp4(av, path, _checked(frames), fps)
        path = path.with_suffix(".webp")
        _log.warning('writing %s: MP4 needs av: pip install "sinelr-lightning[video]"', path)
    return _save_animation(path, _checked(frames), fps)


def _import_av() -> ModuleType | None:
    try:
        return importlib.import_module("av")
    except ImportError:
        return None


def _save_mp4(av: ModuleType, path: Path, frames: Iterator[Tensor], fps: float) -> Path:
    first = next(frames)
    height, width = (size + size % 2 for size in first.shape[:2])
    with (
        atomic_path(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        stream = container.add_stream("h264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # named, because players guess differently at what is not
        codec = stream.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        codec.color_range = _LIMITED_RANGE
        for frame in itertools.chain([first], frames):
            picture = av.VideoFrame.from_ndarray(_even(frame).numpy(), format="rgb24")
            container.mux(stream.encode(picture.reformat(format="yuv420p", dst_colorspace="ITU709")))
        container.mux(stream.encode())
    return path


def _save_animation(path: Path, frames: Iterator[Tensor], fps: float) -> Path:
    from PIL import Image

    first, *rest = (Image.fromarray(frame.numpy()) for frame in frames)
    with atomic_path(path) as temporary:
        first.save(
            temporary, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, quality=90, method=2
        )
    return path


def _save_folder(path: Path, frames: Iterator[Tensor]) -> Path:
    with _atomic_folder(path) as temporary:
        for index, frame in enumerate(frames):
            save_png(temporary / f"{index:04d}.png", frame)
    return path


@contextmanager
def _atomic_folder(path: Path) -> Generator[Path]:
    """Yield a temporary folder beside `path`; put it in the place of `path` if the block succeeds."""
    _refuse_foreign_files(path)
    path = path.resolve()  # so that "." has a name and a parent
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            _refuse_foreign_files(path)
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refuse_foreign_files(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; give a folder for PNGs, or a name that ends in .mp4, .webp or .gif")
    foreign = (
        [f.name for f in path.iterdir() if not (f.suffix == ".png" and f.stem.isdigit())] if path.exists() else []
    )
    if foreign:
        raise UserError(f"{path}: holds other files ({foreign[0]}); give a new or empty folder for the PNGs")


def _checked(frames: Iterable[Tensor]) -> Iterator[Tensor]:
    """The frames on the CPU; the first one is looked at when the first is asked for."""
    shape = None
    for frame in frames:
        if frame.dtype != torch.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
            raise ValueError(f"frames are uint8 [H, W, 3], not {frame.dtype} {list(frame.shape)}")
        if shape not in (None, frame.shape):
            raise ValueError(f"frames have one size: {list(frame.shape)} follows {list(shape)}")
        shape = frame.shape
        yield frame.cpu()
    if shape is None:
        raise ValueError("a film needs at least one frame")


def _even(frame: Tensor) -> Tensor:
    height, width = frame.shape[:2]
    rows = torch.arange(height + height % 2).clamp(max=height - 1)
    columns = torch.arange(width + width % 2).clamp(max=width - 1)
    return frame[rows][:, columns] if height % 2 or width % 2 else frame
