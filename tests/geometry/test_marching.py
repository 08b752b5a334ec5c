import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import trimesh
from scipy.spatial import KDTree
from skimage.measure import marching_cubes

from sinelr_lightning.errors import UserError
from sinelr_lightning.geometry.marching import estimate_memory, extract_surface


def ball(points, radius=0.7, centre=(0.0, 0.0, 0.0)):
    return radius - np.linalg.norm(points - np.array(centre, np.float32), axis=1)


def torus(points):
    return 0.25 - np.hypot(np.hypot(points[:, 0], points[:, 1]) - 0.55, points[:, 2])


def box(points, low, high):
    middle, half = np.add(low, high, dtype=np.float32) / 2, np.subtract(high, low, dtype=np.float32) / 2
    beyond = np.abs(points - middle) - half
    return -(np.linalg.norm(np.maximum(beyond, 0), axis=1) + np.minimum(beyond.max(axis=1), 0))


def rod(points, start, end, radius):
    start, axis = np.array(start, np.float32), np.subtract(end, start, dtype=np.float32)
    along = np.clip((points - start) @ axis / (axis @ axis), 0, 1)
    return radius - np.linalg.norm(points - start - along[:, None] * axis, axis=1)


def ell(points):
    """Three arms of different lengths and places: no rotation or mirror maps it onto itself."""
    arms = [((-0.5, -0.5, -0.5), (0.7, -0.3, -0.3)), ((-0.5, -0.5, -0.5), (-0.3, 0.3, -0.3))]
    arms.append(((-0.5, -0.5, -0.5), (-0.3, -0.3, 0.0)))
    return np.max([box(points, *arm) for arm in arms], axis=0)


def waves(points):
    """A rough field with many parts, that leaves the cube."""
    p = points.astype(np.float64)
    return (
        np.sin(7.1 * p[:, 0] + 2 * p[:, 1]) + np.sin(6.3 * p[:, 1] - p[:, 2]) + np.sin(8.2 * p[:, 2] + p[:, 0]) - 0.8
    )


def extract_full(field, resolution, level=0.0):
    axis = np.arange(resolution + 1) * (2 / resolution) - 1
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    values = field(points.astype(np.float32)).astype(np.float32).reshape((resolution + 1,) * 3)
    vertices, faces, *_ = marching_cubes(values, level, gradient_direction="ascent")
    return trimesh.Trimesh(vertices * (2 / resolution) - 1.0, faces, process=False)


def assert_sound(mesh):
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert np.isfinite(mesh.vertices).all()
    assert mesh.area_faces.min() > 0
    assert len(np.unique(mesh.vertices, axis=0)) == len(mesh.vertices) == len(np.unique(mesh.faces))


def test_ball():
    surface = extract_surface(ball, 128)
    assert_sound(surface.mesh)
    assert surface.mesh.volume == pytest.approx(4 / 3 * np.pi * 0.7**3, rel=1e-3)
    assert surface.mesh.area == pytest.approx(4 * np.pi * 0.7**2, rel=1e-3)
    assert surface.mesh.euler_number == 2
    assert not surface.leaves_cube
    np.testing.assert_allclose(np.linalg.norm(surface.mesh.vertices, axis=1), 0.7, atol=1e-4)


def test_torus():
    mesh = extract_surface(torus, 130).mesh
    assert_sound(mesh)
    assert mesh.euler_number == 0
    assert mesh.volume == pytest.approx(2 * np.pi**2 * 0.55 * 0.25**2, rel=2e-3)
    assert mesh.area == pytest.approx(4 * np.pi**2 * 0.55 * 0.25, rel=2e-3)


def test_axes_are_not_swapped_and_normals_point_out():
    mesh = extract_surface(ell, 96).mesh
    assert_sound(mesh)
    np.testing.assert_allclose(mesh.bounds, [[-0.5, -0.5, -0.5], [0.7, 0.3, 0.0]], atol=0.5 * 2 / 96)
    assert mesh.volume == pytest.approx(0.04 * (1.2 + 0.6 + 0.3), rel=0.02)


