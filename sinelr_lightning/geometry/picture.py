"""Clay pictures of meshes, shaded along rays: no display, no OpenGL."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import igl
import igl.embree
import numpy as np
import trimesh
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import map_coordinates, uniform_filter

from sinelr_lightning.files import user_file

__all__ = ["contact_sheet", "save_picture", "shade", "usual_up"]

Colour = tuple[int, int, int]
CLAY, PAPER, INK = (210, 176, 148), (247, 246, 243), (40, 40, 44)

_GAMMA = 2.2
_TANGENT = 0.24  # of half the angle of view, along the shorter side: a lens for portraits
_MARGIN = 0.05  # of the picture's side, on each side of the shape
_CREASE = 50.0  # degrees; faces that meet at more are not shaded as one smooth surface
_KEY, _FILL, _RIM = (-0.55, 0.62, 0.72), (0.9, 0.05, 0.45), (0.35, 0.45, -0.9)  # to the lights: right, up, backward
_TILE = 4  # each of 4×4 neighbouring samples looks in directions of its own, averaged over the tile
_FADE = 0.2  # of the picture's side: towards its edges the ground's shadow fades
_REACH = 2.6  # how far from the shape's middle the ground still takes its shadow, in radii


@dataclass(frozen=True)
class _View:
    """A camera around a shape of radius 1: `axes` [3, 3] has the rows right, up, backward."""

    axes: np.ndarray
    eye: np.ndarray
    tangents: np.ndarray


def shade(
    mesh: trimesh.Trimesh,
    width: int = 800,
    height: int = 600,
    azimuth: float = 35.0,
    elevation: float = 20.0,
    supersample: int = 2,
    colour: Colour = CLAY,
    background: Colour = PAPER,
    up: Literal["y", "z"] = "z",
    ground: bool = True,
) -> np.ndarray:
    """Picture of a mesh in its middle, as if of matt clay under a soft lamp.

    Each sample's ray meets the mesh (Embree, by libigl). Its light is a key with a soft shadow, a fill, a rim, and
    the sky as far as the surface sees it (ambient occlusion, cosine-weighted):

        L = a·(key·s·max(0, n·l) + fill·max(0, n·f) + rim·max(0, n·r) + sky(n)·A/(1 - a·(1 - A)))

    with albedo a, shadow s, sky visibility A. Lights turn with the camera. Normals are smooth over edges of up to
    50°, sharp beyond. Both sides of a face are lit, so holes and either winding show. A mesh without area gives the
    bare background.

    Args:
        mesh: in any unit, anywhere.
        width, height: pixels.
        azimuth: degrees around the up axis. From 0 one looks along +y (up z; -z for up y) with +x to the right; at 90
            one stands at +x.
        elevation: degrees above the horizon, -90 to 90.
        supersample: samples a pixel in each direction.
        colour, background: sRGB, 0 to 255.
        up: the mesh's vertical axis.
        ground: lay the shape's shadow on the ground below it.

    Returns:
        uint8 [height, width, 3].
    """
    light = np.tile((np.array(background) / 255) ** _GAMMA, (height * supersample, width * supersample, 1))
    vertices, faces = _normalised(mesh, up)
    if len(faces):
        view = _frame(vertices, azimuth, elevation, width / height)
        if ground:
            _lay_shadow(light, vertices, faces, view, step=2 * supersample)
        _paint(light, vertices, faces, view, (np.array(colour) / 255) ** _GAMMA)
    light = light.reshape(height, supersample, width, supersample, 3).mean((1, 3))
    return (255 * light.clip(0, 1) ** (1 / _GAMMA) + 0.5).astype(np.uint8)


def usual_up(path: str | os.PathLike[str]) -> Literal["y", "z"]:
    """Vertical axis of a mesh file by the custom of its format: y in OBJ and glTF, z in the others."""
    return "y" if Path(path).suffix.lower() in (".obj", ".glb", ".gltf") else "z"


def contact_sheet(pictures: Sequence[np.ndarray], labels: Sequence[str], columns: int) -> np.ndarray:
    """Pictures of one size in rows of `columns`, each above its label: uint8 [H, W, 3].

    Args:
        pictures: uint8 [h, w, 3] each.
        labels: one a picture; one line of text, made smaller until it fits.
        columns: pictures in a row.

    Raises:
        ValueError: no picture, a label too few or too many, or pictures of several sizes.
    """
    shapes = {picture.shape for picture in pictures}
    if len(shapes) != 1 or len(labels) != len(pictures) or columns < 1:
        raise ValueError(f"{len(pictures)} pictures of {sorted(shapes)}, {len(labels)} labels, {columns} columns")
    height, width, _ = shapes.pop()
    size = max(12, width // 18)
    strip, rows = 2 * size, -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width, rows * (height + strip)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        left, top = i % columns * width, i // columns * (height + strip)
        sheet.paste(Image.fromarray(picture), (left, top))
        fonts = (ImageFont.load_default(s) for s in range(size, 7, -1))
        font = next((f for f in fonts if draw.textlength(label, f) < 0.96 * width), ImageFont.load_default(7))
        draw.text((left + width / 2, top + height + strip / 2), label, INK, font, anchor="mm")
    return np.asarray(sheet)


def save_picture(path: str | os.PathLike[str], picture: np.ndarray) -> Path:
    """Write uint8 [H, W, 3] as PNG, whole or not at all. Returns the path.

    Raises:
        UserError: it cannot be written there.
    """
    with user_file(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")
    return Path(path)


def _normalised(mesh: trimesh.Trimesh, up: str) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] with z up in the unit ball around 0, equal ones joined, and the faces that have an area.

    The middle is subtracted in float64: Embree counts in float32.
    """
    vertices, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)
    faces = faces.reshape(-1, 3)[np.isfinite(vertices[faces]).all((-2, -1))]
    faces = faces[trimesh.triangles.area(vertices[faces]) > 0]
    if not len(faces):
        return np.zeros((0, 3)), np.zeros((0, 3), np.int64)
    used, faces = np.unique(faces, return_inverse=True)
    vertices = vertices[used] - (vertices[used].min(0) + vertices[used].max(0)) / 2
    vertices = vertices / np.linalg.norm(vertices, axis=1).max()
    if up == "y":
        vertices = vertices[:, [0, 2, 1]] * (1, -1, 1)
    joined = igl.remove_duplicate_vertices(vertices, faces.reshape(-1, 3).astype(np.int64), 1e-7)
    return np.asarray(joined[0], np.float64), np.asarray(joined[3], np.int64)


