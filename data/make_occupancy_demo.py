"""Build the demonstration mesh `watering_can.ply`: one closed surface with a hollow body, a spout and a thin handle.

    python data/make_occupancy_demo.py            # writes data/watering_can.ply again, about half a minute
    python data/make_occupancy_demo.py can.ply    # the same mesh elsewhere

Units are millimetres, z points up, the spout along +x; 300 mm long, with 8 mm walls and a handle 12 mm thick. No two
axes and no two ends look alike (the spout swings to +y, a hanging ring sits at -y), so a swapped or mirrored axis
shows. The can is a signed distance function, negative inside, that marching cubes surfaces and quadric decimation
(Garland & Heckbert 1997) thins. The shape is made here, from nothing else.
"""

import argparse
from pathlib import Path

import numpy as np
import trimesh
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes

LOWER, UPPER = np.array([-125.37, -80.37, -8.37]), np.array([205.0, 80.0, 210.0])  # no flat side meets a grid plane
SPACING, FACES = 1.25, 22_000
BLEND = 7.0  # over how many millimetres two parts flow into each other

# Outlines (distance from the axis, height) that turn around the z axis: the body filled, and its cavity.
BODY = [(0, 0), (61, 0), (65, 8), (66, 30), (62, 62), (54, 92), (49, 108), (48, 120), (0, 120)]
CAVITY = [(0, 8), (55, 8), (57.5, 12), (58, 30), (54, 60), (46, 90), (41, 107), (40, 120), (40, 140), (0, 140)]

# Control points of cubic Bézier curves, and the tubes' radii at both ends.
SPOUT = [(52, 2, 24), (128, 0, 22), (110, 8, 118), (178, 26, 152)], (19.0, 8.0)
HANDLE = [(36, -4, 118), (40, -14, 226), (-150, -20, 226), (-60, 0, 44)], (6.0, 6.0)
ROSE_RADIUS, ROSE_HALF_HEIGHT = 26.0, 5.0
RING_CENTRE, RING_RADIUS, RING_TUBE = (-8.0, -60.0, 96.0), 15.0, 4.5


def blended(a: np.ndarray, b: np.ndarray, width: float = BLEND) -> np.ndarray:
    """Union of two distance fields with a fillet (Quilez's polynomial smooth minimum)."""
    overlap = np.maximum(width - np.abs(a - b), 0) / width
    return np.minimum(a, b) - overlap**2 * width / 4


def turned(points: np.ndarray, outline: list[tuple[float, float]]) -> np.ndarray:
    """Exact distance to the solid that a polygon sweeps around the z axis. points [N, 3] → [N]."""
    p = np.stack([np.hypot(points[:, 0], points[:, 1]), points[:, 2]], 1)
    corners = np.array(outline, np.float32)
    squared, inside = np.full(len(p), np.inf, np.float32), np.zeros(len(p), bool)
    for a, b in zip(corners, np.roll(corners, -1, 0), strict=True):
        if a[0] == b[0] == 0:
            crosses = np.zeros(len(p), bool)  # on the axis: no surface, and no radius is below 0
        else:
            q, edge = p - a, b - a
            squared = np.minimum(squared, np.square(q - np.clip(q @ edge / (edge @ edge), 0, 1)[:, None] * edge).sum(1))
            rise = edge[1] if edge[1] else 1.0
            crosses = ((a[1] <= p[:, 1]) != (b[1] <= p[:, 1])) & (q[:, 0] < q[:, 1] * edge[0] / rise)
        inside ^= crosses
    return np.sqrt(squared) * np.where(inside, -1, 1)


def tube(points: np.ndarray, controls: list[tuple[float, float, float]], radii: tuple[float, float]) -> np.ndarray:
    """Distance to a round tube along a Bézier curve, its radius even in the parameter. points [N, 3] → [N]."""
    t = np.linspace(0, 1, 2000)[:, None]
    c = np.array(controls, float)
    curve = (1 - t) ** 3 * c[0] + 3 * t * (1 - t) ** 2 * c[1] + 3 * t**2 * (1 - t) * c[2] + t**3 * c[3]
    distance, nearest = cKDTree(curve).query(points)
    return distance - (radii[0] + (radii[1] - radii[0]) * t[nearest, 0])


def disc(points: np.ndarray, centre: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Distance to the rose: a disc with a round rim and a shallow dish in its face."""
    q = points - centre
    height = q @ axis
    radius = np.linalg.norm(q - height[:, None] * axis, axis=1)
    outside = np.stack([radius - ROSE_RADIUS + 3, np.abs(height) - ROSE_HALF_HEIGHT + 3], 1)
    return np.linalg.norm(np.maximum(outside, 0), axis=1) + np.minimum(outside.max(1), 0) - 3


def watering_can(points: np.ndarray) -> np.ndarray:
    """Signed distance of the can, near its surface, in millimetres. points [N, 3] → [N]."""
    x, y, z = points.T
    spout_end, spout_axis = (np.array(SPOUT[0][i], float) for i in (3, 2))
    spout_axis = (spout_end - spout_axis) / np.linalg.norm(spout_end - spout_axis)
    can = turned(points, BODY)
    for radius, height, thickness in ((63, 4, 5), (46, 119, 6)):  # the foot and the rolled rim
        can = blended(can, np.hypot(np.hypot(x, y) - radius, z - height) - thickness, 3)
    can = blended(can, blended(tube(points, *SPOUT), disc(points, spout_end, spout_axis)))
    cx, cy, cz = RING_CENTRE
    can = blended(can, np.hypot(np.hypot(y - cy, z - cz) - RING_RADIUS, x - cx) - RING_TUBE)
    cover = np.maximum(np.abs(z - 116) - 4, 6 - x)  # a lid over the spout's half of the opening
    cavity = -blended(-turned(points, CAVITY), cover, 3)
    return blended(-blended(-can, cavity, 3), tube(points, *HANDLE))


def build(spacing: float = SPACING, faces: int = FACES) -> trimesh.Trimesh:
    """The can's surface from a grid of this spacing (mm), thinned to about that many faces."""
    axes = [np.arange(low, high, spacing) for low, high in zip(LOWER, UPPER, strict=True)]
    field = np.empty([len(a) for a in axes], np.float32)
    for i, x in enumerate(axes[0]):  # one slice at a time: memory stays small
        slice_ = np.stack(np.meshgrid([x], axes[1], axes[2], indexing="ij"), -1).reshape(-1, 3)
        field[i] = watering_can(slice_).reshape(field.shape[1:])
    vertices, triangles, _, _ = marching_cubes(field, 0.0, spacing=(spacing,) * 3)
    mesh = trimesh.Trimesh(vertices + LOWER, triangles, process=False)
    mesh = mesh.simplify_quadric_decimation(face_count=faces)
    # decimation leaves a pair of faces back to back where it folds a sliver: not a part of the can
    mesh = max(mesh.split(only_watertight=False), key=lambda part: len(part.faces))
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0 and mesh.euler_number == -2
    return mesh


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=Path(__file__).parent / "watering_can.ply")
    out = parser.parse_args().out
    mesh = build()
    mesh.export(out)
    size, kind = " x ".join(f"{s:.0f}" for s in mesh.extents), f"{len(mesh.faces)} faces"
    print(f"{out}: {size} mm, {kind}, {mesh.volume / 1000:.1f} cm³, {mesh.area / 100:.1f} cm²")


if __name__ == "__main__":
    main()
