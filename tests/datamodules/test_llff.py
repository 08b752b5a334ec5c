import os
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sinelr_lightning.datamodules.llff import read_llff
from sinelr_lightning.errors import UserError

AHEAD = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]  # columns right, up, backward
TURNED = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]  # looks along -x


def row(rotation, position, height=40, width=80, focal=60, near=4, far=40):
    right, up, backward = np.array(rotation, dtype=float).T
    size = np.array([height, width, focal])
    return [*np.stack([-up, right, backward, position, size], axis=1).ravel(), near, far]


def write(root, rows, width=8, height=4, folder="images", count=None):
    (root / folder).mkdir(parents=True, exist_ok=True)
    np.save(root / "poses_bounds.npy", np.array(rows, dtype=np.float64))
    for index in range(len(rows) if count is None else count):
        Image.new("RGB", (width, height), (index, 0, 0)).save(root / folder / f"v{index}.png")
    return root


def three(root, **options):
    rows = [row(AHEAD, [0, 1, 2]), row(AHEAD, [4, 1, 2], near=5, far=30), row(AHEAD, [8, 1, 2], near=6, far=20)]
    return write(root, rows, **options)


def test_the_worked_example(tmp_path):
    scene = read_llff(three(tmp_path))
    cameras = scene.cameras
    expected = torch.zeros(3, 3, 4)
    expected[:, :, :3] = torch.eye(3)
    expected[:, 0, 3] = torch.tensor([-4 / 3, 0, 4 / 3])
    torch.testing.assert_close(cameras.cam_to_world, expected)
    assert cameras.cam_to_world.dtype == cameras.intrinsics.dtype == torch.float32
    assert cameras.near == pytest.approx(1.2)
    assert cameras.far == pytest.approx(40 / 3)
    assert cameras.intrinsics.tolist() == [[6, 6, 4, 2]] * 3  # the file says 80 × 40 pixels, focal 60
    assert (cameras.height, cameras.width) == (4, 8)
    assert cameras.forward_facing
    assert cameras.distortion is None
    assert scene.names == ["v0.png", "v1.png", "v2.png"]
    assert (scene.train, scene.val, scene.test) == ([1, 2], [0], [0])
    assert scene.images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert scene.white_background is False
    assert scene.protocol == {"format": "llff", "factor": 1, "hold": 8, "bd_factor": 0.75}


def test_bd_factor_scales_positions_and_depths(tmp_path):
    cameras = read_llff(three(tmp_path), bd_factor=0.5).cameras
    assert cameras.cam_to_world[:, 0, 3].tolist() == [-2, 0, 2]
    assert cameras.near == pytest.approx(1.8)
    assert cameras.far == pytest.approx(20)


def test_cameras_turned_by_90_degrees(tmp_path):
    """Both look along -x, so the world's -z is their right: 4 in z becomes 4/3 in x."""
    write(tmp_path, [row(TURNED, [5, 0, 0]), row(TURNED, [5, 0, -4])])
    poses = read_llff(tmp_path).cameras.cam_to_world
    torch.testing.assert_close(poses[:, :, :3], torch.eye(3).expand(2, 3, 3))
    torch.testing.assert_close(poses[:, :, 3], torch.tensor([[-2 / 3, 0, 0], [2 / 3, 0, 0]]))


def test_one_camera_ahead_and_one_turned(tmp_path):
    """Average axes: x = (1, 0, -1)/√2, y, z = (1, 0, 1)/√2; the first looks 45° to the right of the middle."""
    write(tmp_path, [row(AHEAD, [0, 0, 0]), row(TURNED, [0, 0, 0])])
    h = 1 / sqrt(2)
    expected = torch.tensor(
        [[[h, 0, -h, 0], [0, 1, 0, 0], [h, 0, h, 0]], [[h, 0, h, 0], [0, 1, 0, 0], [-h, 0, h, 0]]]
    )
    torch.testing.assert_close(read_llff(tmp_path).cameras.cam_to_world, expected)


def test_hold_out(tmp_path):
    write(tmp_path, [row(AHEAD, [i, 0, 0]) for i in range(7)])
    scene = read_llff(tmp_path, hold=3)
    assert (scene.train, scene.val, scene.test) == ([1, 2, 4, 5], [0, 3, 6], [0, 3, 6])


def test_factor_makes_the_folder_and_scales_the_focal_length(tmp_path):
    three(tmp_path, width=80, height=40)
    scene = read_llff(tmp_path, factor=4)
    assert scene.images.shape == (3, 10, 20, 3)
    assert scene.cameras.intrinsics.tolist() == [[15, 15, 10, 5]] * 3
    assert len(list((tmp_path / "images_4").iterdir())) == 3
    assert scene.protocol["factor"] == 4


