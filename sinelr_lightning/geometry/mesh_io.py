"""Mesh files, read and written without losing a digit, and where a mesh lies in the cube [−1, 1]³."""

import importlib.util
import logging
import os
import re
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import ArrayLike, NDArray

from sinelr_lightning.errors import UserError
from sinelr_lightning.files import searched_in, user_file
from sinelr_lightning.geometry.mesh_formats import ENCODERS, decode_obj, vertex_colours

__all__ = ["READABLE", "WRITABLE", "CubePlacement", "encoder_of", "load_mesh", "save_mesh"]

READABLE = (".glb", ".gltf", ".obj", ".off", ".ply", ".stl")
"""Suffixes of the files that `load_mesh` reads without further packages."""
WRITABLE = tuple(ENCODERS)
"""Suffixes of the files that `save_mesh` writes."""

# suffix: what its reader in trimesh imports, and the name that pip knows it by
_WITH_PACKAGE = {
    ".3dxml": ("lxml", "lxml"),
    ".3mf": ("lxml", "lxml"),
    ".dae": ("collada", "pycollada"),
    ".step": ("cascadio", "cascadio"),
    ".stp": ("cascadio", "cascadio"),
    ".xaml": ("lxml", "lxml"),
    ".zae": ("collada", "pycollada"),
}
_FLAT = 1e-9  # share of the length; thinner, a mesh cannot be told from a plane that was rounded

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CubePlacement:
    """Where a shape lies in the cube [−1, 1]³:  cube = (x − centre) / scale.

    Attributes:
        centre: middle of the shape's bounding box, in the shape's own unit.
        scale: length, in the shape's own unit, of one unit of the cube.
    """

    centre: tuple[float, float, float]
    scale: float

    @classmethod
    def of(cls, shape: trimesh.Trimesh | ArrayLike, padding: float = 0.1) -> "CubePlacement":
        """Place a shape so that the longest side of its bounding box spans 2·(1 − padding) of the cube.

        Worked numbers: a box of 4 × 2 × 1 around (10, 0, 0), padding 0.2: centre (10, 0, 0), scale 4/1.6 = 2.5.

        Args:
            shape: a mesh (its vertices that no face uses do not count), or points [N, 3].
            padding: share of the cube left free, in [0, 1).

        Raises:
            UserError: padding outside [0, 1), or a shape without extent.
        """
        if not 0 <= padding < 1:
            raise UserError(f"padding is {padding}; it is the share of the cube left free, in [0, 1)")
        points = shape.triangles.reshape(-1, 3) if isinstance(shape, trimesh.Trimesh) else np.asarray(shape, float)
        low, high = points.min(axis=0), points.max(axis=0)
        longest = float((high - low).max())
        if longest == 0:
            raise UserError("all points of the shape are the same; it needs an extent to be placed in the cube")
        x, y, z = (low + (high - low) / 2).tolist()
        return cls((x, y, z), longest / (2 * (1 - padding)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CubePlacement":
        """The placement that `to_dict` described."""
        x, y, z = map(float, values["centre"])
        return cls((x, y, z), float(values["scale"]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint that is read without unpickling."""
        return asdict(self)

    def to_cube(self, x: ArrayLike) -> NDArray[np.float64]:
        """[..., 3] in the shape's own unit → [..., 3] in the cube."""
        return (np.asarray(x, np.float64) - self.centre) / self.scale

    def from_cube(self, x: ArrayLike) -> NDArray[np.float64]:
        """[..., 3] in the cube → [..., 3] in the shape's own unit."""
        return np.asarray(x, np.float64) * self.scale + self.centre


def load_mesh(path: str | os.PathLike[str]) -> trimesh.Trimesh:
    """Read a mesh as it is stored: vertices [V, 3] in float64 and in the file's order, faces [F, 3], nothing merged.

    Polygons become triangles, the transforms of a scene are applied in float64, several meshes become one (logged as
    information). Vertex colours are kept; textures, materials and normals are not.

    Raises:
        UserError: the file is missing, of an unknown format, unreadable, or what it holds cannot enclose anything:
            no faces, fewer than four, all in one plane, vertices that are no numbers or not there.
    """
    path = Path(path)
    _check_file(path)
    try:
        with _quiet_reader():
            mesh = _joined(_read_scene(path), path)
    except UserError:
        raise
    except Exception as error:  # the readers raise whatever their parsing stumbles on
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        if isinstance(error, ModuleNotFoundError):  # trimesh's guess at an encoding, for bytes that are no UTF-8
            reason = "it is no text"
        raise UserError(
            f"{path} cannot be read as a {path.suffix} file; it is damaged, incomplete or wrongly named ({reason})"
        ) from error
    _check_solid(mesh, path)
    return mesh


def _check_file(path: Path) -> None:
    suffix = path.suffix.lower()
    accepted = " ".join(READABLE)
    if path.is_dir():
        raise UserError(f"{path} is a folder; a mesh file is needed ({accepted})")
    if not path.is_file():
        raise UserError(f"{path} does not exist{searched_in(path)}; a mesh file is needed ({accepted})")
    if suffix in _WITH_PACKAGE:
        module, package = _WITH_PACKAGE[suffix]
        if importlib.util.find_spec(module) is None:
            raise UserError(f"{path}: reading {suffix} needs the package {package} (pip install {package})")
    elif suffix not in READABLE:
        further = " ".join(_WITH_PACKAGE)
        raise UserError(f"{path} is no known mesh file; accepted are {accepted}, with further packages {further}")


@contextmanager
def _quiet_reader() -> Generator[None]:
    """What trimesh and numpy have to say about a bad file ends as one error of ours, not in the terminal."""
    logger = logging.getLogger("trimesh")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # older numpy only warns that it left out the rest of a text behind something that is no number
            warnings.filterwarnings("error", message="string or file could not be read to its end")
            yield
    finally:
        logger.setLevel(level)


def _read_scene(path: Path) -> trimesh.Scene:
    content = path.read_bytes()
    if path.suffix.lower() == ".obj":
        return trimesh.Scene(decode_obj(content))
    if path.suffix.lower() == ".stl" and len(content) != 84 + 50 * int.from_bytes(content[80:84], "little"):
        content.decode()  # not binary, so text; of other bytes trimesh makes one if a package that guesses is there
    scene = trimesh.load_scene(path, process=False)
    promised = re.match(rb"\s*C?OFF\s+(?:#.*\s+)*\d+\s+(\d+)", content)
    for mesh in scene.geometry.values():  # two readers that take what is there of a file that was cut off
        if promised and len(getattr(mesh, "faces", ())) < int(promised[1]):
            raise ValueError(f"fewer than {int(promised[1])} faces")
        for name, element in mesh.metadata.get("_ply_raw", {}).items():
            stored = element.get("data")
            columns = stored.values() if isinstance(stored, dict) else [stored]
            if element["length"] and any(column is None or len(column) < element["length"] for column in columns):
                raise ValueError(f"fewer than {element['length']} of {name}")
    return scene


def _joined(scene: trimesh.Scene, path: Path) -> trimesh.Trimesh:
    """All meshes of a scene as one, in the scene's coordinates."""
    parts = scene.dump()
    meshes = [part for part in parts if isinstance(part, trimesh.Trimesh) and len(part.faces)]
    if not meshes:
        points = sum(len(getattr(part, "vertices", ())) for part in parts)
        held = f"{points} points but no faces" if points else f"no faces (it is empty or no {path.suffix} file)"
        raise UserError(f"{path} holds {held}; a mesh of triangles or polygons is needed")
    if len(meshes) > 1:
        log.info("%s: %d meshes joined into one", path, len(meshes))
    for mesh in meshes:
        lowest, highest = int(mesh.faces.min()), int(mesh.faces.max())
        if lowest < 0 or highest >= len(mesh.vertices):
            wrong = lowest if lowest < 0 else highest
            raise UserError(f"{path}: a face names vertex {wrong}, counted from 0; there are {len(mesh.vertices)}")
    colours = [colour for mesh in meshes if (colour := vertex_colours(mesh)) is not None]
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes[:-1])])
    return trimesh.Trimesh(
        np.concatenate([mesh.vertices for mesh in meshes]).astype(np.float64),
        np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts, strict=True)]).astype(np.int64),
        vertex_colors=np.concatenate(colours) if len(colours) == len(meshes) else None,
        process=False,
    )


