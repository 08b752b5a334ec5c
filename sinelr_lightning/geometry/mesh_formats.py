"""File formats of meshes where trimesh would round, reorder or split: bytes of a mesh, and a mesh of OBJ's bytes."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray
from trimesh.exchange.stl import export_stl, export_stl_ascii
from trimesh.visual import ColorVisuals

__all__ = ["ENCODERS", "decode_obj", "vertex_colours"]

_LOST = 1e-6  # share of a mesh's size that binary STL's float32 may move a vertex


def vertex_colours(mesh: trimesh.Trimesh) -> NDArray[np.uint8] | None:
    """[V, 4] red, green, blue, alpha, or None where the mesh has no colours by vertex."""
    visual = mesh.visual
    return visual.vertex_colors if isinstance(visual, ColorVisuals) and visual.kind == "vertex" else None


def decode_obj(content: bytes) -> trimesh.Trimesh:
    """Positions, faces and vertex colours of an OBJ file, in its order and numbering.

    A reader that minds texture coordinates or normals must split vertices along their seams. Polygons become fans.

    Raises:
        ValueError: naming the line that cannot be understood.
    """
    vertices: list[list[float]] = []
    faces: list[tuple[int, int, int]] = []
    text = content.decode("utf-8", errors="replace").replace("\\\r\n", " ").replace("\\\n", " ")
    for number, line in enumerate(text.splitlines(), start=1):
        kind, *words = line.replace("\t", " ").partition(" #")[0].split() or [""]
        try:
            if kind == "v":
                x, y, z, *rest = map(float, words)
                vertices.append([x, y, z, *rest])
            elif kind == "f":
                first, *others = [_obj_index(word, len(vertices)) for word in words]
                faces += [(first, second, third) for second, third in pairwise(others)]
        except ValueError as error:
            raise ValueError(f"line {number} is {line[:40]!r}") from error
    coloured = bool(vertices) and all(len(vertex) >= 6 for vertex in vertices)
    colours = np.array([vertex[3:6] for vertex in vertices]) if coloured else None
    if colours is not None and colours.max() <= 1:  # else they are bytes
        colours = colours * 255
    return trimesh.Trimesh(
        np.array([vertex[:3] for vertex in vertices], np.float64).reshape(-1, 3),
        np.array(faces, np.int64).reshape(-1, 3),
        vertex_colors=None if colours is None else colours.round().clip(0, 255).astype(np.uint8),
        process=False,
    )


def _obj_index(word: str, known: int) -> int:
    """`7/2/5` → 6; `-1` → the last of the vertices so far."""
    index = int(word.partition("/")[0])
    if index == 0 or index < -known:
        raise ValueError(word)
    return index - 1 if index > 0 else known + index


def _lines(line: str, rows: NDArray[Any]) -> bytes:
    """Rows [N, K], each by a format of K conversions; %r gives the digits that read back as the same number."""
    return (line * len(rows) % tuple(rows.ravel().tolist())).encode()


def _ply(mesh: trimesh.Trimesh) -> bytes:
    colours = vertex_colours(mesh)
    vertices = np.empty(len(mesh.vertices), [("at", "<f8", 3)] + [("rgba", "u1", 4)] * (colours is not None))
    vertices["at"] = mesh.vertices
    properties = [f"property double {axis}" for axis in "xyz"]
    if colours is not None:
        vertices["rgba"] = colours
        properties += [f"property uchar {channel}" for channel in ("red", "green", "blue", "alpha")]
    faces = np.empty(len(mesh.faces), [("count", "u1"), ("index", "<i4", 3)])
    faces["count"], faces["index"] = 3, mesh.faces
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}", *properties]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    return "\n".join(header).encode() + vertices.tobytes() + faces.tobytes()


def _obj(mesh: trimesh.Trimesh) -> bytes:
    colours = vertex_colours(mesh)
    rows = mesh.vertices if colours is None else np.hstack([mesh.vertices, colours[:, :3] / 255])
    return _lines("v" + " %r" * rows.shape[1] + "\n", rows) + _lines("f %d %d %d\n", mesh.faces + 1)


def _off(mesh: trimesh.Trimesh) -> bytes:
    head = f"OFF\n{len(mesh.vertices)} {len(mesh.faces)} 0\n".encode()
    return head + _lines("%r %r %r\n", mesh.vertices) + _lines("3 %d %d %d\n", mesh.faces)


def _glb(mesh: trimesh.Trimesh) -> bytes:
    centre = mesh.bounds.mean(axis=0)
    local = trimesh.Trimesh(mesh.vertices - centre, mesh.faces, vertex_colors=vertex_colours(mesh), process=False)
    scene = trimesh.Scene()
    scene.add_geometry(local, node_name="mesh", transform=trimesh.transformations.translation_matrix(centre))
    return scene.export(file_type="glb")


def _stl(mesh: trimesh.Trimesh) -> bytes:
    lost = np.abs(mesh.vertices.astype(np.float32) - mesh.vertices).max()
    if lost <= _LOST * np.ptp(mesh.vertices, axis=0).max():
        return export_stl(mesh)
    return export_stl_ascii(mesh).encode()


ENCODERS: dict[str, Callable[[trimesh.Trimesh], bytes]] = {
    ".glb": _glb,
    ".obj": _obj,
    ".off": _off,
    ".ply": _ply,
    ".stl": _stl,
}
"""What turns a mesh into the bytes of a file, by the file's suffix."""
