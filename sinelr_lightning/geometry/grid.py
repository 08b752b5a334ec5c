"""A grid over the cube [-1, 1]³ whose nodes exist only where somebody needs them, and the values of a field there.

Nodes lie in bricks of 8³; a brick is there if one of its nodes is needed. Memory and time follow the surface's area
instead of the cube's volume, and what is asked of a whole brick at once is plain arithmetic on dense arrays.
"""

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
from numpy.typing import NDArray

from sinelr_lightning.errors import UserError

__all__ = ["CORNERS", "NODES", "Field", "Level", "Progress", "Sampler", "places", "window"]

Field = Callable[[NDArray[np.float32]], NDArray[np.floating]]
"""`field(points [N, 3] in the cube, float32) -> [N]`, positive inside."""
Progress = Callable[[str, float], None]
"""`progress(what is under way, fraction of it done)`."""

CORNERS = np.array(list(product((0, 1), repeat=3)), np.int32)  # of a cell, from its low node
BRICK = 8
NODES = BRICK**3
MOST_CELLS = 60_000_000  # active ones; a surface as large as the cube's own has half of that at 1024 cells
HALO = {  # step to the neighbouring brick: place in the halo, place in that brick
    -1: (slice(0, 1), slice(7, 8)),
    0: (slice(1, 9), slice(0, 8)),
    1: (slice(9, 11), slice(0, 2)),
}


class Sampler:
    """A field minus its level, counted.

    Args:
        field: callback, see `Field`.
        level: what is above it is inside.
        batch: points a call.
        progress: told after each batch.
    """

    def __init__(self, field: Field, level: float, batch: int, progress: Progress | None) -> None:
        self.field, self.level, self.batch, self.progress = field, level, batch, progress
        self.evaluations = 0

    def __call__(self, what: str, count: int, points: Callable[[slice], NDArray[np.floating]]) -> NDArray[np.float32]:
        """Evaluate `field - level` at `points(part)` for all parts of 0…count: [count].

        Raises:
            UserError: values that are not finite.
        """
        values = np.empty(count, np.float32)
        for start in range(0, count, self.batch):
            part = slice(start, min(start + self.batch, count))
            values[part] = np.asarray(self.field(points(part).astype(np.float32))) - self.level
            if self.progress is not None:
                self.progress(what, part.stop / count)
        self.evaluations += count
        bad = count - np.count_nonzero(np.isfinite(values))
        if bad:
            raise UserError(f"the field is NaN or infinite at {bad:,} of {count:,} points: it has no surface")
        return values


