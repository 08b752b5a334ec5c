"""A small ray tracer for still lifes: convex solids, one round lamp with soft shadows, mirrored rays, no noise.

Rays and points are float32 arrays [3, n], all rays of one sub-pixel position at once. World axes: x right, y up.
"""

from dataclasses import dataclass

import numpy as np
from demo_textures import GAMMA, texture

__all__ = ["GOLDEN_ANGLE", "Ball", "Box", "Cylinder", "Lights", "Paint", "Solid", "Stage", "Vec", "unit"]

Vec = tuple[float, float, float]
EPSILON = 1e-3  # how far rays start from the surface that they leave
GOLDEN_ANGLE = 2.399963  # radians; successive multiples cover a disc evenly


def column(values) -> np.ndarray:
    """A vector as float32 [3, 1], to combine with [3, n]."""
    return np.asarray(values, np.float32)[:, None]


def unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v, axis=0)


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(0)


def slab(o: np.ndarray, d: np.ndarray, half: float) -> tuple[np.ndarray, np.ndarray]:
    """Distances between which o + t·d lies in -half … half."""
    inverse = 1 / np.where(np.abs(d) < 1e-9, np.float32(1e-9), d)
    middle, reach = -o * inverse, half * np.abs(inverse)
    return middle - reach, middle + reach


