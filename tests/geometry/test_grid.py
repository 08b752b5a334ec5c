import numpy as np
import pytest

from sinelr_lightning.errors import UserError
from sinelr_lightning.geometry.grid import CORNERS, Level, Sampler, places, window


def code(points):
    """A value that tells where it was taken."""
    return points @ np.array([1, 10, 100], np.float32)


def filled(resolution, stride, cells, parent=None):
    level, sample = Level(resolution, stride, parent), Sampler(code, 0.0, 1000, None)
    level.activate(np.asarray(cells, np.int32))
    level.evaluate(sample, "test")
    return level, sample


def test_only_the_corners_of_active_cells_are_evaluated_each_once():
    level, sample = filled(64, 1, [[7, 7, 7], [8, 7, 7]])
    assert sample.evaluations == 12 == np.isfinite(level.values).sum()
    level.evaluate(sample, "test")
    assert sample.evaluations == 12


def test_a_value_lies_at_its_node():
    cells = np.array([[7, 7, 7], [0, 63, 20]], np.int32)
    level, _ = filled(64, 1, cells)
    nodes = (cells[:, None] + CORNERS).reshape(-1, 3)
    slots = level.slots(nodes)
    np.testing.assert_array_equal(level.index(slots), nodes)
    np.testing.assert_allclose(level.values.reshape(-1)[slots], code(nodes / 32 - 1), rtol=1e-5)


@pytest.mark.parametrize(("resolution", "stride", "cells"), [(64, 1, 64), (70, 8, 9), (101, 4, 26)])
def test_the_outermost_nodes_lie_on_the_cubes_sides(resolution, stride, cells):
    level = Level(resolution, stride)
    assert level.cells == cells
    ends = level.points(np.array([[0, 1, cells]]))[0]
    np.testing.assert_allclose(ends, [-1, 2 * stride / resolution - 1, 1], atol=1e-15)


def test_a_finer_level_takes_over_what_its_parent_knows():
    parent, _ = filled(64, 2, [[3, 3, 3], [15, 0, 31]])
    halves = (2 * np.array([[3, 3, 3], [15, 0, 31]])[:, None] + CORNERS).reshape(-1, 3)
    child, sample = filled(64, 1, halves, parent)
    alone, everything = filled(64, 1, halves)
    assert everything.evaluations == 2 * 27
    assert sample.evaluations == 2 * (27 - 8)
    np.testing.assert_allclose(child.values, alone.values, rtol=1e-5)


def test_a_halo_shows_the_neighbouring_bricks():
    every = np.stack(np.meshgrid(*[np.arange(24)] * 3, indexing="ij"), axis=-1, dtype=np.int32).reshape(-1, 3)
    level, _ = filled(24, 1, every)
    row = level.slots(np.array([[8, 8, 8]])) // 512
    halo = level.halo(level.values, row)
    nodes = level.points(np.stack(np.meshgrid(*[np.arange(7, 18)] * 3, indexing="ij"), axis=-1).reshape(-1, 3))
    np.testing.assert_allclose(halo[0], code(nodes).reshape(11, 11, 11), rtol=1e-4)
    np.testing.assert_array_equal(halo[window(np.zeros(3, int))], level.values[row])
    edge = level.halo(level.values, level.slots(np.array([[0, 8, 23]])) // 512)[0]
    assert np.isnan(edge[0]).all()
    assert np.isnan(edge[:, :, 10]).all()
    assert np.isfinite(edge[1:, :, :10]).all()


def test_places_of_a_mask():
    rows = np.array([2, 5])
    mask = np.zeros((2, 8, 8, 8), bool)
    mask[1, 1, 2, 3] = True
    assert places(rows, mask).tolist() == [5 * 512 + 64 + 16 + 3]


def test_a_sampler_goes_in_batches_and_reports():
    sizes, told = [], []
    sample = Sampler(lambda p: sizes.append(len(p)) or p[:, 0] * 0 + 3, 1.0, 100, lambda *a: told.append(a))
    values = sample("counting", 250, lambda part: np.zeros((part.stop - part.start, 3)))
    assert sizes == [100, 100, 50]
    assert told == [("counting", 0.4), ("counting", 0.8), ("counting", 1.0)]
    assert (values == 2).all()
    assert sample.evaluations == 250


def test_values_that_are_not_finite_are_counted():
    sample = Sampler(lambda p: np.where(p[:, 0] > 0.5, np.nan, 1.0), 0.0, 4, None)
    with pytest.raises(UserError, match="NaN or infinite at 5 of 11 points"):
        sample("test", 11, lambda part: np.linspace(0, 1, 11)[part, None] * np.ones(3))


def test_a_surface_that_fills_the_cube_is_refused(monkeypatch):
    monkeypatch.setattr("sinelr_lightning.geometry.grid.MOST_CELLS", 3)
    with pytest.raises(UserError, match="more than 3 cells at resolution 64"):
        filled(64, 1, [[7, 7, 7]] * 4)
