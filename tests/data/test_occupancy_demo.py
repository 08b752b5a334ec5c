"""The shipped can is small, closed, hollow, the right way round, and what its script makes."""

import importlib.util
from pathlib import Path

import igl
import numpy as np
import pytest
import trimesh

DATA = Path(__file__).parents[2] / "data"
CAN = DATA / "watering_can.ply"


@pytest.fixture(scope="module")
def can():
    return trimesh.load(CAN, process=False)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_occupancy_demo", DATA / "make_occupancy_demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def inside(mesh, points):
    points = np.array(points, np.float64)
    faces = np.asarray(mesh.faces, np.int64)
    return igl.winding_number(np.asarray(mesh.vertices, np.float64), faces, points) > 0.5


def test_shipped_mesh_is_small_and_one_closed_oriented_surface(can):
    assert CAN.stat().st_size < 700_000
    assert 20_000 <= len(can.faces) <= 24_000
    assert can.is_watertight
    assert can.is_winding_consistent
    assert can.body_count == 1
    assert can.euler_number == -2  # two holes to put a finger through: below the handle, in the ring
    assert can.volume == pytest.approx(621_400, rel=1e-3)
    assert can.area == pytest.approx(143_830, rel=1e-3)
    np.testing.assert_allclose(can.extents, [294, 149, 199], atol=1)


def test_parts_are_where_the_script_says(can):
    parts = {
        "wall": (0, 54.5, 60),
        "floor": (0, 0, 4),
        "cover": (20, 0, 116),
        "handle": (-83, -10, 148),
        "spout": (142, 15, 117),
        "rose": (188, 30, 155),
        "ring": (-8, -77, 92),
    }
    holes = {
        "cavity": (0, 0, 60),
        "opening": (-20, 0, 118),
        "below the handle": (-40, -8, 150),
        "ring": (-8, -62, 92),
    }
    assert inside(can, list(parts.values())).tolist() == [True] * len(parts)
    assert not inside(can, list(holes.values())).any()
    one_sided = [parts[name] for name in ("cover", "handle", "spout", "rose", "ring")]
    for axis in range(2):  # no mirror image passes for the can
        mirror = np.where(np.arange(3) == axis, -1, 1)
        assert not inside(can, one_sided * mirror).all()


def test_script_makes_the_shipped_mesh(can, script):
    rough = script.build(spacing=3.5, faces=8000)
    assert rough.volume == pytest.approx(can.volume, rel=0.02)
    assert rough.area == pytest.approx(can.area, rel=0.02)
    np.testing.assert_allclose(rough.bounds, can.bounds, atol=1.5)


def test_shipped_vertices_lie_on_the_script_s_surface(can, script):
    distance = script.watering_can(np.asarray(can.vertices)[::7])
    assert np.abs(distance).mean() < 0.05
    assert np.abs(distance).max() < 1.0
