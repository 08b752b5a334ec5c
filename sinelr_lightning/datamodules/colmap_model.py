"""COLMAP's sparse models: `cameras`, `images` and `points3D`, as text or binary files.

The layout is the one of COLMAP 3 and 4; `rigs` and `frames`, which COLMAP 4 adds, repeat what `images` says.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from sinelr_lightning.datamodules.poses import Array
from sinelr_lightning.errors import UserError

__all__ = ["ColmapCamera", "ColmapImage", "ColmapModel", "read_model"]

T = TypeVar("T")

# Binary files have the number, text files the name. Listed to be refused by name: everything after OPENCV.
MODEL_NAMES = (
    "SIMPLE_PINHOLE",
    "PINHOLE",
    "SIMPLE_RADIAL",
    "RADIAL",
    "OPENCV",
    "OPENCV_FISHEYE",
    "FULL_OPENCV",
    "FOV",
    "SIMPLE_RADIAL_FISHEYE",
    "RADIAL_FISHEYE",
    "THIN_PRISM_FISHEYE",
    "RAD_TAN_THIN_PRISM_FISHEYE",
)
PARAMETERS = {"SIMPLE_PINHOLE": 3, "PINHOLE": 4, "SIMPLE_RADIAL": 4, "RADIAL": 5, "OPENCV": 8}


@dataclass(frozen=True)
class ColmapCamera:
    """One lens: model name, image size in pixels, and the model's parameters as COLMAP orders them."""

    model: str
    width: int
    height: int
    parameters: tuple[float, ...]

    def intrinsics(self) -> list[float]:
        """fx, fy, cx, cy in pixels of width × height."""
        if self.model in ("PINHOLE", "OPENCV"):
            return list(self.parameters[:4])
        focal, cx, cy = self.parameters[:3]
        return [focal, focal, cx, cy]

    def distortion(self) -> list[float]:
        """OpenCV's k1, k2, p1, p2; what the model lacks is 0."""
        own = self.parameters[4:] if self.model in ("PINHOLE", "OPENCV") else self.parameters[3:]
        return [*own, 0.0, 0.0, 0.0, 0.0][:4]


@dataclass(frozen=True)
class ColmapImage:
    """One registered photograph.

    Attributes:
        name: path below the image folder.
        camera: id of its lens.
        quaternion, translation: world to camera in OpenCV axes (x right, y down, z forward), w x y z and [3].
        points: int64 [k], ids of the 3D points it sees.
    """

    name: str
    camera: int
    quaternion: tuple[float, ...]
    translation: tuple[float, ...]
    points: np.ndarray

    def world_to_camera(self) -> Array:
        """[3, 4] in OpenCV axes: rotation of the normalised quaternion, and translation."""
        w, x, y, z = np.array(self.quaternion) / np.linalg.norm(self.quaternion)
        rotation = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
        return np.column_stack([rotation, self.translation])


@dataclass(frozen=True)
class ColmapModel:
    """Lenses by id, photographs in the order of their names, and points [3] by id."""

    cameras: dict[int, ColmapCamera]
    images: list[ColmapImage]
    points: dict[int, tuple[float, float, float]]


def read_model(folder: Path) -> ColmapModel:
    """Read a sparse model, binary if it is there, else text.

    Raises:
        UserError: files missing, truncated or no COLMAP files, or a camera model that is not supported.
    """
    parts = ("cameras", "images", "points3D")
    suffix = next((s for s in (".bin", ".txt") if all((folder / (part + s)).is_file() for part in parts)), None)
    if suffix is None:
        raise UserError(f"{folder}: needs cameras, images and points3D, all three as .bin or all three as .txt")
    binary = suffix == ".bin"
    cameras_file, images_file, points_file = (folder / (part + suffix) for part in parts)
    cameras = _guarded(_binary_cameras if binary else _text_cameras, cameras_file)
    images = _guarded(_binary_images if binary else _text_images, images_file)
    points = _guarded(_binary_points if binary else _text_points, points_file)
    for image in images:
        if image.camera not in cameras:
            raise UserError(f"{images_file}: {image.name} has camera {image.camera}, which {cameras_file.name} lacks")
    return ColmapModel(cameras, sorted(images, key=lambda image: image.name), points)


