"""Surfaces of fields as triangle meshes: marching cubes over a grid that is evaluated coarse to fine."""

from dataclasses import dataclass

import numpy as np
import trimesh
from numpy.typing import NDArray
from skimage.measure import marching_cubes

from sinelr_lightning.errors import UserError
from sinelr_lightning.geometry.grid import CORNERS, NODES, Field, Level, Progress, Sampler, places, window
from sinelr_lightning.geometry.refinement import Refined, crossing, refine

__all__ = ["NoSurface", "Surface", "estimate_memory", "extract_surface"]

LEAST = 16  # cells along an axis
FROM_NODES = 1e-3  # of a cell: how near a vertex comes to a node, so that no triangle has an edge of length 0
FLOOR = 1e-4  # of the largest value beside the surface: smaller ones would round vertices to nodes in float32
# Equal values leave ambiguous faces to chance, and not the same way in both cells; nothing else notices this.
UNTIE = (1 + 1e-5 * np.random.default_rng(0).random((8, 8, 8))).astype(np.float32)
UNTIE = UNTIE[np.ix_(*[np.arange(-1, 10) % 8] * 3)]


class NoSurface(UserError):
    """A field that is everywhere on one side of the level, with the field's `quantiles`."""

    def __init__(self, message: str, quantiles: tuple[float, ...]) -> None:
        super().__init__(message)
        self.quantiles = quantiles


@dataclass(frozen=True)
class Surface:
    """The surface {field = level}.

    Attributes:
        mesh: in the cube's coordinates; normals point out, to where the field is below the level. It is watertight
            unless the surface leaves the cube: there it is open.
        evaluations: of the field at nodes of the grid; polishing takes others.
        nodes: evaluations that the full grid would take, (resolution + 1)³.
        leaves_cube: whether the surface goes through the cube's sides.
        quantiles: minimum, 1 %, 50 %, 99 % and maximum of the field over the coarse grid.
    """

    mesh: trimesh.Trimesh
    evaluations: int
    nodes: int
    leaves_cube: bool
    quantiles: tuple[float, ...]


def extract_surface(
    field: Field,
    resolution: int = 256,
    level: float = 0.0,
    *,
    polish: int = 0,
    batch: int = 65_536,
    progress: Progress | None = None,
) -> Surface:
    """Mesh the surface {field = level} in the cube [-1, 1]³ with marching cubes.

    It is the surface of the full grid of (resolution + 1)³ nodes, but the field is evaluated only where the surface
    is (`refine`); each node once, since the values of networks differ in their last bits from batch to batch. Each
    cell that the surface crosses is then marched by itself (Lewiner et al. 2003, scikit-image's), and a vertex is
    known by the edge of the grid that it lies on. On the edge from node p to node q, with values f_p and f_q,

        x = p + t·(q - p),    t = (level - f_p)/(f_q - f_p), kept within [0.001, 0.999]

    The field of a network bends within a cell, and vertices so placed lie on terraces; with `polish` the field is
    evaluated there, and t found again between this value and that of the end on its other side (regula falsi with the
    Illinois rule).

    Args:
        field: callback from points [N, 3] in the cube, float32, to values [N]; positive (above the level) inside.
        resolution: cells along each axis, at least 16; they are 2/resolution wide.
        level: of the field, in its own unit.
        polish: rounds of it; each takes one evaluation a vertex.
        batch: points a call of the field, at most.
        progress: called with what is under way and the fraction of it that is done.

    Returns:
        `Surface`.

    Raises:
        NoSurface: the field has no surface at this level.
        UserError: the field is not finite, or the surface fills the cube.
    """
    if resolution < LEAST:
        raise UserError(f"resolution {resolution} is too coarse: it must be at least {LEAST} cells along each axis")
    sample = Sampler(field, level, batch, progress)
    refined = refine(sample, resolution)
    evaluations = sample.evaluations
    vertices, faces = _mesh(refined.level, sample, polish)
    if not len(faces):
        raise NoSurface(_nothing(refined, level), refined.quantiles)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    return Surface(mesh, evaluations, (resolution + 1) ** 3, refined.leaves_cube, refined.quantiles)


def estimate_memory(resolution: int) -> int:
    """Bytes that `extract_surface` takes at most, beside what the field takes for a batch of points.

        160 MB + 350·A·(resolution/2)² bytes

    with A = 24, a surface as large as the cube's own: 0.7 GB at 512 cells, 2.4 GB at 1024. The factor was 280 to 390
    as measured with A = 6 and A = 19 at 512 and 1024 cells.
    """
    return 160_000_000 + 350 * 24 * resolution**2 // 4


def _nothing(refined: Refined, level: float) -> str:
    least, low, middle, high, most = refined.quantiles
    spread = f"it lies in [{least:.4g}, {most:.4g}] (1 %, 50 %, 99 %: {low:.4g}, {middle:.4g}, {high:.4g})"
    if least == most:
        return f"the field is {least:.4g} everywhere: it has no surface"
    if middle > level:
        return f"the field is everywhere above the level {level:g}, so the cube is full and has no surface: {spread}"
    return f"the field is nowhere above the level {level:g}, so nothing is inside: {spread}"


