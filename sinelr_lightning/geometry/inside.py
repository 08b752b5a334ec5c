"""Inside and outside of triangle meshes as they come: with holes, flipped, repeated and unconnected faces.

A mesh is repaired as far as it takes to know which way each of its surfaces faces; then the generalised winding
number says what is inside, also where holes remain: Jacobson et al. 2013, evaluated as Barill et al. 2018 do.
"""

from dataclasses import dataclass

import igl
import igl.embree
import numpy as np
import trimesh
from numpy.typing import NDArray

from sinelr_lightning.errors import UserError
from sinelr_lightning.geometry.mesh_io import CubePlacement

__all__ = ["RepairReport", "Solid", "agreement"]

Faces = NDArray[np.int64]
Points = NDArray[np.float64]

_SAME = 1e-9  # share of the size; vertices nearer than that are one
_NEARLY_CLOSED = 0.5  # |Σ area vectors| / Σ areas: 0 of a closed patch, 0.5 of half a sphere, 1 of a flat one
_PROBES = 64  # vertices of a patch by which is decided whether it lies in another
_WITHIN = 0.9  # share of these vertices that must lie in it; holes of the outer patch mislead a few
_BLOCK = 1 << 18  # points evaluated at a time


@dataclass(frozen=True)
class RepairReport:
    """What was found and done to know inside from outside.

    Attributes:
        watertight_as_stored: every edge has two faces, in the vertices of the file.
        watertight: the same once vertices of one position are one, and repeated faces are dropped.
        open_edges: edges with a single face, then.
        faces_dropped: without area for lack of three vertices, repeated, or a wall between touching bodies.
        faces_flipped: that faced the other way than their surroundings or than outward.
        patches: surfaces connected by edges that two faces share.
    """

    watertight_as_stored: bool
    watertight: bool
    open_edges: int
    faces_dropped: int
    faces_flipped: int
    patches: int


class Solid:
    """The inside of a mesh: where its generalised winding number exceeds ½.

    w(x) = Σ over faces of their signed solid angle seen from x / 4π: 1 inside and 0 outside of a closed surface that
    faces outward, 2 where two bodies overlap, 0 in a cavity whose surface faces into it, in between near holes.

    Each patch faces as most of its faces do as stored, and all are turned if the volume is negative. Then a patch of
    negative volume is turned, with what lies in it, unless it lies in the inside of larger ones: that is a cavity.

    Args:
        mesh: any triangles.

    Attributes:
        repaired: vertices of one position merged, faces distinct and facing outward.
        report: what was found and done.

    Raises:
        UserError: fewer than four distinct faces.
    """

    def __init__(self, mesh: trimesh.Trimesh) -> None:
        vertices, faces, merged = _merged(mesh)
        kept = _distinct(merged)
        if len(kept) < 4:
            raise UserError(
                f"the mesh has fewer than 4 distinct faces ({len(kept)} of {len(faces)}); it has no inside"
            )
        oriented, patches = _oriented(vertices, merged[kept])
        per_edge = np.bincount(_edges(oriented).ravel())
        self.repaired = trimesh.Trimesh(*_used(vertices, oriented), process=False)
        self.report = RepairReport(
            watertight_as_stored=bool((np.bincount(_edges(faces).ravel()) == 2).all()),
            watertight=bool((per_edge == 2).all()),
            open_edges=int((per_edge == 1).sum()),
            faces_dropped=len(faces) - len(kept),
            faces_flipped=int((oriented != merged[kept]).any(axis=1).sum()),
            patches=patches,
        )
        # the tree computes in float32: it gets the mesh in the cube, wherever it lies
        self._placement = CubePlacement.of(self.repaired, padding=0.0)
        self._tree = igl.FastWindingNumberBVH()
        self._tree.init(self._placement.to_cube(self.repaired.vertices), self.repaired.faces.astype(np.int64))

    def winding_number(self, points: Points) -> NDArray[np.float64]:
        """Generalised winding number at points [N, 3]: [N]."""
        winding = np.empty(len(points))
        for start in range(0, len(points), _BLOCK):
            block = slice(start, start + _BLOCK)
            winding[block] = self._tree.winding_number(self._placement.to_cube(points[block]))
        return winding

    def contains(self, points: Points) -> NDArray[np.bool_]:
        """Whether points [N, 3] are inside: [N]."""
        return self.winding_number(points) > 0.5


