"""A small LLFF scene for the tests: a plane with a smooth pattern, seen by a row of cameras."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_llff(root: Path, views: int = 9, height: int = 12, width: int = 16) -> Path:
    (root / "images").mkdir(parents=True)
    focal, depth = 20.0, 4.0
    rows = []
    for i in range(views):
        x = (i - views // 2) * 0.1
        column, row = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        across = x + (column - width / 2) / focal * depth
        up = -(row - height / 2) / focal * depth
        image = np.stack([0.5 + 0.4 * np.sin(2 * across), 0.5 + 0.4 * np.cos(2 * up), 0.5 + 0 * up], -1)
        Image.fromarray((image * 255).astype(np.uint8)).save(root / "images" / f"{i:02d}.png")
        # LLFF's axes: down, right, backwards.
        pose = np.array([[0, 1, 0, x, height], [-1, 0, 0, 0, width], [0, 0, 1, 0, focal]], float)
        rows.append(np.concatenate([pose.ravel(), [3.0, 6.0]]))
    np.save(root / "poses_bounds.npy", np.stack(rows))
    return root