@pytest.mark.parametrize("resolution", [16, 70, 96, 101])
@pytest.mark.parametrize(("field", "level"), [(torus, 0.0), (waves, 0.3)])
def test_it_is_the_surface_of_the_full_grid(field, level, resolution):
    mesh, full = extract_surface(field, resolution, level).mesh, extract_full(field, resolution, level)
    assert len(mesh.faces) == len(full.faces)
    assert len(mesh.vertices) == len(full.vertices)
    there, back = KDTree(mesh.vertices).query(full.vertices)[0], KDTree(full.vertices).query(mesh.vertices)[0]
    for distance in (there, back):
        assert distance.max() < 1.1e-3 * 2 / resolution  # a vertex at a node is held off
        assert np.mean(distance > 1e-6) < 0.01


@pytest.mark.parametrize("resolution", [256, 512])
def test_a_fraction_of_the_full_grid_is_evaluated(resolution):
    counted = []
    surface = extract_surface(lambda p: counted.append(len(p)) or ball(p), resolution, batch=10**6)
    assert surface.evaluations == sum(counted)
    assert surface.nodes == (resolution + 1) ** 3
    assert surface.evaluations <= surface.nodes / (resolution / 32)
    assert max(counted) <= 10**6


def test_it_is_the_same_each_time_whatever_the_batch():
    first, second = extract_surface(torus, 96).mesh, extract_surface(torus, 96, batch=777).mesh
    np.testing.assert_array_equal(first.vertices, second.vertices)
    np.testing.assert_array_equal(first.faces, second.faces)


def test_values_that_change_from_call_to_call_do_not_crack_it():
    random = np.random.default_rng(0)
    mesh = extract_surface(lambda p: torus(p) + 1e-3 * random.normal(size=len(p)), 128, batch=5000).mesh
    assert_sound(mesh)


@pytest.mark.parametrize("values", [(-1.0, 1.0), (-1.0, 0.0, 1.0), (-1e-9, 1e-9, 3e5)], ids=str)
def test_ties_and_extreme_values_do_not_crack_it(values):
    """Noise of few values has every ambiguous case, and values that equal the level."""
    random = np.random.default_rng(1)

    def field(points):
        inner = np.abs(points).max(axis=1) < 0.9
        return np.where(inner, random.choice(values, len(points)), -1.0)

    mesh = extract_surface(field, 40).mesh
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.area_faces.min() > 0
    assert mesh.volume > 0


def test_a_level_other_than_zero():
    mesh = extract_surface(lambda p: 5 + ball(p), 64, level=5.2).mesh
    np.testing.assert_allclose(np.linalg.norm(mesh.vertices, axis=1), 0.5, atol=1e-3)


def test_a_surface_that_leaves_the_cube_is_open_there_alone():
    surface = extract_surface(lambda p: ball(p, 0.5, (0.8, 0.0, 0.0)), 96)
    assert surface.leaves_cube
    mesh = surface.mesh
    once = trimesh.grouping.group_rows(mesh.edges_sorted, require_count=1)
    assert len(once)
    np.testing.assert_allclose(mesh.vertices[mesh.edges_sorted[once].ravel(), 0], 1)
    assert (mesh.face_normals * (mesh.triangles_center - [0.8, 0, 0])).sum(axis=1).min() > 0


def test_quantiles_are_those_of_the_field():
    surface = extract_surface(lambda p: p[:, 0] + 1, 100)
    assert surface.leaves_cube
    np.testing.assert_allclose(surface.quantiles, [0, 0.02, 1, 1.98, 2], atol=0.03)
    assert surface.quantiles[0] == 0


def test_progress_ends_each_phase_at_one():
    told = []
    extract_surface(ball, 128, batch=50_000, progress=lambda what, fraction: told.append((what, fraction)))
    phases = list(dict.fromkeys(what for what, _ in told))
    assert phases == ["coarse grid", "probing", "refining to 128 cells", "marching cubes"]
    assert all(0 < fraction <= 1 for _, fraction in told)
    assert all(last == 1 for (what, last), (after, _) in pairwise([*told, ("", 0)]) if what != after)