def test_images_8_alone(tmp_path):
    three(tmp_path, width=10, height=5, folder="images_8")
    assert read_llff(tmp_path, factor=8).cameras.intrinsics.tolist() == [[7.5, 7.5, 5, 2.5]] * 3
    with pytest.raises(UserError, match="there is images_8: set factor to match"):
        read_llff(tmp_path)


def test_missing_folder_and_missing_file(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        read_llff(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"poses_bounds\.npy: no such file"):
        read_llff(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 60, -40])
def test_truncated_poses(tmp_path, kept):
    path = three(tmp_path) / "poses_bounds.npy"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"poses_bounds\.npy: is truncated or is no NumPy array file"):
        read_llff(tmp_path)


def test_pickled_and_zipped_arrays_are_refused(tmp_path):
    path = three(tmp_path) / "poses_bounds.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="is no NumPy array file"):
        read_llff(tmp_path)
    with path.open("wb") as file:
        np.savez(file, a=np.zeros((3, 17)))
    with pytest.raises(UserError, match=r"shape no single array; \[N, 17\]"):
        read_llff(tmp_path)


def test_wrong_shape_and_type(tmp_path):
    path = three(tmp_path) / "poses_bounds.npy"
    np.save(path, np.zeros((3, 15)))
    with pytest.raises(UserError, match=r"has shape \[3, 15\]; \[N, 17\]"):
        read_llff(tmp_path)
    np.save(path, np.zeros((3, 17), dtype=np.complex128))
    with pytest.raises(UserError, match="holds complex128"):
        read_llff(tmp_path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (3, np.nan, "view 1 has a number that is not finite"),
        (16, np.inf, "view 1 has a number that is not finite"),
        (14, 0, "view 1 has a height, width or focal length"),
        (15, -1, "view 1 has bounds -1 and 30"),
        (15, 31, "view 1 has bounds 31 and 30"),
    ],
)
def test_bad_numbers(tmp_path, column, value, message):
    path = three(tmp_path) / "poses_bounds.npy"
    table = np.load(path)
    table[1, column] = value
    np.save(path, table)
    with pytest.raises(UserError, match=message):
        read_llff(tmp_path)


def test_counts_that_differ_name_both_before_anything_is_made(tmp_path):
    three(tmp_path, count=2)
    with pytest.raises(UserError, match=r"holds 3 poses, but .*images holds 2 images"):
        read_llff(tmp_path, factor=2)
    assert not (tmp_path / "images_2").exists()


def test_bad_images_are_named(tmp_path):
    three(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "images/v1.png")
    with pytest.raises(UserError, match=r"v1\.png: 4 × 4 pixels, but v0\.png has 8 × 4"):
        read_llff(tmp_path)
    (tmp_path / "images/v1.png").write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"v1\.png: cannot be read"):
        read_llff(tmp_path)


def test_images_of_another_aspect_ratio(tmp_path):
    three(tmp_path, width=4, height=4)
    with pytest.raises(
        UserError, match=r"poses_bounds\.npy: is for images of 80 × 40 pixels, but the images have 4 × 4"
    ):
        read_llff(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"hold": 1}, "hold: 1"), ({"factor": 0}, "factor: 0"), ({"bd_factor": 0}, "bd_factor: 0")],
)
def test_bad_arguments(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        read_llff(three(tmp_path), **options)


def test_one_view_is_not_enough(tmp_path):
    with pytest.raises(UserError, match="number of views: 1"):
        read_llff(write(tmp_path, [row(AHEAD, [0, 0, 0])]))


def test_fern():
    if "SINELR_FERN" not in os.environ:
        pytest.skip("SINELR_FERN does not name the folder of LLFF's fern scene")
    scene = read_llff(Path(os.environ["SINELR_FERN"]), factor=8)
    cameras = scene.cameras
    assert scene.images.shape == (20, 378, 504, 3)
    assert len(scene.train) == 17
    assert scene.test == [0, 8, 16]
    assert cameras.near == pytest.approx(1.2)
    assert 5 < cameras.far < 15
    assert cameras.intrinsics[0].tolist() == pytest.approx([407.566, 407.566, 252, 189], abs=1e-3)
    torch.testing.assert_close(cameras.cam_to_world[:, :, 3].mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        cameras.cam_to_world[:, :, :3].transpose(1, 2) @ cameras.cam_to_world[:, :, :3], torch.eye(3).expand(20, 3, 3)
    )
