"""Which cells of a coarse grid a surface may cross: the ones to look at closer."""

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from sinelr_lightning.geometry.grid import CORNERS, Level, Sampler, places, window

__all__ = ["Refined", "crossing", "refine"]

COARSE = 48  # cells along an axis of the coarsest level, at least
SAFETY = 2.0  # of the slope test: the largest factor at which no cell of a linear field is refined in vain
DIP = 0.7  # a probe this much nearer to the level than all corners of its cell has found something


@dataclass(frozen=True)
class Refined:
    """The finest level of a grid, closed: each cell that the surface crosses is in it.

    Attributes:
        level: the finest one; its active cells include all that the surface crosses.
        leaves_cube: whether the surface goes through the cube's sides.
        quantiles: minimum, 1 %, 50 %, 99 % and maximum of the field over the coarse grid.
    """

    level: Level
    leaves_cube: bool
    quantiles: tuple[float, ...]


def refine(sample: Sampler, resolution: int) -> Refined:
    """Evaluate a field coarse to fine, only where its surface is or may be.

    The coarsest level is evaluated whole. A cell goes on to the next level if its corners differ in sign, if the
    slope around it could bring the field to its level inside (`_hidden`), or if it holds a random point that says so
    (`_hits`). At each level the surface is then followed into the cells that were left out, so a thin part found
    anywhere is followed whole.

    What stays unseen is thinner than a cell of the coarsest level, of a field that is flat all around it, and missed
    by all random points.

    Args:
        sample: the field minus its level.
        resolution: cells along each axis of the finest level.
    """
    level = _coarsest(sample, resolution)
    known = level.values[np.isfinite(level.values)]
    quantiles = tuple((np.quantile(known, [0, 0.01, 0.5, 0.99, 1]) + sample.level).tolist())
    hits = _hits(level, sample)
    leaves = _follow(level, sample)
    while level.stride > 1:
        finer = Level(resolution, level.stride // 2, parent=level)
        finer.activate(_halves((hits // level.stride).astype(np.int32), finer.cells))
        for rows in level.chunks():
            finer.activate(_halves(level.index(places(rows, _worth(level, rows))), finer.cells))
        finer.evaluate(sample, f"refining to {finer.cells} cells")
        leaves = _follow(finer, sample)
        finer.parent = None
        level = finer
    return Refined(level, leaves, quantiles)


def _coarsest(sample: Sampler, resolution: int) -> Level:
    stride = 1
    while resolution >= 2 * stride * COARSE:
        stride *= 2
    level = Level(resolution, stride)
    every = np.unravel_index(np.arange(level.cells**3), (level.cells,) * 3)
    level.activate(np.stack(every, axis=-1).astype(np.int32))
    level.evaluate(sample, "coarse grid")
    return level


def _worth(level: Level, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Active cells that the surface crosses, or may cross by the slope of the field: [len(rows), 8, 8, 8]."""
    values, active = level.halo(level.values, rows), level.active[rows]
    return crossing(values, active) | (active & _hidden(values))


def crossing(values: NDArray[np.float32], active: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which active cells have corners of both signs: [N, 8, 8, 8].

    Args:
        values: [N, 11, 11, 11], bricks with their halo. active: [N, 8, 8, 8].
    """
    return active & _mixed(values > 0, (1, 2, 3))


def _mixed(inside: NDArray[np.bool_], axes: tuple[int, ...]) -> NDArray[np.bool_]:
    """Whether nodes and those after them on some axes of the halo lie on both sides."""
    some, every = inside, inside
    for axis in axes:
        some = _part(some, axis, 1, 9) | _part(some, axis, 2, 10)
        every = _part(every, axis, 1, 9) & _part(every, axis, 2, 10)
    return some & ~every


def _hidden(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which cells may hide a thin part between corners of one sign, by the slope of the field: [N, 8, 8, 8].

    From each corner, the field goes on into the cell as it came from the node before it on each axis: with u ≥ 0 the
    distance of a corner's value from the level and u_a that of the node before it on axis a,

        u ≤ SAFETY/2·Σ_a max(0, u_a - u)

    reaches the level by the middle of the cell. Nodes that were not evaluated say nothing. Slopes are local: logits
    are steep near the surface and flat elsewhere.

    Args:
        values: [N, 11, 11, 11], bricks with a halo, NaN where unknown.
    """
    hidden = np.zeros((len(values), 8, 8, 8), bool)
    for corner in CORNERS:
        here = values[window(corner)]
        sign = np.sign(here)
        reach = np.zeros_like(here)
        for axis in range(3):
            before = corner.copy()
            before[axis] += 2 * corner[axis] - 1
            reach += np.fmax((values[window(before)] - here) * sign, 0)  # 0 where it is NaN
        hidden |= np.abs(here) <= SAFETY / 2 * reach
    return hidden


def _hits(level: Level, sample: Sampler) -> NDArray[np.float64]:
    """Random points nearer to the level than the corners of their cell, where these say nothing: [N, 3] finest cells.

    A thin part can lie between all nodes of the next levels too: such a point leads there through all of them.
    """
    count = level.stride // 2  # a cell: the more nodes of the finest level lie in it, the more can hide
    dull = [places(rows, level.active[rows] & ~_worth(level, rows)) for rows in level.chunks()]
    cells = level.index(np.concatenate(dull))
    corners = level.values.reshape(-1)[np.stack([level.slots(cells + corner) for corner in CORNERS])]
    bound = DIP * np.abs(corners).min(axis=0).repeat(count)
    points = (cells[:, None] + np.random.default_rng(0).random((len(cells), count, 3))).reshape(-1, 3)
    values = sample("probing", len(points), lambda part: level.points(points[part]))
    hit = values * np.sign(corners[0]).repeat(count) < bound
    return np.minimum(points[hit] * level.stride, level.resolution - 0.5)


def _follow(level: Level, sample: Sampler) -> bool:
    """Activate the neighbours into which the surface goes on, until it is closed; say whether it leaves the cube."""
    leaves = False
    rows: list[NDArray[np.int64]] = list(level.chunks())
    while rows:
        found = [_beyond(level, some) for some in rows]
        cells = np.concatenate([some for some, _ in found])
        leaves |= any(left for _, left in found)
        rows = []
        if len(cells):
            rows = [level.activate(cells)]
            level.evaluate(sample, "following the surface", rows[0])
    return leaves


def _beyond(level: Level, rows: NDArray[np.int64]) -> tuple[NDArray[np.int32], bool]:
    """Cells [N, 3] behind faces that the surface crosses and that are not active, and whether some lie outside."""
    inside = level.halo(level.values, rows) > 0
    active = level.halo(level.active, rows)
    found = []
    for axis, side in product(range(3), (0, 1)):
        nodes = _part(inside, axis + 1, 1 + side, 9 + side)
        mixed = _mixed(nodes, tuple({1, 2, 3} - {axis + 1}))
        step = np.zeros(3, np.int32)
        step[axis] = 2 * side - 1
        open_face = active[window(0 * step)] & ~active[window(step)] & mixed
        found.append(level.index(places(rows, open_face)) + step)
    cells = np.unique(np.concatenate(found), axis=0)
    there = ((cells >= 0) & (cells < level.cells)).all(axis=1)
    return cells[there], not there.all()


def _halves(cells: NDArray[np.int32], most: int) -> NDArray[np.int32]:
    """Halves of cells: [≤ 8·N, 3], without those that would lie outside the cube."""
    halves = (2 * cells[:, None] + CORNERS).reshape(-1, 3)
    return halves[(halves < most).all(axis=1)]


def _part(array: NDArray, axis: int, start: int, stop: int) -> NDArray:
    return array[(slice(None),) * axis + (slice(start, stop),)]