def quadratic(a, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances between which a·t² + 2b·t + c < 0; an empty span (inf, -inf) if there are none."""
    square = b * b - a * c
    root = np.sqrt(np.maximum(square, 0))
    miss = square <= 0
    return np.where(miss, np.inf, (-b - root) / a), np.where(miss, -np.inf, (root - b) / a)


@dataclass(frozen=True)
class Paint:
    """What covers a surface: a texture, one copy of which is `tile` units wide and high, centred on the face."""

    texture: str
    tile: tuple[float, float] = (1.0, 1.0)
    tint: Vec = (1.0, 1.0, 1.0)
    gloss: float = 0.0  # strength of the highlight
    shininess: float = 60.0
    mirror: float = 0.0  # reflectance seen straight on; up to four times as much at grazing angles


@dataclass(frozen=True)
class Solid:
    """A convex body at `centre`, turned by `turn` degrees about the vertical; `front` paints its +z face alone."""

    centre: Vec
    size: Vec  # full extents along the body's own axes
    paint: Paint
    turn: float = 0.0
    front: Paint | None = None
    throws_shadow: bool = True

    def span(self, o: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distances at which rays in the body's own axes enter and leave it; enter > leave if they miss."""
        raise NotImplementedError

    def skin(self, p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`surface` in the body's own axes."""
        raise NotImplementedError

    def rotation(self) -> np.ndarray:
        """3×3, body to world."""
        c, s = np.cos(np.radians(self.turn)), np.sin(np.radians(self.turn))
        return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]], np.float32)

    def intersect(self, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """Distance [n] along world rays [3, n] to where they enter the body; inf if they miss or start inside."""
        to_body = self.rotation().T
        enter, leave = self.span(to_body @ (origin - column(self.centre)), to_body @ direction)
        return np.where((enter < leave) & (enter > EPSILON), enter, np.float32(np.inf))

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """World normals [3, n], texture coordinates [2, n] and whether it is the front [n], at world points."""
        normal, uv, front = self.skin(self.rotation().T @ (points - column(self.centre)))
        return self.rotation() @ normal, uv, front


class Box(Solid):
    """Intersection of three slabs."""

    def span(self, o, d):
        low, high = zip(*(slab(o[i], d[i], self.size[i] / 2) for i in range(3)), strict=True)
        return np.maximum.reduce(low), np.minimum.reduce(high)

    def skin(self, p):
        q = p / (column(self.size) / 2)
        axis = np.abs(q).argmax(0)
        normal = np.where(np.arange(3)[:, None] == axis, np.sign(q), 0).astype(np.float32)
        x, y, z = p
        sign = normal.sum(0)
        uv = np.stack([np.choose(axis, [-sign * z, x, sign * x]), np.choose(axis, [y, -sign * z, y])])
        return normal, uv, normal[2] > 0


class Ball(Solid):
    """Sphere of diameter `size[0]`; u and v run once over -0.5 … 0.5."""

    def span(self, o, d):
        return quadratic(1.0, dot(o, d), dot(o, o) - (self.size[0] / 2) ** 2)

    def skin(self, p):
        normal = p / np.linalg.norm(p, axis=0)
        u, v = np.arctan2(normal[0], normal[2]) / (2 * np.pi), np.arcsin(np.clip(normal[1], -1, 1)) / np.pi
        return normal, np.stack([u, v]), np.zeros(p.shape[1], bool)


class Cylinder(Solid):
    """Upright cylinder of diameter `size[0]` and height `size[1]`: a round side cut by one slab."""

    def span(self, o, d):
        a, b, c = ((f[0] * g[0] + f[2] * g[2]) for f, g in ((d, d), (o, d), (o, o)))
        side, caps = quadratic(a, b, c - (self.size[0] / 2) ** 2), slab(o[1], d[1], self.size[1] / 2)
        return np.maximum(side[0], caps[0]), np.minimum(side[1], caps[1])

    def skin(self, p):
        radius, (x, y, z) = self.size[0] / 2, p
        cap = np.abs(y) * 2 / self.size[1] > np.hypot(x, z) / radius
        normal = np.where(cap, np.stack([0 * x, np.sign(y), 0 * x]), np.stack([x, 0 * y, z]) / radius)
        uv = np.where(cap, np.stack([x, -z]), np.stack([np.arctan2(x, z) * radius, y]))
        return normal / np.linalg.norm(normal, axis=0), uv, np.zeros(p.shape[1], bool)


def albedo(paint: Paint, uv: np.ndarray) -> np.ndarray:
    """Colour [3, n] of the repeated texture at uv [2, n], bilinearly."""
    image = texture(paint.texture)
    h, w = image.shape[:2]
    x = (uv[0] / paint.tile[0] + 0.5) * w - 0.5
    y = (0.5 - uv[1] / paint.tile[1]) * h - 0.5
    c, r = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = (x - c)[:, None], (y - r)[:, None]
    top = image[r % h, c % w] * (1 - fx) + image[r % h, (c + 1) % w] * fx
    bottom = image[(r + 1) % h, c % w] * (1 - fx) + image[(r + 1) % h, (c + 1) % w] * fx
    return (top * (1 - fy) + bottom * fy).T.astype(np.float32) * column(paint.tint) ** GAMMA


@dataclass(frozen=True)
class Lights:
    """A round lamp that throws shadows, a sky that shades itself, and two lights without shadows."""

    lamp: Vec
    lamp_radius: float
    key: Vec
    sky: Vec
    bounce: Vec  # from below
    fill: Vec
    fill_from: Vec  # direction
    room: Vec  # what a mirrored ray sees that leaves the scene, at the height of the horizon
    exposure: float


@dataclass(frozen=True)
class Stage:
    """Solids under lights, seen with `samples` rays a pixel.

    The k-th ray of every pixel goes on to the k-th of `samples` points of the lamp and directions of the sky. The
    rays of a pixel together thus give soft shadows without noise, and the same ones in all views.
    """

    solids: list[Solid]
    lights: Lights
    samples: int

    def radiance(self, origin: np.ndarray, direction: np.ndarray, k: int, bounces: int = 1):
        """Light [3, n] that comes back along rays, and the distances [n] to what they hit (inf if nothing)."""
        t, which = self.nearest(origin, direction)
        light = self.room(direction)
        for i in np.unique(which[which >= 0]):
            rays = np.flatnonzero(which == i)
            points = origin[:, rays] + t[rays] * direction[:, rays]
            light[:, rays] = self.shade(self.solids[i], points, direction[:, rays], k, bounces)
        return light, t

    def nearest(self, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distance [n] to the first surface (inf if none) and the index of its solid (-1)."""
        best, which = np.full(origin.shape[1], np.inf, np.float32), np.full(origin.shape[1], -1)
        for i, solid in enumerate(self.solids):
            t = solid.intersect(origin, direction)
            which[t < best] = i
            best = np.minimum(best, t)
        return best, which

    def free(self, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """True [n] where a ray meets no solid that throws shadows."""
        blocked = np.zeros(origin.shape[1], bool)
        for solid in self.solids:
            if solid.throws_shadow:
                blocked |= np.isfinite(solid.intersect(origin, direction))
        return ~blocked

    def shade(self, solid: Solid, points: np.ndarray, view: np.ndarray, k: int, bounces: int) -> np.ndarray:
        """Light [3, n] that one solid's surface points send back against the rays' direction `view`."""
        normal, uv, front = solid.surface(points)
        points = points + EPSILON * normal
        to_lamp = unit(self.lamp_point(k) - points)
        key = self.free(points, to_lamp) * np.maximum(dot(normal, to_lamp), 0)
        ambient = self.ambient(points, normal, k)
        light = np.empty_like(points)
        for paint, on in ((solid.front or solid.paint, front), (solid.paint, ~front)):
            if not on.any():
                continue
            n, v = normal[:, on], view[:, on]
            matt = 0.75 * albedo(paint, uv[:, on]) * (column(self.lights.key) * key[on] + ambient[:, on])
            shine = np.maximum(dot(n, unit(to_lamp[:, on] - v)), 0) ** paint.shininess * (key[on] > 0)
            light[:, on] = matt + 0.5 * paint.gloss * column(self.lights.key) * shine
            if paint.mirror and bounces:
                mirrored, _ = self.radiance(points[:, on], v - 2 * dot(n, v) * n, k, bounces - 1)
                share = np.minimum(paint.mirror * (1 + 3 * (1 + dot(n, v)).clip(0, 1) ** 3), 1)
                light[:, on] += share * (mirrored - matt)
        return light

    def ambient(self, points: np.ndarray, normal: np.ndarray, k: int) -> np.ndarray:
        """Light [3, n] from the sky where the k-th direction of the half sphere is free, from below and the side."""
        share, angle = (k + 0.5) / self.samples, k * GOLDEN_ANGLE + 1
        ring = np.sqrt(1 - share)
        sky = unit(normal + 0.98 * column((ring * np.cos(angle), np.sqrt(share), ring * np.sin(angle))))
        side = np.maximum(dot(normal, unit(column(self.lights.fill_from))), 0)
        light = column(self.lights.sky) * self.free(points, sky) + column(self.lights.fill) * side
        return light + column(self.lights.bounce) * (0.5 - 0.5 * normal[1])

    def lamp_point(self, k: int) -> np.ndarray:
        """[3, 1], the k-th point of the lamp's disc."""
        r, angle = self.lights.lamp_radius * np.sqrt((k + 0.5) / self.samples), k * GOLDEN_ANGLE
        return column(self.lights.lamp) + column((r * np.cos(angle), r * np.sin(angle), -r * np.cos(angle)))

    def room(self, direction: np.ndarray) -> np.ndarray:
        """[3, n], a dim room, lighter above, with a bright window where the lamp is."""
        window = np.clip(dot(direction, unit(column(self.lights.lamp))) - 0.93, 0, 0.02) * 50
        return column(self.lights.room) * (1 + 0.7 * direction[1]) + column(self.lights.key) * window

    def develop(self, light: np.ndarray) -> np.ndarray:
        """Light to displayed intensity in 0 … 1, before gamma: highlights roll off as on film."""
        return 1 - np.exp(-self.lights.exposure * light)
