import numpy as np
import pytest

from sinelr_lightning.geometry.grid import Level, Sampler
from sinelr_lightning.geometry.refinement import _hits, _worth, refine


def evaluated(field, resolution=96, stride=2):
    """A level that is evaluated whole, and which of its cells are worth a closer look, as cells [N, 3]."""
    level, sample = Level(resolution, stride), Sampler(field, 0.0, 10**6, None)
    every = np.stack(np.unravel_index(np.arange(level.cells**3), (level.cells,) * 3), axis=-1).astype(np.int32)
    level.activate(every)
    level.evaluate(sample, "test")
    rows = np.concatenate(list(level.chunks()))
    brick, *inside = np.nonzero(_worth(level, rows))
    return level, sample, level.index(rows[brick] * 512 + np.ravel_multi_index(tuple(inside), (8, 8, 8)))


def plane(normal, offset):
    return lambda p: p @ np.array(normal, np.float32) - np.float32(offset)


@pytest.mark.parametrize("normal", [(1, 0, 0), (0.3, -0.5, 0.8), (1, 1, 1)])
def test_a_linear_field_is_refined_where_it_crosses_alone(normal):
    field = plane(normal, 0.123)
    level, _, cells = evaluated(field)
    cells = cells[
        ((cells > 0) & (cells < 47)).all(axis=1)
    ]  # beside the cube's sides, slopes are not known everywhere
    corners = np.stack([field(level.points(cells + c).astype(np.float32)) for c in np.ndindex(2, 2, 2)])
    assert len(cells)
    assert ((corners > 0).any(axis=0) & (corners <= 0).any(axis=0)).all()


@pytest.mark.parametrize("slope", [1, 50, 1000])
@pytest.mark.parametrize("place", [0.2, 0.5, 0.7])
def test_the_slope_gives_away_a_plate_between_nodes(place, slope):
    """It lies in the cells of index 30 along y, whose corners are all outside, and is thinner than they."""
    width = 2 / 48
    middle = -1 + (30 + place) * width
    level, _, cells = evaluated(lambda p: slope * (width / 8 - np.abs(p[:, 1] - np.float32(middle))))
    assert not (level.values > 0).any()
    assert (cells[:, 1] == 30).sum() == 48 * 48
    assert set(cells[:, 1]) <= {29, 30, 31}


def test_a_random_point_gives_away_what_slopes_do_not():
    """A step: the field is -1 up to the plate, so nothing announces it."""

    def step(p):
        return np.where(np.abs(p[:, 1] - 0.27) < 0.01, 1, -1)

    level, sample, cells = evaluated(step, 192, 4)
    assert len(cells) == 0
    hits = _hits(level, sample) * (2 / 192) - 1
    assert sample.evaluations == 49**3 + 2 * 48**3
    assert len(hits) == pytest.approx(2 * 48**2 * 0.02 / (2 / 48), rel=0.1)
    np.testing.assert_array_equal(step(hits), 1)


@pytest.mark.parametrize("resolution", [192, 200])
def test_what_is_found_at_one_point_is_followed_whole(resolution):
    """A rod with few points in it, thinner than the cells of all levels but the finest, in a field of two values."""

    def step(p):
        return np.where((np.hypot(p[:, 0] - 0.09, p[:, 2] + 0.31) < 0.013) & (np.abs(p[:, 1]) < 0.8), 1, -1)

    refined = refine(Sampler(step, 0.0, 10**6, None), resolution)
    axis = np.arange(resolution + 1) * (2 / resolution) - 1
    everywhere = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1, dtype=np.float32).reshape(-1, 3)
    assert (refined.level.values > 0).sum() == (step(everywhere) > 0).sum()
    assert not refined.leaves_cube


def test_a_surface_through_a_side_is_seen_there():
    along = Sampler(lambda p: 0.2 - np.hypot(p[:, 0], p[:, 1] - 0.5), 0.0, 10**6, None)
    assert refine(along, 64).leaves_cube
    assert refine(along, 150).leaves_cube


def test_quantiles_are_of_the_field_itself():
    refined = refine(Sampler(lambda p: 10 + p[:, 2], 10.3, 10**6, None), 64)
    np.testing.assert_allclose(refined.quantiles, [9, 9.0, 10, 11.0, 11], atol=0.05)
    assert refined.quantiles[0] == pytest.approx(9, abs=1e-6)