def _frame(vertices: np.ndarray, azimuth: float, elevation: float, aspect: float) -> _View:
    """The nearest camera in this direction that has the whole shape in its picture, in the middle of it."""
    a, e = np.radians([azimuth, elevation])
    backward = np.array([np.cos(e) * np.sin(a), -np.cos(e) * np.cos(a), np.sin(e)])
    right = np.array([np.cos(a), np.sin(a), 0.0])
    axes = np.stack([right, np.cross(backward, right), backward])
    tangents = _TANGENT * np.array([max(aspect, 1.0), max(1 / aspect, 1.0)])
    seen = vertices @ axes.T
    tilted = seen[:, 2:] * tangents * (1 - 2 * _MARGIN)  # a point at x needs t·(distance - z) ≥ |x - x_eye|
    high, low = (seen[:, :2] + tilted).max(0), (tilted - seen[:, :2]).max(0)
    distance = ((high + low) / (2 * tangents * (1 - 2 * _MARGIN))).max()
    return _View(axes, np.array([*(high - low) / 2, distance]) @ axes, tangents)


def _directions(view: _View, shape: tuple[int, int]) -> np.ndarray:
    """Of the rays through the middles of h·w samples: [h, w, 3], 1 long along the optical axis."""
    height, width = shape
    x = ((np.arange(width) + 0.5) / width * 2 - 1) * view.tangents[0]
    y = (1 - (np.arange(height) + 0.5) / height * 2) * view.tangents[1]
    return x[None, :, None] * view.axes[0] + y[:, None, None] * view.axes[1] - view.axes[2]


