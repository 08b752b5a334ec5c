"""The shipped scene is small, complete, in LLFF's convention, and what its script makes."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DATA = Path(__file__).parents[2] / "data"
IMAGES = sorted((DATA / "llff_demo" / "images").iterdir())


@pytest.fixture
def rows() -> np.ndarray:
    return np.load(DATA / "llff_demo" / "poses_bounds.npy")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(DATA))
    spec = importlib.util.spec_from_file_location("make_llff_demo", DATA / "make_llff_demo.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "make_llff_demo", module)
    spec.loader.exec_module(module)
    return module


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return -10 * np.log10(np.mean((a / 255.0 - b / 255.0) ** 2))


def small(index: int) -> np.ndarray:
    with Image.open(IMAGES[index]) as image:
        return np.asarray(image.resize((100, 75), Image.Resampling.BOX))


def test_folder_is_small_and_complete(rows):
    assert sum(f.stat().st_size for f in (DATA / "llff_demo").rglob("*") if f.is_file()) < 3_000_000
    assert rows.dtype == np.float64
    assert rows.shape == (20, 17) == (len(IMAGES), 17)
    for path, row in zip(IMAGES, rows, strict=True):
        with Image.open(path) as image:
            assert (image.height, image.width) == tuple(row[:15].reshape(3, 5)[:2, 4]) == (300, 400)


def test_poses_are_rotations_that_face_the_scene(rows):
    down, right, backward, position, _ = np.moveaxis(rows[:, :15].reshape(-1, 3, 5), 2, 0)
    axes = np.stack([right, -down, backward], 2)
    np.testing.assert_allclose(axes.swapaxes(1, 2) @ axes, np.broadcast_to(np.eye(3), (20, 3, 3)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(axes), 1, atol=1e-12)
    assert (backward[:, 2] > 0.9).all()
    assert (down[:, 1] < -0.9).all()
    near, far = rows[:, 15], rows[:, 16]
    assert (near > 0).all()
    assert (near < far).all()
    reach = np.linalg.norm(position[:, :2] - position[:, :2].mean(0), axis=1)
    assert reach.max() < 0.25 * near.min()
    assert reach[[0, 8, 16]].max() < 0.7 * reach.max()  # held-out views are inside the disc


@pytest.mark.parametrize("view", [0, 12])
def test_pose_of_the_file_renders_the_stored_image(script, rows, view):
    camera = script.Camera.from_llff(rows[view]).scaled(0.25)
    image, near, far = script.render(camera)
    assert psnr(image, small(view)) > 30
    assert near == pytest.approx(rows[view, 15], rel=0.02)
    assert far == pytest.approx(rows[view, 16], rel=0.02)
    np.testing.assert_allclose(camera.scaled(4).to_llff(*rows[view, 15:]), rows[view], atol=1e-12)


def test_wrong_pose_conventions_do_not(script, rows):
    """The check above has teeth: swapped or negated axes, or a neighbour's pose, are far below its threshold."""
    right_up_back = rows[0].copy()
    m = right_up_back[:15].reshape(3, 5)
    m[:, :3] = np.stack([m[:, 1], -m[:, 0], m[:, 2]], 1)
    for row in (right_up_back, rows[12]):
        image, _, _ = script.render(script.Camera.from_llff(row).scaled(0.25))
        assert psnr(image, small(0)) < 22