def _mesh(level: Level, sample: Sampler, polish: int) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Vertices [V, 3] in the cube and faces [F, 3] of a closed level."""
    edges, ends = _edges(level)
    vertices, faces, count = [_on_edges(level, edges, ends, sample, polish)], [np.zeros((0, 3), np.int32)], len(edges)
    scale = float(np.abs(ends).max(initial=0))
    chunks = list(level.chunks())
    for done, rows in enumerate(chunks, 1):
        values = level.halo(level.values, rows)
        mask = crossing(values, level.active[rows])
        if mask.any():
            size = np.clip(np.abs(values) / scale, FLOOR, 1) * UNTIE
            values = np.where(values > 0, size, -size)
            cell, local, found = _march(np.stack([values[window(corner)][mask] for corner in CORNERS], axis=-1))
            nodes = level.index(places(rows, mask))[cell]
            between = (local > 0) & (local < 1)
            centre = between.sum(axis=1) > 1
            keys = 3 * level.slots(nodes + local.astype(np.int32)) + between.argmax(axis=1)
            number = np.searchsorted(edges, keys)
            number[centre] = count + np.arange(centre.sum())
            count += centre.sum()
            vertices.append(level.points(nodes[centre] + local[centre].astype(np.float64)))
            faces.append(number.astype(np.int32)[found])
        if sample.progress is not None:
            sample.progress("marching cubes", done / len(chunks))
    return np.concatenate(vertices), np.concatenate(faces)


def _edges(level: Level) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Edges that the surface crosses, 3·place + axis, sorted: [E], and the values at their ends: [E, 2]."""
    keys, ends = [np.zeros(0, np.int64)], [np.zeros((0, 2), np.float32)]
    for rows in level.chunks():
        values, active = level.halo(level.values, rows), level.halo(level.active, rows)
        here = values[window(np.zeros(3, int))]
        crossed, there = np.zeros((*here.shape, 3), bool), np.empty((*here.shape, 3), np.float32)
        for axis, step in enumerate(np.eye(3, dtype=int)):
            around = [active[window(-corner)] for corner in CORNERS if not corner[axis]]
            there[..., axis] = values[window(step)]
            crossed[..., axis] = np.any(around, axis=0) & ((here > 0) != (there[..., axis] > 0))
        keys.append(3 * NODES * rows[0] + np.flatnonzero(crossed))
        ends.append(np.stack([np.broadcast_to(here[..., None], crossed.shape)[crossed], there[crossed]], axis=-1))
    return np.concatenate(keys), np.concatenate(ends)


def _on_edges(
    level: Level, edges: NDArray[np.int64], ends: NDArray[np.float32], sample: Sampler, polish: int
) -> NDArray[np.float64]:
    """Where the surface crosses edges, by linear interpolation and `polish` rounds of regula falsi: [E, 3]."""
    low, high = ends.astype(np.float64).T
    begin, end = np.zeros(len(edges)), np.ones(len(edges))
    moved = np.zeros(len(edges), np.int8)  # which end the last round moved: -1 low, 1 high

    def place(part: slice = slice(None)) -> NDArray[np.float64]:
        t = begin[part] + (end - begin)[part] * low[part] / (low - high)[part]
        index = level.index(edges[part] // 3).astype(np.float64)
        index[np.arange(len(index)), edges[part] % 3] += np.clip(t, FROM_NODES, 1 - FROM_NODES)
        return level.points(index)

    for _ in range(polish):
        values = sample("polishing", len(edges), place)
        t, before = begin + (end - begin) * low / (low - high), (values > 0) == (low > 0)
        # An end that stays a second time counts half (the Illinois rule), or it would hold the vertex back.
        low, high = np.where(~before & (moved == 1), low / 2, low), np.where(before & (moved == -1), high / 2, high)
        begin, low = np.where(before, t, begin), np.where(before, values, low)
        end, high = np.where(before, end, t), np.where(before, high, values)
        moved = np.where(before, -1, 1)
    return place()


def _march(corners: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.int32]]:
    """Triangles in cells that are each marched by itself, packed side by side into one volume.

    Args:
        corners: [N, 8], values from -1 to 1 in the order of `CORNERS`.

    Returns:
        the cell of each vertex [V], where in the cell it is [V, 3] in [0, 1], and triangles of vertices [F, 3].
    """
    side = int(np.ceil(len(corners) ** (1 / 3)))
    packed = np.ones((side**3, 8), np.float32)
    packed[: len(corners)] = corners
    volume = packed.reshape(side, side, side, 2, 2, 2).transpose(0, 3, 1, 4, 2, 5).reshape((2 * side,) * 3)
    mask = np.zeros(volume.shape, bool)
    mask[1::2, 1::2, 1::2] = True  # scikit-image knows a cell by its high node
    vertices, faces, *_ = marching_cubes(volume, 0.0, gradient_direction="ascent", mask=mask)
    index = vertices.astype(np.int32) // 2
    return np.ravel_multi_index(tuple(index.T), (side,) * 3), vertices - 2 * index.astype(np.float32), faces