def _check_solid(mesh: trimesh.Trimesh, path: Path) -> None:
    bad = int((~np.isfinite(mesh.vertices)).any(axis=1).sum())
    if bad:
        raise UserError(f"{path}: {bad} of {len(mesh.vertices)} vertices are NaN or infinite; finite ones are needed")
    if len(mesh.faces) < 4:
        raise UserError(f"{path} has fewer than 4 faces ({len(mesh.faces)}); they enclose nothing")
    points = mesh.vertices[np.unique(mesh.faces)]
    longest, _, shortest = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    if shortest <= _FLAT * longest:
        raise UserError(f"{path} is flat: all vertices lie in one plane; a mesh that encloses something is needed")


def save_mesh(mesh: trimesh.Trimesh, path: str | os.PathLike[str]) -> Path:
    """Write a mesh whole or not at all, its vertices to within 1e-6 of its size, wherever it lies.

    PLY (binary), OBJ and OFF keep every digit. GLB stores float32 by its definition: coordinates are relative to the
    middle, which becomes the node's translation. STL is binary where float32 suffices, else ASCII. PLY, OBJ and GLB
    keep vertex colours.

    Returns:
        the path written to.

    Raises:
        UserError: a suffix that is not in `WRITABLE`, or a place that cannot be written to.
    """
    encode = encoder_of(path)
    with user_file(path) as temporary:
        temporary.write_bytes(encode(mesh))
    return Path(path)


def encoder_of(path: str | os.PathLike[str]) -> Callable[[trimesh.Trimesh], bytes]:
    """Give what turns a mesh into the content of this file.

    Raises:
        UserError: a suffix that is not in `WRITABLE`.
    """
    suffix = Path(path).suffix
    if suffix.lower() not in ENCODERS:
        raise UserError(f"{path}: meshes are written as {' '.join(WRITABLE)}, not as '{suffix}'")
    return ENCODERS[suffix.lower()]
