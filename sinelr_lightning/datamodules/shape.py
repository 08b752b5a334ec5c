"""Solid shapes in the cube [−1, 1]³: from a mesh, or from a voxel grid."""

import hashlib
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import trimesh

from sinelr_lightning.errors import UserError, first_line
from sinelr_lightning.files import searched_in
from sinelr_lightning.geometry.inside import Solid, agreement
from sinelr_lightning.geometry.mesh_io import CubePlacement, load_mesh

__all__ = ["MeshShape", "Shape", "VolumeShape", "read_shape"]

BESIDE = 1e-4  # of the cube's half side: how far beside a face its two sides are looked at


class Shape(Protocol):
    """A solid in the cube: what training, scoring and the way back to the input's coordinates need."""

    source: Path
    placement: CubePlacement

    @property
    def surface(self) -> trimesh.Trimesh:
        """The true surface, in the cube's coordinates."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of everything that decides what is inside."""
        ...

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Whether points [N, 3] of the cube are inside: bool [N]."""
        ...

    def protocol(self) -> dict[str, Any]:
        """Plain values that say how inside was decided."""
        ...

    def describe(self) -> str:
        """The same in a line for people."""
        ...


class MeshShape:
    """The inside of a triangle mesh by generalised winding numbers, watertight or not.

    Args:
        path: any file that trimesh reads.
        padding: share of the cube's half side that stays free around the longest side of the mesh.

    Raises:
        UserError: the file cannot be read, or holds no solid.
    """

    def __init__(self, path: str | Path, padding: float = 0.1) -> None:
        self.source = Path(path)
        mesh = load_mesh(self.source)
        self.placement = CubePlacement.of(mesh, padding)
        placed = trimesh.Trimesh(self.placement.to_cube(mesh.vertices), mesh.faces, process=False)
        self.solid = Solid(placed)

    @cached_property
    def surface(self) -> trimesh.Trimesh:
        """The repaired mesh without what lies inside of other bodies, in the cube's coordinates."""
        mesh = self.solid.repaired
        step = BESIDE * mesh.face_normals
        sides = [self.solid.contains(mesh.triangles_center + sign * step) for sign in (1, -1)]
        return trimesh.Trimesh(mesh.vertices, mesh.faces[~(sides[0] & sides[1])], process=False)

    @cached_property
    def fingerprint(self) -> str:
        """Of vertices and faces as repaired, and of the placement."""
        mesh = self.solid.repaired
        return _digest(mesh.vertices, mesh.faces, np.array([*self.placement.centre, self.placement.scale]))

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Winding number above ½."""
        return self.solid.contains(points)

    @cached_property
    def _agreement(self) -> dict[str, Any]:
        return agreement(self.solid)

    def protocol(self) -> dict[str, Any]:
        """Repairs, watertightness, and how far winding number and ray parity agree."""
        checked = {f"agreement_{name}" if name == "points" else name: v for name, v in self._agreement.items()}
        return {"mesh": self.source.name, **asdict(self.solid.report), **checked}

    def describe(self) -> str:
        """Whether it is watertight, what was repaired, on how many points two methods agree."""
        report, checked = self.solid.report, self._agreement
        if report.watertight:
            closed = "watertight" if report.watertight_as_stored else "watertight once its seams are merged"
        else:
            closed = f"not watertight ({report.open_edges:,} open edges)"
        repairs = [(report.faces_flipped, "turned"), (report.faces_dropped, "dropped")]
        repaired = "".join(f", {count:,} faces {what}" for count, what in repairs if count)
        same, points = round(checked["agreement"] * checked["points"]), checked["points"]
        unclear = f", {checked['ambiguous']:.1%} of them are ambiguous" if checked["ambiguous"] else ""
        return f"{closed}{repaired}; winding number and ray parity agree on {same:,} of {points:,} points{unclear}"


class VolumeShape:
    """The occupied voxels of a grid; the input's coordinates are indices, the centre of voxel (i, j, k) is (i, j, k).

    Args:
        path: a NumPy file (.npy) with an array [X, Y, Z] of booleans or numbers; above `threshold` is inside.
        padding: share of the cube's half side that stays free around the occupied voxels.
        threshold: in the units of the file.

    Raises:
        UserError: the file is no such array, or all of it is on one side of the threshold.
    """

    def __init__(self, path: str | Path, padding: float = 0.1, threshold: float = 0.5) -> None:
        self.source = Path(path)
        self.threshold = threshold
        self.occupied = _read_volume(self.source) > threshold
        share = float(self.occupied.mean())
        if share in (0.0, 1.0):
            where = "no voxel is" if share == 0 else "every voxel is"
            raise UserError(f"{self.source}: {where} above the threshold {threshold}; --data.threshold sets another")
        spans = [np.flatnonzero(self.occupied.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
        corners = np.array([[span[0] - 0.5 for span in spans], [span[-1] + 0.5 for span in spans]])
        self.placement = CubePlacement.of(corners, padding)

    @cached_property
    def surface(self) -> trimesh.Trimesh:
        """The sides of occupied voxels beside empty ones, two triangles each, in the cube's coordinates."""
        padded = np.pad(self.occupied, 1).astype(np.int8)
        corners = np.array(padded.shape) + 1
        quads = []
        for axis in range(3):
            step = np.diff(padded, axis=axis)  # 1 where the shape begins along the axis, −1 behind its end
            low = np.argwhere(step)
            low[:, axis] += 1
            u, v = np.eye(3, dtype=int)[[(axis + 1) % 3, (axis + 2) % 3]]
            quad = np.stack([low, low + u, low + u + v, low + v], axis=1)  # it faces along the axis
            begins = step[step != 0] > 0
            quad[begins] = quad[begins][:, ::-1]
            quads.append(np.ravel_multi_index(tuple(quad.transpose(2, 0, 1)), tuple(corners)))
        places, quad = np.unique(np.concatenate(quads), return_inverse=True)
        quad = quad.reshape(-1, 4)
        # The padding and half a voxel lie between the lattice of corners and the voxels' centres.
        vertices = np.stack(np.unravel_index(places, tuple(corners)), axis=-1) - 1.5
        faces = np.concatenate([quad[:, [0, 1, 2]], quad[:, [0, 2, 3]]])
        return trimesh.Trimesh(self.placement.to_cube(vertices), faces, process=False)

    @cached_property
    def fingerprint(self) -> str:
        """Of the occupied voxels."""
        place = np.array([*self.placement.centre, self.placement.scale])
        return _digest(np.packbits(self.occupied), np.array(self.occupied.shape), place)

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Whether the voxel around each point is occupied; outside of the grid none is."""
        index = np.rint(self.placement.from_cube(points)).astype(np.int64)
        within = ((index >= 0) & (index < self.occupied.shape)).all(-1)
        inside = np.zeros(len(points), dtype=bool)
        inside[within] = self.occupied[tuple(index[within].T)]
        return inside

    def protocol(self) -> dict[str, Any]:
        """Size and threshold of the grid."""
        return {"volume": self.source.name, "voxels": list(self.occupied.shape), "threshold": self.threshold}

    def describe(self) -> str:
        """Size and filling."""
        size = " × ".join(map(str, self.occupied.shape))
        return f"{size} voxels, {self.occupied.mean():.1%} of them above {self.threshold}"


def read_shape(mesh: str | None, volume: str | None, padding: float, threshold: float) -> Shape:
    """Read the volume if one is named, else the mesh.

    Raises:
        UserError: none is named, padding outside [0, 1), or the file is at fault.
    """
    if volume is not None:
        return VolumeShape(volume, padding, threshold)
    if mesh is None:
        raise UserError("no shape is named: give data.mesh or data.volume")
    return MeshShape(mesh, padding)


def _read_volume(path: Path) -> np.ndarray:
    if not path.is_file():
        where = searched_in(path)
        raise UserError(
            f"{path} does not exist{where}; data.volume is a NumPy file (.npy) with an array of three axes"
        )
    try:
        volume = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is not a readable NumPy file (.npy): {first_line(error)}") from error
    if not isinstance(volume, np.ndarray) or volume.ndim != 3 or volume.dtype.kind not in "buif" or not volume.size:
        kind = f"{volume.dtype} {list(volume.shape)}" if isinstance(volume, np.ndarray) else "an archive"
        raise UserError(f"{path} holds {kind}; a volume is one array [X, Y, Z] of booleans or real numbers")
    if volume.dtype.kind == "f" and not np.isfinite(volume).all():
        bad = int((~np.isfinite(volume)).sum())
        raise UserError(f"{path} holds {bad:,} values that are NaN or infinite; a volume is finite")
    return volume


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