class Level:
    """One level of the grid: every `stride`-th node of the finest one.

    Node i lies at -1 + 2·min(i·stride, resolution)/resolution along each axis: the last cell is a smaller one where
    the stride does not divide the resolution. A cell has the index of its low node.

    Attributes:
        cells: along each axis.
        values: [rows, 8, 8, 8], float32, field minus level, NaN where it was not evaluated. Row 0 stands for all
            bricks that are not there.
        active: [rows, 8, 8, 8], whether the cell's corners are needed.

    Args:
        resolution: cells of the finest level along each axis.
        stride: a power of two.
        parent: the level of twice the stride, whose values are taken over.
    """

    def __init__(self, resolution: int, stride: int, parent: "Level | None" = None) -> None:
        self.resolution, self.stride, self.parent = resolution, stride, parent
        self.cells = -(-resolution // stride)
        side = self.cells // BRICK + 3  # a margin of one brick on either side: a neighbour is always in the table
        self._table = np.zeros((side, side, side), np.int32)
        self._bricks = np.zeros((1, 3), np.int32)  # by row, margin included
        self.values = np.full((1, BRICK, BRICK, BRICK), np.nan, np.float32)
        self.active = np.zeros((1, BRICK, BRICK, BRICK), bool)
        self._rows, self._asked = 1, 0

    def chunks(self, size: int = 512) -> Iterator[NDArray[np.int64]]:
        """All rows, a few at a time so that what is computed from them stays in the cache."""
        for start in range(1, self._rows, size):
            yield np.arange(start, min(start + size, self._rows))

    def slots(self, index: NDArray[np.integer]) -> NDArray[np.int64]:
        """Places of nodes [N, 3] in the flat `values` or `active`; below 512 where their brick is not there."""
        x, y, z = index.T
        rows = self._table[(x >> 3) + 1, (y >> 3) + 1, (z >> 3) + 1].astype(np.int64)
        return rows * NODES + ((x & 7) << 6 | (y & 7) << 3 | z & 7)

    def index(self, slots: NDArray[np.integer]) -> NDArray[np.int32]:
        """Nodes [N, 3] at places in the flat arrays."""
        place = slots % NODES
        inside = np.stack([place >> 6, place >> 3 & 7, place & 7], axis=-1)
        return ((self._bricks[slots // NODES] - 1) * BRICK + inside).astype(np.int32)

    def points(self, index: NDArray[np.number]) -> NDArray[np.float64]:
        """Coordinates of nodes, or of places between them, [N, 3]."""
        fine = np.minimum(index * np.float64(self.stride), self.resolution)
        return fine * (2 / self.resolution) - 1

    def halo(self, array: NDArray, rows: NDArray[np.integer]) -> NDArray:
        """Bricks of `values` or `active` and the nodes around them, 1 below and 2 above: [len(rows), 11, 11, 11]."""
        out = np.empty((len(rows), 11, 11, 11), array.dtype)
        at = self._bricks[rows]
        for step in product((-1, 0, 1), repeat=3):
            (tx, ty, tz), (fx, fy, fz) = zip(*(HALO[s] for s in step), strict=True)
            out[:, tx, ty, tz] = array[self._table[tuple((at + step).T)], fx, fy, fz]
        return out

    def activate(self, cells: NDArray[np.int32]) -> NDArray[np.int64]:
        """Mark cells [N, 3], make bricks for their corners, and give the rows where nodes may be missing now.

        Raises:
            UserError: too many cells.
        """
        self._asked += len(cells)
        if self._asked > MOST_CELLS:
            raise UserError(
                f"the surface crosses more than {MOST_CELLS:,} cells at resolution {self.resolution}, as noise does: "
                "choose a lower one"
            )
        for corner in CORNERS:
            self._make((cells + corner) // BRICK + 1)
        self.active.reshape(-1)[self.slots(cells)] = True
        touched = np.zeros(self._rows, bool)
        for corner in CORNERS:
            touched[self.slots(cells + corner) // NODES] = True
        return np.flatnonzero(touched)

    def evaluate(self, sample: Sampler, what: str, rows: NDArray[np.integer] | None = None) -> None:
        """Evaluate the corners of active cells that have no value yet, in all rows or in some."""
        chunks = self.chunks() if rows is None else [rows]
        found = []
        for some in chunks:
            active = self.halo(self.active, some)
            needed = np.zeros((len(some), BRICK, BRICK, BRICK), bool)
            for corner in CORNERS:
                needed |= active[window(-corner)]
            found.append(places(some, needed & np.isnan(self.values[some])))
        missing = np.concatenate(found) if found else np.zeros(0, np.int64)
        new = sample(what, len(missing), lambda part: self.points(self.index(missing[part])))
        self.values.reshape(-1)[missing] = new

    def _make(self, bricks: NDArray[np.integer]) -> None:
        """Add the bricks [N, 3] that are not there, with what the parent knows of them."""
        bricks = bricks[self._table[tuple(bricks.T)] == 0]
        if not len(bricks):
            return
        flat = np.unique(np.ravel_multi_index(tuple(bricks.T), self._table.shape))
        rows = np.arange(self._rows, self._rows + len(flat))
        self._rows += len(flat)
        if self._rows > len(self.values):
            self._grow(self._rows * 5 // 4)
        self._table.reshape(-1)[flat] = rows
        self._bricks[rows] = new = np.stack(np.unravel_index(flat, self._table.shape), axis=-1)
        if self.parent is not None:
            above, (x, y, z) = (new - 1) // 2 + 1, (new - 1).T % 2
            octants = self.parent.values.reshape(-1, 2, 4, 2, 4, 2, 4)
            known = octants[self.parent._table[tuple(above.T)], x, :, y, :, z, :]
            self.values[rows, ::2, ::2, ::2] = known

    def _grow(self, rows: int) -> None:
        more = rows - len(self.values)
        self._bricks = np.concatenate([self._bricks, np.zeros((more, 3), np.int32)])
        self.values = np.concatenate([self.values, np.full((more, *self.values.shape[1:]), np.nan, np.float32)])
        self.active = np.concatenate([self.active, np.zeros((more, *self.active.shape[1:]), bool)])


def window(offset: NDArray[np.integer]) -> tuple[slice, ...]:
    """The 8³ nodes of bricks with a halo that lie `offset` (-1 to 2 on each axis) from the bricks' own."""
    return (slice(None), *(slice(1 + o, 9 + o) for o in offset.tolist()))


def places(rows: NDArray[np.integer], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Places in the flat arrays of what a mask [len(rows), 8, 8, 8] picks from some rows."""
    brick, inside = np.divmod(np.flatnonzero(mask), NODES)
    return rows[brick] * NODES + inside
