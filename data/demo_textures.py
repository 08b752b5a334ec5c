"""The textures of the demonstration scene: patterns made here and photographs that come with scikit-image.

Linear RGB, float32 [h, w, 3], first row at the top. Their scale is moderate on purpose, about two texels a pixel
where they are seen, so that a small network can learn them; the supersampling does the rest.
"""

from functools import cache

import numpy as np
from skimage import data
from skimage.transform import resize

__all__ = ["GAMMA", "texture"]

GAMMA = 2.2
PHOTO_WIDTH = 160

Vec = tuple[float, float, float]


def noise(rng: np.random.Generator, height: int, width: int, cells: tuple[int, int]) -> np.ndarray:
    """Smooth noise [height, width, 1] in about -1 … 1 that repeats without a seam."""
    return resize(rng.uniform(-1, 1, cells), (height, width), order=3, mode="wrap")[..., None]


def boards(rng: np.random.Generator, rows: int, columns: int, colour: Vec, spread: float, joint: float) -> np.ndarray:
    """`rows` courses of `columns` bricks or boards along x, each with its own tone, soft joints between them."""
    y, x = np.mgrid[0:384, 0:384] / (384 / np.array([rows, columns]))[:, None, None]
    x = (x + rng.uniform(0.3, 0.7, rows).cumsum()[y.astype(int)]) % columns
    tones = (
        1 + spread * rng.uniform(-1, 1, (rows, columns, 1)) + 0.3 * spread * rng.uniform(-1, 1, (rows, columns, 3))
    )
    edge = np.minimum(np.minimum(y % 1, 1 - y % 1) / rows, np.minimum(x % 1, 1 - x % 1) / columns) * 384
    depth = np.clip((edge - 1) / 5, 0, 1)[..., None]
    grain = 1 + 0.10 * noise(rng, 384, 384, (40, 8))
    return np.array(colour) * grain * tones[y.astype(int), x.astype(int)] * (joint + (1 - joint) * depth)


def mosaic(colours: list[Vec], rows: int, columns: int, step: int, shape: tuple[int, int]) -> np.ndarray:
    """Rows × columns fields; the colour moves on by one from column to column and by `step` from row to row."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    index = (x * columns // shape[1] + step * (y * rows // shape[0])) % len(colours)
    return np.array(colours)[index]


RED, WHITE, BLUE, YELLOW = (0.72, 0.22, 0.18), (0.86, 0.82, 0.75), (0.22, 0.38, 0.64), (0.90, 0.68, 0.25)
GREEN, TEAL, RUST, SAND = (0.25, 0.52, 0.38), (0.20, 0.47, 0.50), (0.66, 0.34, 0.22), (0.86, 0.74, 0.55)


@cache
def texture(name: str) -> np.ndarray:
    """A pattern of that name or, if there is none, the photograph that scikit-image calls so."""
    rng = np.random.default_rng(sum(name.encode()))
    made = {
        "plain": lambda: np.ones((2, 2, 3)),
        "bricks": lambda: boards(rng, 6, 3, (0.64, 0.56, 0.49), 0.10, 0.82),
        "planks": lambda: boards(rng, 8, 2, (0.62, 0.45, 0.31), 0.16, 0.72).swapaxes(0, 1),
        "wood": lambda: 0.9 + 0.10 * noise(rng, 256, 256, (20, 5)) * np.ones(3),
        "cloth": lambda: 0.88 + 0.2 * noise(rng, 128, 128, (8, 8)) * np.ones(3),
        "stone": lambda: 0.85 + 0.26 * noise(rng, 192, 192, (12, 12)) * np.ones(3),
        "beach": lambda: mosaic([RED, WHITE, BLUE, WHITE, YELLOW, WHITE, GREEN, WHITE], 1, 8, 0, (64, 384)),
        "globe": lambda: mosaic([TEAL, SAND], 4, 6, 1, (192, 320)),
        "vase": lambda: mosaic([TEAL, SAND, RUST], 3, 1, 1, (192, 64)),
    }
    if name in made:
        srgb = made[name]()
    else:
        photo = getattr(data, name)()
        photo = photo if photo.ndim == 3 else np.repeat(photo[..., None], 3, 2)
        height = round(PHOTO_WIDTH * photo.shape[0] / photo.shape[1])
        srgb = resize(photo, (height, PHOTO_WIDTH), anti_aliasing=True)
    return (np.clip(srgb, 0, 1) ** GAMMA).astype(np.float32)