def agreement(solid: Solid, seed: int = 0, points: int = 1000) -> dict[str, float]:
    """How far the winding number and the parity of ray crossings say the same, and how clear the winding number is.

    Half of the points are uniform in the bounding box and 10 % around it, half at a normal distance (σ 0.01 of the
    longest side) from the surface. Parity needs no orientation but a closed surface, and calls the overlap of two
    bodies outside.

    Returns:
        `points`, how many; `agreement`, share of them on which both methods agree; `ambiguous`, share of them with
        0.3 < w < 0.7.
    """
    rng = np.random.default_rng(seed)
    low, high = solid.repaired.bounds
    margin = 0.1 * (high - low)
    around = rng.uniform(low - margin, high + margin, (points - points // 2, 3))
    near = trimesh.sample.sample_surface(solid.repaired, points // 2, seed=seed)[0]
    near = near + rng.normal(0, 0.01 * float((high - low).max()), near.shape)
    samples = np.concatenate([around, near])
    winding = solid.winding_number(samples)
    same = (winding > 0.5) == _odd_crossings(solid.repaired, samples)
    unclear = (winding > 0.3) & (winding < 0.7)
    return {"points": points, "agreement": float(same.mean()), "ambiguous": float(unclear.mean())}


def _odd_crossings(mesh: trimesh.Trimesh, points: Points) -> NDArray[np.bool_]:
    """Whether a ray from each point crosses the mesh an odd number of times, by the majority of three directions."""
    placement = CubePlacement.of(mesh)
    caster = igl.embree.EmbreeIntersector()
    caster.init(
        np.asfortranarray(placement.to_cube(mesh.vertices), np.float32),
        np.asfortranarray(mesh.faces, np.int32),
    )
    # irrational, so that no edge of a model built along the axes or their diagonals is met
    directions = np.array([[np.pi, np.e, 2**0.5], [-(3**0.5), np.pi, -np.e], [5**0.5, -(7**0.5), np.pi]], np.float32)
    origins = placement.to_cube(points).astype(np.float32)
    odd = [[len(caster.intersectRay(origin, way)[0]) % 2 for way in directions] for origin in origins]
    return np.sum(odd, axis=1) >= 2


def _merged(mesh: trimesh.Trimesh) -> tuple[Points, Faces, Faces]:
    """Vertices of one position as one: vertices, the faces as stored, and those of the merged vertices."""
    vertices, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)
    size = float(np.ptp(mesh.triangles.reshape(-1, 3), axis=0).max())
    unique, _, _, merged = igl.remove_duplicate_vertices(vertices, faces, _SAME * size)
    return np.asarray(unique, np.float64), faces, np.asarray(merged, np.int64)


def _used(vertices: Points, faces: Faces) -> tuple[Points, Faces]:
    used, renumbered = np.unique(faces, return_inverse=True)
    return vertices[used], renumbered.reshape(-1, 3)


def _edges(faces: Faces) -> NDArray[np.int64]:
    """[F, 3], a number for each edge of each face; two faces that share an edge have its number in common."""
    ends = np.sort(np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1).reshape(-1, 2), axis=1)
    # one integer a pair sorts many times faster than rows do
    return np.unique(ends[:, 0] * (faces.max() + 1) + ends[:, 1], return_inverse=True)[1].reshape(-1, 3)


def _distinct(faces: Faces) -> NDArray[np.int64]:
    """Numbers of the faces that bound something.

    A face with a vertex twice bounds nothing. One without area but with three vertices stays: it joins its
    neighbours. Of a face that is repeated, in whatever order of its vertices, the first stays. Where bodies touch,
    their common wall is there once for each: the inside goes on there, and no copy stays.
    """
    corners = np.sort(faces, axis=1)
    proper = np.flatnonzero((corners[:, 0] < corners[:, 1]) & (corners[:, 1] < corners[:, 2]))
    _, first, copies = np.unique(corners[proper], axis=0, return_index=True, return_counts=True)
    distinct = proper[first]
    return np.sort(distinct[~_walls(faces[distinct], copies > 1)])


def _walls(faces: Faces, repeated: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of the repeated faces separate touching bodies: their rim meets a closed surface.

    The rim of a surface that is merely doubled meets the rest of that surface, one face an edge, or nothing.
    """
    walls = repeated.copy()
    if not walls.any():
        return walls
    edges = _edges(faces)
    own = np.bincount(edges[walls].ravel(), minlength=edges.max() + 1)
    others = np.bincount(edges.ravel()) - own
    piece = np.asarray(igl.facet_components(faces[walls])[1], np.int64)
    rim = (own == 1)[edges[walls]].sum(axis=1)
    closed = ((own == 1) & (others > 0) & (others % 2 == 0))[edges[walls]].sum(axis=1)
    walls[walls] = (np.bincount(piece, closed) > np.bincount(piece, rim) / 2)[piece]
    return walls


def _oriented(vertices: Points, faces: Faces) -> tuple[Faces, int]:
    """The faces, turned to face outward (of a cavity, into it), and the number of patches."""
    # one way round in each patch, but either of the two
    consistent, patch = (np.asarray(array, np.int64) for array in igl.bfs_orient(faces))
    as_stored = np.where(np.all(consistent == faces, axis=1), 1, -1)
    facing = np.where(np.bincount(patch, as_stored) < 0, -1, 1)
    if _volumes(vertices, consistent, patch)[0] @ facing < 0:
        facing = -facing
    oriented = np.where(facing[patch, None] < 0, consistent[:, ::-1], consistent)
    _turn_bodies(vertices, oriented, patch)
    return oriented, len(facing)


def _volumes(vertices: Points, faces: Faces, patch: NDArray[np.int64]) -> tuple[Points, Points, NDArray[np.bool_]]:
    """Of each patch [P]: its share of the mesh's volume, its own volume, whether it nearly closes."""
    corners = vertices[faces] - vertices[faces].mean(axis=(0, 1))
    middle, normal = corners.mean(axis=1), np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) / 2
    area = np.linalg.norm(normal, axis=1)
    total = np.bincount(patch, area)
    flux = np.stack([np.bincount(patch, normal[:, k]) for k in range(3)], axis=1)
    moment = np.stack([np.bincount(patch, area * middle[:, k]) for k in range(3)], axis=1)
    share = np.bincount(patch, (middle * normal).sum(axis=1)) / 3
    # an open patch has a volume only with respect to a point: take its middle
    own = share - (moment * flux).sum(axis=1) / np.maximum(total, np.finfo(float).tiny) / 3
    return share, own, np.linalg.norm(flux, axis=1) < _NEARLY_CLOSED * total


def _turn_bodies(vertices: Points, faces: Faces, patch: NDArray[np.int64]) -> None:
    """Turn, in place, the patches of negative volume that are no cavity, each with what lies in it."""
    _, volume, closed = _volumes(vertices, faces, patch)
    low, high = np.full((len(volume), 3), np.inf), np.full((len(volume), 3), -np.inf)
    np.minimum.at(low, patch, vertices[faces].min(axis=1))
    np.maximum.at(high, patch, vertices[faces].max(axis=1))
    members = np.split(np.argsort(patch, kind="stable"), np.bincount(patch).cumsum()[:-1])
    order = np.argsort(-np.abs(volume))
    order = order[closed[order]]
    for place, number in enumerate(order):  # what a patch may lie in comes before it, what lies in it behind
        if volume[number] >= 0:
            continue
        own, larger, smaller = faces[members[number]], order[:place], order[place + 1 :]
        larger = larger[((low[larger] <= high[number]) & (high[larger] >= low[number])).all(axis=1)]
        if len(larger) and _within(vertices, np.concatenate([faces[members[other]] for other in larger]), own):
            continue
        smaller = smaller[((low[smaller] >= low[number]) & (high[smaller] <= high[number])).all(axis=1)]
        contents = [other for other in smaller if _within(vertices, own[:, ::-1], faces[members[other]])]
        for turned in (number, *contents):
            faces[members[turned]] = faces[members[turned]][:, ::-1]
            volume[turned] *= -1


def _within(vertices: Points, outer: Faces, inner: Faces) -> bool:
    """Whether the inner faces lie inside of the outer ones, by some of their vertices."""
    probes = np.unique(inner)
    probes = vertices[probes[:: -(-len(probes) // _PROBES)]]
    return bool((np.asarray(igl.winding_number(vertices, outer, probes)) > 0.5).mean() > _WITHIN)
