"""Small solids as files, for tests of what is trained on them."""

from pathlib import Path

import numpy as np
import trimesh

FOOT = [(0, 0), (8, 0), (8, 2), (2, 2), (2, 5), (0, 5)]  # of the L, counter-clockwise; its volume is 2·(16 + 6)
CAP = [(0, 1, 3), (1, 2, 3), (0, 3, 5), (3, 4, 5)]  # two triangles for each of its bars


def write_l_shape(path: Path) -> Path:
    """An L, asymmetric in every axis, 8 × 5 × 2 mm, far from the origin: its box is centred on (1e6, −2e5, 30)."""
    vertices = np.array([(x - 4, y - 2.5, z) for z in (-1, 1) for x, y in FOOT]) + np.array([1e6, -2e5, 30])
    caps = [(c, b, a) for a, b, c in CAP] + [(a + 6, b + 6, c + 6) for a, b, c in CAP]
    sides = [face for i in range(6) for j in [(i + 1) % 6] for face in ((i, j, j + 6), (i, j + 6, i + 6))]
    path.parent.mkdir(parents=True, exist_ok=True)
    mesh = trimesh.Trimesh(vertices, caps + sides, process=False)
    assert mesh.is_watertight and mesh.volume > 0
    path.write_text(
        "".join(f"v {x!r} {y!r} {z!r}\n" for x, y, z in mesh.vertices.tolist())
        + "".join(f"f {a} {b} {c}\n" for a, b, c in (mesh.faces + 1).tolist())
    )
    return path
