"""What a `transforms*.json` file says, checked: frames with poses, intrinsics, distortion and the split."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sinelr_lightning.datamodules.images import SUFFIXES, image_size
from sinelr_lightning.datamodules.poses import Array
from sinelr_lightning.errors import UserError

__all__ = ["SPLITS", "Frame", "number", "own_split", "read_frames"]

SPLITS = ("train", "val", "test")
MODELS = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")


@dataclass(frozen=True)
class Frame:
    """One posed photograph.

    Attributes:
        name: its path below the file's folder.
        path: the image, which need not exist.
        pose: float64 [3, 4], camera to world, OpenGL axes.
        values: the frame's entries over those of the whole file.
    """

    name: str
    path: Path
    pose: Array
    values: Mapping[str, Any]

    def calibration(self, source: Path) -> tuple[list[float], list[float], list[float]]:
        """(fx, fy, cx, cy), (k1, k2, p1, p2) and (height, width) that they are for.

        A missing `fl_y` is `fl_x`, a missing `fl_x` follows from `camera_angle_x`, missing `cx`, `cy` are the middle
        and missing `w`, `h` the size of the image itself.

        Raises:
            UserError: no focal length, or a camera model or distortion that is not supported.
        """
        values = self.values
        model = "OPENCV_FISHEYE" if values.get("is_fisheye") else values.get("camera_model", "OPENCV")
        if model not in MODELS:
            raise UserError(f"{source}: camera_model {model} is not supported; {', '.join(MODELS)} are")
        for key in ("k3", "k4", "k5", "k6"):
            if _optional(values, key, 0.0, source) != 0:
                raise UserError(f"{source}: {key} = {values[key]} is not supported; k1, k2, p1 and p2 are")
        if "w" in values and "h" in values:
            height, width = number(values, "h", source), number(values, "w", source)
        else:
            height, width = image_size(self.path)
        if "fl_x" not in values and "camera_angle_x" in values:
            fx = 0.5 * width / np.tan(0.5 * number(values, "camera_angle_x", source))
        else:
            fx = number(values, "fl_x", source)
        fy = _optional(values, "fl_y", fx, source)
        cx, cy = (_optional(values, key, size / 2, source) for key, size in (("cx", width), ("cy", height)))
        return (
            [fx, fy, cx, cy],
            [_optional(values, k, 0.0, source) for k in ("k1", "k2", "p1", "p2")],
            [height, width],
        )


def read_frames(source: Path) -> tuple[dict[str, Any], list[Frame]]:
    """The whole file and its frames, in their order.

    Raises:
        UserError: no JSON, no frames, a frame without `file_path` or with a matrix that is no pose.
    """
    try:
        meta = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: cannot be read as JSON ({error})") from error
    frames = meta.get("frames") if isinstance(meta, dict) else None
    if not isinstance(frames, list) or not frames:
        raise UserError(f'{source}: has no "frames"')
    shared = {key: value for key, value in meta.items() if key != "frames"}
    return meta, [_frame(shared, frame, index, source) for index, frame in enumerate(frames)]


def own_split(meta: Mapping[str, Any], frames: list[Frame], source: Path) -> dict[str, list[int]] | None:
    """`train`, `val`, `test` indices from the file's `*_filenames`, None if it has none.

    Where `val` or `test` is missing, the other serves as both; where both or `train` are missing, the frames that
    no list names.

    Raises:
        UserError: a name that no frame has, or no view left to train on or held out.
    """
    where = {frame.name: index for index, frame in enumerate(frames)}
    split: dict[str, list[int]] = {}
    for part in SPLITS:
        names = meta.get(f"{part}_filenames") or []
        unknown = [name for name in names if _file_name(str(name)) not in where]
        if unknown:
            raise UserError(f"{source}: {part}_filenames names {unknown[0]}, which is no frame's file_path")
        if names:
            split[part] = [where[_file_name(name)] for name in names]
    if not split:
        return None
    used = {index for indices in split.values() for index in indices}
    rest = [index for index in range(len(frames)) if index not in used]
    split.setdefault("train", rest)
    split.setdefault("val", split.get("test", rest))
    split.setdefault("test", split["val"])
    if not all(split.values()):
        raise UserError(f"{source}: its *_filenames leave no view to train on or none held out")
    return split


def number(values: Mapping[str, Any], key: str, source: Path) -> float:
    """`values[key]`, a positive number.

    Raises:
        UserError: it is missing or anything else.
    """
    if key not in values:
        raise UserError(f"{source}: has no {key}")
    value = _optional(values, key, 0.0, source)
    if value <= 0:
        raise UserError(f"{source}: {key} = {value}; a positive number is expected")
    return value


def _optional(values: Mapping[str, Any], key: str, default: float, source: Path) -> float:
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise UserError(f"{source}: {key} = {value!r}; a finite number is expected")
    return float(value)


def _frame(shared: dict[str, Any], frame: Any, index: int, source: Path) -> Frame:
    if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
        raise UserError(f'{source}: frame {index} has no "file_path"')
    name = _file_name(frame["file_path"])
    try:
        pose = np.array(frame.get("transform_matrix"), dtype=np.float64)
    except (TypeError, ValueError):
        pose = np.empty(0)
    if pose.shape not in ((4, 4), (3, 4)) or not np.isfinite(pose).all():
        raise UserError(
            f"{source}: the transform_matrix of {frame['file_path']} is not 4 × 4 finite numbers, camera to world"
        )
    return Frame(name, source.parent / name, pose[:3], shared | frame)


def _file_name(file_path: str) -> str:
    """`file_path` without a leading "./", with the .png that Blender's files leave out."""
    name = Path(file_path).as_posix()
    return name if name.lower().endswith(SUFFIXES) else f"{name}.png"