@pytest.mark.parametrize(
    ("field", "level", "message"),
    [
        (lambda p: ball(p) - 5, 0.0, r"nowhere above the level 0, so nothing is inside: it lies in \[-6.032, -4.3\]"),
        (lambda p: ball(p) + 5, 0.0, r"everywhere above the level 0, so the cube is full .* \[3.9.*, 5.7"),
        (ball, 0.9, r"nowhere above the level 0.9"),
        (ball, -3, r"everywhere above the level -3"),
        (lambda p: 0 * p[:, 0] + 2, 0.0, "the field is 2 everywhere"),
        (lambda p: np.where(p[:, 0] > 0, np.inf, ball(p)), 0.0, "the field is NaN or infinite at"),
    ],
)
def test_a_field_without_a_surface_is_named(field, level, message):
    with pytest.raises(UserError, match=message):
        extract_surface(field, 64, level)


def test_a_resolution_too_coarse_is_refused():
    with pytest.raises(UserError, match="resolution 8 is too coarse: it must be at least 16"):
        extract_surface(ball, 8)


def test_memory_is_estimated_from_above():
    tracemalloc.start()
    extract_surface(waves, 192, batch=10_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < estimate_memory(192) < 6 * peak
    assert 2e9 < estimate_memory(1024) < 3e9


def grazing(points):
    """A ball, and beside it a plate of thickness 0.01 and a rod of radius 0.006."""
    turned = points @ np.array([[0.88, -0.48, 0], [0.48, 0.88, 0], [0, 0, 1]], np.float32)
    plate = box(turned, (0.2, -0.5, -0.5), (0.21, 0.5, 0.5))
    stick = rod(points, (-0.7, 0.5, 0.4), (-0.2, 0.72, 0.61), 0.006)
    return np.max([ball(points, 0.3, (-0.4, -0.4, -0.4)), plate, stick], axis=0)


def joined(points):
    return np.maximum(grazing(points), rod(points, (-0.4, -0.4, -0.4), (0.35, -0.17, -0.3), 0.006))


STICK = np.pi * 0.006**2 * 0.585 + 4 / 3 * np.pi * 0.006**3


@pytest.mark.parametrize(
    ("field", "volumes"),
    [
        (lambda p: 50 * grazing(p), [STICK, 0.01, 4 / 3 * np.pi * 0.3**3]),
        (lambda p: np.tanh(200 * joined(p)), [STICK, 0.01 + 4 / 3 * np.pi * 0.3**3 + np.pi * 0.006**2 * 0.46]),
    ],
    ids=["apart, logits", "joined, saturated"],
)
def test_parts_thinner_than_a_coarse_cell_are_found_whole(field, volumes):
    mesh = extract_surface(field, 512).mesh
    assert_sound(mesh)
    found = sorted(part.volume for part in mesh.split())
    np.testing.assert_allclose(found, volumes, rtol=0.1)  # a rod of three cells is an inscribed polygon
    np.testing.assert_allclose(found[-1], volumes[-1], rtol=0.01)


def test_polishing_brings_vertices_onto_a_field_that_bends():
    def steep(points):  # logits of a network: flat away from the surface, not the same on both sides
        away = ball(points)
        return np.where(away > 0, 3 * np.tanh(40 * away), 20 * away) + 100 * away**3

    rough, fine = (extract_surface(steep, 40, polish=rounds) for rounds in (0, 4))
    errors = [np.abs(np.linalg.norm(s.mesh.vertices, axis=1) - 0.7) for s in (rough, fine)]
    assert errors[0].max() > 1e-2 and errors[1].max() < 1e-3
    assert (rough.mesh.faces == fine.mesh.faces).all()
    assert_sound(fine.mesh)
    assert fine.evaluations == rough.evaluations  # at the grid's nodes
