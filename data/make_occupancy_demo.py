"""Build the demonstration mesh `watering_can.ply`: one closed surface with a hollow body, a spout and a thin handle.

    python data/make_occupancy_demo.py            # writes data/watering_can.ply again, in about half a minute
    python data/make_occupancy_demo.py can.ply    # the same mesh elsewhere

Units are millimetres, z points up, the spout along +x; almost 300 mm long, with 8 mm walls and a handle 12 mm thick.
No two axes and no two ends look alike (the spout swings to +y, a hanging ring sits at -y), so a swapped or mirrored
axis shows. The can is a signed distance function, negative inside; marching cubes surfaces it, quadric decimation
(Garland & Heckbert 1997) thins the surface. The shape is made here, from nothing else.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import trimesh
from scipy.spatial import KDTree
from skimage.measure import marching_cubes

LOWER, UPPER = np.array([-105.37, -90.37, -8.37]), np.array([212.0, 75.0, 206.0])  # no flat side meets a grid plane
SPACING, FACES = 1.25, 22_000
BLEND = 7.0  # over how many millimetres two parts flow into each other

HEIGHT, WALL = 120.0, 8.0
# Control points of cubic Bézier curves, and the tubes' radii at both ends.
BELLY = [(62, 0), (74, 45), (48, 85), (48, 120)]  # the body's outline: distance from the z axis, height
SPOUT = [(58, 2, 26), (128, 0, 22), (110, 8, 118), (182, 28, 152)], (19.0, 8.0)
HANDLE = [(36, -4, 118), (40, -14, 226), (-150, -20, 226), (-62, 0, 46)], (6.0, 6.0)
ROSE_RADIUS, ROSE_HALF_HEIGHT = 27.0, 5.0
RING_CENTRE, RING_RADIUS, RING_TUBE = (-8.0, -62.0, 92.0), 15.0, 4.5


def blended(a: np.ndarray, b: np.ndarray, width: float = BLEND) -> np.ndarray:
    """Union of two distance fields with a fillet (Quilez's polynomial smooth minimum)."""
    overlap = np.maximum(width - np.abs(a - b), 0) / width
    return np.minimum(a, b) - overlap**2 * width / 4


def bezier(controls: Sequence[Sequence[float]], count: int) -> np.ndarray:
    """Points [count, D] of a cubic Bézier curve, even in its parameter."""
    t, c = np.linspace(0, 1, count)[:, None], np.array(controls, float)
    return (1 - t) ** 3 * c[0] + 3 * t * (1 - t) ** 2 * c[1] + 3 * t**2 * (1 - t) * c[2] + t**3 * c[3]


def tube(points: np.ndarray, controls: Sequence[Sequence[float]], radii: tuple[float, float]) -> np.ndarray:
    """Distance to a round tube along a Bézier curve, its radius even in the parameter. points [N, 3] → [N]."""
    distance, nearest = KDTree(bezier(controls, 2000)).query(points)
    return distance - np.linspace(*radii, 2000)[nearest]


def belly(points: np.ndarray) -> np.ndarray:
    """Distance to the outline turned around the z axis, negative on the axis' side. points [N, 3] → [N]."""
    outline = bezier(BELLY, 2000)
    radius, height = np.hypot(points[:, 0], points[:, 1]), points[:, 2]
    distance, _ = KDTree(outline).query(np.stack([radius, height], 1))
    return np.where(radius < np.interp(height, outline[:, 1], outline[:, 0]), -distance, distance)


def disc(points: np.ndarray, centre: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Distance to the rose, a disc with a round rim. points [N, 3] → [N]."""
    q = points - centre
    along = q @ axis
    across = np.linalg.norm(q - along[:, None] * axis, axis=1)
    beyond = np.stack([across - ROSE_RADIUS + ROSE_HALF_HEIGHT, np.abs(along)], 1)
    return np.linalg.norm(np.maximum(beyond, 0), axis=1) - ROSE_HALF_HEIGHT


def watering_can(points: np.ndarray) -> np.ndarray:
    """Signed distance of the can, near its surface, in millimetres. points [N, 3] → [N]."""
    x, y, z = points.T
    side = belly(points)
    can = np.maximum(side, np.maximum(-z, z - HEIGHT))
    for radius, height, thickness in ((62, 4, 5), (46, 119, 6)):  # the foot and the rolled rim
        can = blended(can, np.hypot(np.hypot(x, y) - radius, z - height) - thickness, 3)
    end, axis = np.array(SPOUT[0][3], float), np.subtract(SPOUT[0][3], SPOUT[0][2])
    axis = axis / np.linalg.norm(axis)
    can = blended(can, blended(tube(points, *SPOUT), disc(points, end + 6 * axis, axis)))
    cx, cy, cz = RING_CENTRE
    can = blended(can, np.hypot(np.hypot(y - cy, z - cz) - RING_RADIUS, x - cx) - RING_TUBE)
    cover = np.maximum(np.abs(z - HEIGHT + WALL / 2) - WALL / 2, 6 - x)  # a lid over the spout's half of the opening
    cavity = -blended(np.minimum(-side - WALL, z - WALL), cover, 3)
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