def _guarded(reader: Callable[[Path], T], path: Path) -> T:
    try:
        return reader(path)
    except (OSError, ValueError, OverflowError, struct.error) as error:  # ValueError: also bad UTF-8
        raise UserError(f"{path}: is truncated or is no COLMAP file ({error})") from error


def _camera(model: str, width: int, height: int, parameters: tuple[float, ...]) -> ColmapCamera:
    if width < 1 or height < 1 or not np.isfinite(parameters).all():
        raise ValueError(f"camera of {width} × {height} pixels with parameters {parameters}")
    return ColmapCamera(model, width, height, parameters)


def _image(name: str, camera: int, pose: tuple[float, ...], points: np.ndarray) -> ColmapImage:
    if not np.isfinite(pose).all() or not any(pose[:4]):
        raise ValueError(f"the pose of {name} is {pose}")
    return ColmapImage(name, camera, pose[:4], pose[4:7], points[points >= 0])  # -1: a feature without a point


def _supported(model: str, path: Path) -> int:
    """How many parameters `model` has."""
    if model not in PARAMETERS:
        raise UserError(f"{path}: camera model {model} is not supported; {', '.join(PARAMETERS)} are")
    return PARAMETERS[model]


class _Bytes:
    """A binary file read from front to back; asking for more than there is raises `struct.error`."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        self.position = 0

    def take(self, layout: str) -> tuple:
        values = struct.unpack_from(f"<{layout}", self.data, self.position)
        self.position += struct.calcsize(f"<{layout}")
        return values

    def name(self) -> str:
        end = self.data.index(b"\0", self.position)
        text = self.data[self.position : end].decode()
        self.position = end + 1
        return text

    def records(self, count: int, dtype: np.dtype) -> np.ndarray:
        values = np.frombuffer(self.data, dtype, count, self.position)
        self.position += values.nbytes
        return values


def _binary_cameras(path: Path) -> dict[int, ColmapCamera]:
    data, cameras = _Bytes(path), {}
    for _ in range(data.take("Q")[0]):
        key, number, width, height = data.take("iiQQ")
        model = MODEL_NAMES[number] if 0 <= number < len(MODEL_NAMES) else f"number {number}"
        cameras[key] = _camera(model, width, height, data.take(f"{_supported(model, path)}d"))
    return cameras


def _binary_images(path: Path) -> list[ColmapImage]:
    feature = np.dtype([("xy", "<f8", 2), ("point", "<i8")])
    data, images = _Bytes(path), []
    for _ in range(data.take("Q")[0]):
        _, *pose, camera = data.take("i7di")
        name = data.name()
        images.append(_image(name, camera, tuple(pose), data.records(data.take("Q")[0], feature)["point"]))
    return images


def _binary_points(path: Path) -> dict[int, tuple[float, float, float]]:
    data, points = _Bytes(path), {}
    for _ in range(data.take("Q")[0]):
        key, x, y, z, *_, track = data.take("Q3d3BdQ")
        data.take(f"{8 * track}x")
        points[key] = (x, y, z)
    return points


def _lines(path: Path) -> Iterator[list[str]]:
    """Words of each line that is neither blank nor a comment."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            yield line.split()


def _text_cameras(path: Path) -> dict[int, ColmapCamera]:
    cameras = {}
    for key, model, width, height, *words in _lines(path):
        count, parameters = _supported(model, path), tuple(map(float, words))
        if len(parameters) != count:
            raise ValueError(f"camera {key} has {len(parameters)} parameters, {model} has {count}")
        cameras[int(key)] = _camera(model, int(width), int(height), parameters)
    return cameras


def _text_images(path: Path) -> list[ColmapImage]:
    # Two lines an image; the second lists its features and may be blank, so blank lines count here.
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    images = []
    for head, features in zip(lines[::2], [*lines[1::2], ""], strict=False):
        if not head.strip():
            break
        words, triples = head.split(maxsplit=9), features.split()
        pose, (camera, name) = tuple(map(float, words[1:8])), words[8:]
        if len(triples) % 3:
            raise ValueError(f"the features of {name} are not triples")
        points = np.array(triples[2::3], dtype=np.int64)
        images.append(_image(name, int(camera), pose, points))
    return images


def _text_points(path: Path) -> dict[int, tuple[float, float, float]]:
    points = {}
    for key, x, y, z, *_ in _lines(path):
        points[int(key)] = (float(x), float(y), float(z))
    return points
