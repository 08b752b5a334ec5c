import logging
import threading

import numpy as np
import pytest
import trimesh

from sinelr_lightning.datamodules import samples
from sinelr_lightning.datamodules.samples import labelled_grid, sample
from sinelr_lightning.datamodules.shape import MeshShape


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    path = tmp_path_factory.mktemp("ball") / "ball.ply"
    trimesh.creation.icosphere(subdivisions=4, radius=5.0).export(path)
    return MeshShape(path, padding=0.2)  # radius 0.8 in the cube


def test_half_of_the_points_is_uniform_and_half_near_the_surface(ball):
    points, inside = sample(ball, 40_000, 0, None)
    assert points.dtype == np.float32 and points.shape == (40_000, 3) and np.abs(points).max() <= 1
    uniform, near = points[:20_000], np.linalg.norm(points[20_000:], axis=1) - 0.8
    assert np.abs(uniform.mean(0)).max() < 0.02 and uniform.var(0) == pytest.approx([1 / 3] * 3, rel=0.05)
    # Along the normal the two halves are normal with their spreads; the sphere's curvature adds spread²/radius.
    assert near[::2].std() == pytest.approx(0.05, rel=0.1) and near[1::2].std() == pytest.approx(0.01, rel=0.1)
    radius = np.linalg.norm(points, axis=1)
    sure = np.abs(radius - 0.8) > 0.002  # the icosphere's facets
    assert (inside == (radius < 0.8))[sure].all()


def test_an_odd_count_is_kept(ball):
    points, inside = sample(ball, 1001, 0, None)
    assert len(points) == len(inside) == 1001


def test_another_seed_gives_other_points_the_same_seed_the_same(ball):
    first, again, other = (sample(ball, 100, seed, None).points for seed in (0, 0, 1))
    assert (first == again).all() and not np.isin(first[:, 0], other[:, 0]).any()


def test_what_was_sampled_is_read_again(ball, tmp_path, monkeypatch):
    first = sample(ball, 1000, 3, tmp_path)
    monkeypatch.setattr(MeshShape, "contains", lambda *_: pytest.fail("sampled again"))
    again = sample(ball, 1000, 3, tmp_path)
    assert (first.points == again.points).all() and (first.inside == again.inside).all()


def test_other_parameters_are_sampled_anew(ball, tmp_path):
    sample(ball, 1000, 3, tmp_path)
    assert len(sample(ball, 1002, 3, tmp_path).points) == 1002
    assert len(list(tmp_path.rglob("*.npz"))) == 2


def test_a_damaged_cache_is_replaced_and_named(ball, tmp_path, caplog):
    first = sample(ball, 1000, 3, tmp_path)
    (path,) = tmp_path.rglob("*.npz")
    whole = path.read_bytes()
    for damaged in (whole[:500], b"", whole[:600] + bytes(200) + whole[800:]):
        path.write_bytes(damaged)
        with caplog.at_level(logging.WARNING):
            again = sample(ball, 1000, 3, tmp_path)
        assert (first.points == again.points).all() and path.name in caplog.text
        assert path.read_bytes() == whole
        caplog.clear()


def test_a_cache_that_cannot_be_written_is_no_obstacle(ball, tmp_path, caplog):
    (tmp_path / "occupancy").write_text("a file where the folder should be")
    assert len(sample(ball, 100, 0, tmp_path).points) == 100
    assert "samples are not kept" in caplog.text


def test_two_runs_at_once_read_whole_files(ball, tmp_path):
    results = []
    threads = [threading.Thread(target=lambda: results.append(sample(ball, 2000, 5, tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((r.points == results[0].points).all() for r in results) and len(results) == 4
    assert [p.suffix for p in (tmp_path / "occupancy").iterdir()] == [".npz"]


def test_the_cache_lives_where_the_user_wants(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert samples.cache_folder() == tmp_path / "sinelr"


def test_a_grid_is_labelled_at_the_centres_of_its_voxels(ball, tmp_path):
    inside = np.unpackbits(labelled_grid(ball, 16, tmp_path)).reshape(16, 16, 16).astype(bool)
    axis = (np.arange(16) + 0.5) / 8 - 1
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    assert (inside == (x**2 + y**2 + z**2 < 0.64)).all()
