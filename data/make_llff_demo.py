"""Ray-trace the demonstration scene `llff_demo/`: 20 forward-facing views of a still life, in LLFF's format.

    python data/make_llff_demo.py                      # writes data/llff_demo/ again, about a minute
    python data/make_llff_demo.py --out big --scale 2  # the same views at 800×600

The folder holds `images/view_00.jpg` … and `poses_bounds.npy`, float64 [20, 17]. Row i belongs to the i-th image by
name: a 3×5 matrix, flattened by rows, with the columns (down, right, backward, position, [height, width, focal]) in
world coordinates, then the nearest and the farthest depth along the optical axis. Pixel (c, r) has its centre at
(c + 0.5, r + 0.5), the principal point is the image's centre, one unit is about half a metre. Every eighth view
(0, 8, 16), which LLFF readers hold out, stands inside the disc of cameras, never on its rim.

The geometry and the patterns are made here (`demo_textures.py`), the light by `demo_tracer.py`. Three photographs
come with scikit-image, which says of them: chelsea, CC0 by the photographer (Stefan van der Walt); coffee, CC0 by
the photographer (Rachel Michetti), courtesy of Pikolo Espresso Bar; rocket, captured by SpaceX and released in the
public domain.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from demo_textures import GAMMA
from demo_tracer import GOLDEN_ANGLE, Ball, Box, Cylinder, Lights, Paint, Solid, Stage, unit
from PIL import Image

WIDTH, HEIGHT, FOCAL = 400, 300, 430.0
EYE, TARGET = (0.0, 1.35, 4.4), (0.0, 0.87, -0.6)
DISC = (0.50, 0.32)  # half axes of the disc of cameras: up to 17 % of the distance to the nearest object
VIEWS, HELD_OUT, HELD_OUT_SPOTS = 20, (0, 8, 16), (2, 4, 6)  # spots count from the disc's centre outwards
SUPERSAMPLING = 4

LIGHTS = Lights(
    lamp=(-4.0, 4.8, 4.2), lamp_radius=0.4, key=(2.5, 2.3, 2.0), sky=(0.50, 0.54, 0.62), bounce=(0.22, 0.17, 0.13),
    fill=(0.12, 0.13, 0.16), fill_from=(0.8, 0.35, 0.5), room=(0.31, 0.31, 0.32), exposure=0.98,
)  # fmt: skip


def picture(name: str, x: float, y: float, width: float, height: float) -> list[Solid]:
    """A framed photograph on the back wall."""
    frame = Paint("wood", (1.6, 1.6), (0.50, 0.36, 0.26), gloss=0.2)
    photo = Paint(name, (width, height))
    return [
        Box((x, y, -1.95), (width + 0.24, height + 0.24, 0.14), frame),
        Box((x, y, -1.90), (width, height, 0.10), frame, front=photo),
    ]


SCENE: list[Solid] = [
    Box((0, -0.5, 0), (16, 1, 16), Paint("planks", (4.4, 4.4), mirror=0.04), throws_shadow=False),
    Box((0, 3, -2.5), (16, 8, 1), Paint("bricks", (4.2, 3.0)), throws_shadow=False),
    *picture("rocket", -1.42, 2.12, 1.86, 1.24),
    Box(
        (-1.05, 0.56, -0.6),
        (1.66, 1.12, 0.6),
        Paint("plain", tint=(0.36, 0.56, 0.56)),
        turn=-10,
        front=Paint("chelsea", (1.66, 1.12), gloss=0.2),
    ),
    Cylinder((0.62, 0.46, -0.75), (0.92, 0.92, 0.92), Paint("stone", (1.445, 1.445), (0.74, 0.70, 0.62))),
    Ball((0.62, 1.37, -0.75), (0.90, 0.90, 0.90), Paint("beach", gloss=0.8, shininess=60, mirror=0.05), turn=20),
    Box(
        (1.5, 0.47, 0.05),
        (1.4, 0.94, 0.5),
        Paint("plain", tint=(0.60, 0.28, 0.22)),
        turn=12,
        front=Paint("coffee", (1.4, 0.94), gloss=0.2),
    ),
    Box((-1.02, 0.12, 0.9), (1.05, 0.24, 0.70), Paint("cloth", (1.0, 1.0), (0.30, 0.46, 0.62)), turn=14),
    Ball((-1.02, 0.44, 0.9), (0.40, 0.40, 0.40), Paint("plain", tint=(0.9, 0.82, 0.7), mirror=0.3, gloss=0.5)),
    Ball((0.55, 0.34, 1.15), (0.68, 0.68, 0.68), Paint("globe", gloss=0.8, mirror=0.05), turn=-15),
    Cylinder((-0.16, 0.28, 0.35), (0.40, 0.56, 0.40), Paint("vase", (1.0, 0.56), gloss=0.6, mirror=0.04)),
]

STAGE = Stage(SCENE, LIGHTS, SUPERSAMPLING**2)


@dataclass(frozen=True)
class Camera:
    """`axes` [3, 3] has the columns right, up, backward in world coordinates."""

    axes: np.ndarray
    position: np.ndarray
    height: int
    width: int
    focal: float

    @classmethod
    def from_llff(cls, row: np.ndarray) -> "Camera":
        """The camera of one row of poses_bounds.npy."""
        m = row[:15].reshape(3, 5)
        return cls(np.stack([m[:, 1], -m[:, 0], m[:, 2]], 1), m[:, 3], int(m[0, 4]), int(m[1, 4]), m[2, 4])

    def to_llff(self, near: float, far: float) -> np.ndarray:
        right, up, backward = self.axes.T
        m = np.stack([-up, right, backward, self.position, [self.height, self.width, self.focal]], 1)
        return np.concatenate([m.ravel(), [near, far]])

    def scaled(self, scale: float) -> "Camera":
        """The same view in another number of pixels."""
        return replace(
            self, height=round(self.height * scale), width=round(self.width * scale), focal=self.focal * scale
        )

    def rays(self, dx: float, dy: float) -> np.ndarray:
        """World directions [3, height·width] through the points (dx, dy) of all pixels, 1 long along the axis."""
        y, x = np.mgrid[0 : self.height, 0 : self.width]
        x, y = (x + dx - self.width / 2) / self.focal, (y + dy - self.height / 2) / self.focal
        return (self.axes @ np.stack([x, -y, -np.ones_like(x)]).reshape(3, -1)).astype(np.float32)


def look(position: np.ndarray, target: np.ndarray) -> Camera:
    """The camera at `position` that has `target` in the middle of its picture and holds its head upright."""
    backward = unit(position - target)
    right = unit(np.cross([0.0, 1.0, 0.0], backward))
    return Camera(np.stack([right, np.cross(backward, right), backward], 1), position, HEIGHT, WIDTH, FOCAL)


def cameras() -> list[Camera]:
    """VIEWS cameras on a sunflower disc that curves away at its rim, with the held-out ones well inside."""
    order = [spot for spot in range(VIEWS) if spot not in HELD_OUT_SPOTS]
    for view, spot in zip(HELD_OUT, HELD_OUT_SPOTS, strict=True):
        order.insert(view, spot)
    rng, views = np.random.default_rng(7), []
    jitter = rng.normal(0, 1, (VIEWS, 2, 3))
    for spot in order:
        r, angle = np.sqrt((spot + 0.5) / VIEWS), spot * GOLDEN_ANGLE
        offset = np.array([DISC[0] * r * np.cos(angle), DISC[1] * r * np.sin(angle), 0.15 * r**2])
        views.append(look(EYE + offset + 0.02 * jitter[spot, 0], TARGET + offset * 0.35 + 0.03 * jitter[spot, 1]))
    return views


def render(camera: Camera) -> tuple[np.ndarray, float, float]:
    """uint8 image [h, w, 3] and the nearest and the farthest depth along the optical axis in it."""
    total, near, far = np.zeros((3, camera.height * camera.width)), np.inf, 0.0
    for sample in range(SUPERSAMPLING**2):
        dx, dy = ((k + 0.5) / SUPERSAMPLING for k in (sample % SUPERSAMPLING, sample // SUPERSAMPLING))
        direction = camera.rays(dx, dy)
        length = np.linalg.norm(direction, axis=0)
        origin = np.broadcast_to(camera.position.astype(np.float32)[:, None], direction.shape)
        light, t = STAGE.radiance(origin, direction / length, sample)
        total += STAGE.develop(light)
        near, far = min(near, float((t / length).min())), max(far, float((t / length).max()))
    image = (total / SUPERSAMPLING**2) ** (1 / GAMMA)
    return (image.T.reshape(camera.height, camera.width, 3) * 255 + 0.5).astype(np.uint8), near, far


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "llff_demo", help="folder to write")
    parser.add_argument("--scale", type=float, default=1.0, help="pixels per stored pixel of the shipped scene")
    arguments = parser.parse_args()
    images, rows = arguments.out / "images", []
    images.mkdir(parents=True, exist_ok=True)
    for i, camera in enumerate(c.scaled(arguments.scale) for c in cameras()):
        image, near, far = render(camera)
        Image.fromarray(image).save(images / f"view_{i:02d}.jpg", quality=96, subsampling=0)
        rows.append(camera.to_llff(near, far))
        print(f"view {i + 1} of {VIEWS}: depth {near:.2f} to {far:.2f}", flush=True)
    np.save(arguments.out / "poses_bounds.npy", np.stack(rows))


if __name__ == "__main__":
    main()
