import math
from dataclasses import astuple

import numpy as np
import pytest
import trimesh

from sinelr_lightning.errors import UserError
from sinelr_lightning.geometry.metrics import SurfaceMetrics, compare_surfaces

EMPTY = trimesh.Trimesh(np.zeros((0, 3)), np.zeros((0, 3), int), process=False)


def sphere(radius, subdivisions=4):
    return trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)


def square(height=0.0, side=1.0, tilt=0.0):
    """A square of two triangles around the z axis, turned by `tilt` radians around x."""
    corners = side / 2 * np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], float)
    mesh = trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], process=False)
    mesh.apply_transform(trimesh.transformations.rotation_matrix(tilt, [1, 0, 0]))
    mesh.apply_translation([0, 0, height])
    return mesh


def test_concentric_spheres_are_their_radii_apart():
    result = compare_surfaces(sphere(0.52), sphere(0.5), samples=5000, threshold=0.03)
    assert result.chamfer == pytest.approx(0.02, rel=0.01)
    assert result.normal_consistency == pytest.approx(1, abs=1e-3)
    assert (result.precision, result.recall, result.f_score) == (1, 1, 1)


def test_both_directions_count_alike():
    """A square inside a larger one: all of it is on the true surface, only a quarter of the true surface is met."""
    result = compare_surfaces(square(side=1), square(side=2), samples=40_000, threshold=1e-6)
    # mean distance of a square of side 2 to the unit square in it: by quadrature
    x = (np.arange(2000) + 0.5) / 2000 * 2 - 1
    outside = np.maximum(np.abs(x) - 0.5, 0)
    far = np.hypot(outside[:, None], outside[None]).mean()
    assert result.precision == 1
    assert result.recall == pytest.approx(0.25, abs=0.01)
    assert result.f_score == pytest.approx(0.4, abs=0.015)
    assert result.chamfer == pytest.approx(far / 2, rel=0.02)
    mirrored = compare_surfaces(square(side=2), square(side=1), samples=40_000, threshold=1e-6)
    assert (mirrored.precision, mirrored.recall) == (result.recall, result.precision)
    assert mirrored.chamfer == pytest.approx(result.chamfer, rel=1e-12)


@pytest.mark.parametrize(("threshold", "score"), [(0.0999, 0.0), (0.1001, 1.0)])
def test_plane_shifted_by_a_known_step(threshold, score):
    result = compare_surfaces(square(height=0.1), square(), samples=1000, threshold=threshold)
    assert result.chamfer == pytest.approx(0.1, rel=1e-12)
    assert result.f_score == score


def test_normals_are_compared_by_their_cosine_without_sign():
    small = square(side=1e-3, tilt=math.radians(60))
    assert compare_surfaces(small, square(side=1e-3), samples=100).normal_consistency == pytest.approx(0.5)
    flipped = square()
    flipped.invert()
    assert compare_surfaces(flipped, square(), samples=100).normal_consistency == pytest.approx(1)


def test_a_surface_has_no_distance_to_itself_however_few_the_samples():
    mesh = sphere(1.0, subdivisions=2)
    result = compare_surfaces(mesh, mesh, samples=300)
    assert result.chamfer < 1e-7
    assert result.normal_consistency == pytest.approx(1, abs=1e-6)
    assert result.f_score == 1


def test_the_number_of_samples_hardly_matters():
    few, many = (compare_surfaces(sphere(0.5), square(), samples=n).chamfer for n in (3000, 30_000))
    assert few == pytest.approx(many, rel=0.02)


def test_one_seed_gives_one_result():
    a, b = sphere(0.5, 2), square(side=0.7)
    first = compare_surfaces(a, b, samples=500, seed=3)
    assert compare_surfaces(a, b, samples=500, seed=3) == first
    assert compare_surfaces(a, b, samples=500, seed=4).chamfer != first.chamfer


def test_no_surface_is_infinitely_far_and_a_true_one_is_required():
    nothing = SurfaceMetrics(float("inf"), 0.0, 0.0, 0.0, 0.0)
    flat = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [2, 0, 0]], [[0, 1, 2]], process=False)
    assert compare_surfaces(EMPTY, square(), samples=10) == nothing
    assert compare_surfaces(flat, square(), samples=10) == nothing
    with pytest.raises(UserError, match="true mesh has no surface"):
        compare_surfaces(square(), EMPTY, samples=10)


def test_triangles_without_area_are_left_out():
    mesh = square(height=0.1)
    faces = np.vstack([mesh.faces, [0, 0, 1], [2, 2, 2]])
    damaged = trimesh.Trimesh(mesh.vertices, faces, process=False)
    result = compare_surfaces(damaged, square(), samples=1000)
    assert np.isfinite(astuple(result)).all()
    assert result == compare_surfaces(mesh, square(), samples=1000)


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"threshold": 0.0}, {"threshold": float("nan")}])
def test_senseless_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        compare_surfaces(square(), square(), **wrong)