def _paint(light: np.ndarray, vertices: np.ndarray, faces: np.ndarray, view: _View, albedo: np.ndarray) -> None:
    """Light the samples of `light` [h, w, 3] whose rays meet the mesh."""
    shape = light.shape[:2]
    (hit,) = np.nonzero(_covered(vertices, faces, view, shape).reshape(-1))
    rays = _directions(view, shape).reshape(-1, 3)[hit]
    face, weights = _meet(np.broadcast_to(view.eye, rays.shape), rays, vertices, faces)
    met = face >= 0
    hit, rays, face, weights = hit[met], _unit(rays[met]), face[met], weights[met]
    points = _mix(weights, vertices[faces[face]])
    flat = _unit(np.cross(*(vertices[faces[:, i]] - vertices[faces[:, 0]] for i in (1, 2))))[face]
    normals = _mix(weights, np.reshape(igl.per_corner_normals(vertices, faces, _CREASE), (-1, 3, 3))[face])
    normals = _unit(np.nan_to_num(normals)) * -np.sign(np.einsum("nj,nj->n", flat, rays))[:, None]
    key, fill, rim = (_unit(np.array(d) @ view.axes) for d in (_KEY, _FILL, _RIM))

    def sees(outward: np.ndarray, tolerance: float, chosen: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Whether the chosen points see the sky in a direction: what is met from afar lies no nearer to the sky."""
        here, outward = points[chosen], outward[chosen]
        face, weights = _meet(here + 3 * outward, -outward, vertices, faces)
        beyond = _mix(weights, vertices[faces[face]]) - here
        return (face < 0) | (np.einsum("nj,nj->n", beyond, outward) < tolerance)

    tile = _tile_index(shape)[hit]
    sky = _average(np.mean([sees(d, 4e-3) for d in _hemisphere(tile, normals, 2)], 0), hit, shape)
    sky = sky / (1 - albedo.max() * (1 - sky))  # light that the clay throws back into its own hollows
    towards_key, towards_fill, towards_rim = ((normals @ d).clip(0) for d in (key, fill, rim))
    shadow, turned = np.zeros(len(hit)), towards_key > 0
    shadow[turned] = sees(_lamp(tile, key), 1e-2, turned)
    shadow = _average(shadow, hit, shape)
    gloss = shadow * np.einsum("nj,nj->n", normals, _unit(key - rays)).clip(0) ** 40
    ambient = sky * (0.24 + 0.12 * normals[:, 2])
    diffuse = 0.9 * shadow * towards_key + 0.12 * sky * towards_fill + 0.25 * sky * towards_rim + ambient
    light.reshape(-1, 3)[hit] = diffuse[:, None] * albedo + 0.06 * gloss[:, None]


def _lay_shadow(light: np.ndarray, vertices: np.ndarray, faces: np.ndarray, view: _View, step: int) -> None:
    """Darken the samples of `light` [h, w, 3] whose rays meet the ground where it sees less of key and sky.

    The shadow is soft: it is found at every `step`-th sample and blurred.
    """
    shape = (-(-light.shape[0] // step), -(-light.shape[1] // step))
    rays, floor = _directions(view, shape).reshape(-1, 3), vertices[:, 2].min()
    with np.errstate(divide="ignore", invalid="ignore"):
        points = view.eye + rays * ((floor - view.eye[2]) / rays[:, 2])[:, None]
        near = np.linalg.norm(points, axis=1) / _REACH
    (hit,) = np.nonzero((rays[:, 2] < 0) & (view.eye[2] > floor) & (near < 1))
    points, tile, key = points[hit], _tile_index(shape)[hit], _unit(np.array(_KEY) @ view.axes)
    upward = np.broadcast_to([0.0, 0.0, 1.0], points.shape)

    def hidden(outward: np.ndarray) -> np.ndarray:
        return _meet(points, outward, vertices, faces)[0] >= 0

    dark = 0.5 * np.mean([hidden(d) for d in _hemisphere(tile, upward, 4)], 0) + 0.25 * hidden(_lamp(tile, key))
    shade = np.zeros(shape)
    shade.reshape(-1)[hit] = dark * np.clip((1 - near[hit]) / 0.4, 0, 1)
    shade = uniform_filter(uniform_filter(shade, _TILE), _TILE)
    place = np.meshgrid(*((np.arange(n) + 0.5) / step - 0.5 for n in light.shape[:2]), indexing="ij")
    rise = [(np.minimum(i, i[::-1]) / (_FADE * len(i))).clip(max=1) for i in map(np.arange, light.shape[:2])]
    fade = np.outer(*(r * r * (3 - 2 * r) for r in rise))
    light *= 1 - (fade * map_coordinates(shade, place, order=1, mode="nearest"))[..., None]


def _covered(vertices: np.ndarray, faces: np.ndarray, view: _View, shape: tuple[int, int]) -> np.ndarray:
    """Samples [h, w] inside the bounding rectangle of any face: all others can only miss. Exact, and cheap."""
    seen, size = (vertices - view.eye) @ view.axes.T, np.array(shape[::-1])
    place = seen[:, :2] / -seen[:, 2:] / view.tangents * (1, -1)
    corners = ((place + 1) / 2 * size)[faces]
    (x0, y0), (x1, y1) = (c.astype(int).clip(0, size).T for c in (corners.min(1), corners.max(1) + 1))
    change = np.zeros((shape[0] + 1, shape[1] + 1), np.int32)
    for y, x, sign in ((y0, x0, 1), (y0, x1, -1), (y1, x0, -1), (y1, x1, 1)):
        np.add.at(change, (y, x), sign)
    return change.cumsum(0).cumsum(1)[:-1, :-1] > 0


def _meet(
    origins: np.ndarray, directions: np.ndarray, vertices: np.ndarray, faces: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The first face on each ray [n], -1 for none, and the hit's barycentric weights [n, 3].

    Embree is asked for both directions of the line: there must be nothing behind the origin. libigl reads the arrays
    as if they were contiguous, whatever their strides (a broadcast one gives wrong hits, or a crash).
    """
    arrays = (np.ascontiguousarray(a) for a in (origins, directions, vertices, faces))
    hits = np.asarray(igl.embree.line_mesh_intersection(*arrays), np.float64)
    return hits[:, 0].astype(np.int64), np.column_stack([1 - hits[:, 1] - hits[:, 2], hits[:, 1:]])


def _tile_index(shape: tuple[int, int]) -> np.ndarray:
    """Which place of its tile each sample has, 0 … 15: [h·w]."""
    y, x = np.indices(shape).reshape(2, -1) % _TILE
    return y * _TILE + x


def _average(values: np.ndarray, hit: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Mean of the values [n] at the flat places `hit` over the tile around each: [n]."""
    grid = np.zeros((2, shape[0] * shape[1]), np.float32)
    grid[:, hit] = values, np.ones(len(hit))
    total, count = (uniform_filter(g.reshape(shape), _TILE, mode="constant").reshape(-1)[hit] for g in grid)
    return total / np.maximum(count, 1e-6)


def _spiral(tile: np.ndarray, turn: int = 0, turns: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Points of a sunflower on the unit disc, the tile's samples on 16 of its 16·turns: (radius, angle)."""
    i = tile * turns + turn
    return np.sqrt((i + 0.5) / (_TILE**2 * turns)), i * np.pi * (3 - np.sqrt(5))


def _hemisphere(tile: np.ndarray, normals: np.ndarray, turns: int) -> Iterator[np.ndarray]:
    """`turns` directions [n, 3] around the normals, as dense as their cosine."""
    helper = np.where(np.abs(normals[:, 2:]) < 0.9, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]])
    a = _unit(np.cross(normals, helper))
    b = np.cross(normals, a)
    for turn in range(turns):
        r, angle = _spiral(tile, turn, turns)
        x, y, z = r * np.cos(angle), r * np.sin(angle), np.sqrt(1 - r**2)
        yield x[:, None] * a + y[:, None] * b + z[:, None] * normals


def _lamp(tile: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Directions [n, 3] to points of a lamp 16° wide: its shadows are soft."""
    a = _unit(np.cross(centre, [0.3, 0.2, 0.9]))
    r, angle = _spiral(tile)
    x, y = 0.14 * r * np.cos(angle), 0.14 * r * np.sin(angle)
    return _unit(centre + x[:, None] * a + y[:, None] * np.cross(centre, a))


def _mix(weights: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Weighted sum of the corners [n, 3, 3] of faces: [n, 3]."""
    return np.einsum("nk,nkj->nj", weights, corners)


def _unit(v: np.ndarray) -> np.ndarray:
    """v / ‖v‖ along the last axis; 0 stays 0."""
    length = np.linalg.norm(v, axis=-1, keepdims=True)
    return v / np.where(length > 0, length, 1)
