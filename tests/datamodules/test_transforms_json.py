import json
from math import cos, pi, sin, sqrt

import numpy as np
import pytest
import torch
from PIL import Image

from sinelr_lightning.datamodules.transforms_json import read_transforms
from sinelr_lightning.errors import UserError

AHEAD = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]  # columns right, up, backward
LENS = {"fl_x": 100, "fl_y": 90, "cx": 42, "cy": 19, "w": 80, "h": 40}


def matrix(rotation, position):
    return [*([*row, p] for row, p in zip(rotation, position, strict=True)), [0, 0, 0, 1]]


def on_a_ring(degrees, distance=2.0, height=0.0):
    """Looks at the z axis from `distance`, with z up: backward is outward, right is counter-clockwise."""
    c, s = cos(degrees * pi / 180), sin(degrees * pi / 180)
    return matrix([[-s, 0, c], [c, 0, s], [0, 1, 0]], [distance * c, distance * s, height])


def save(path, width=80, height=40, color=(200, 0, 0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA" if len(color) == 4 else "RGB", (width, height), color).save(path)


def blender(root, splits=("train", "val", "test"), angle=pi / 2, color=(255, 0, 0, 127)):
    for split, count in zip(("train", "val", "test"), (3, 1, 2), strict=True):
        if split not in splits:
            continue
        frames = []
        for index in range(count):
            save(root / split / f"r_{index}.png", 8, 8, color)
            frames.append({"file_path": f"./{split}/r_{index}", "transform_matrix": on_a_ring(40 * index, 4)})
        (root / f"transforms_{split}.json").write_text(json.dumps({"camera_angle_x": angle, "frames": frames}))
    return root


def nerfstudio(root, poses, frame=None, **meta):
    frames = []
    for index, pose in enumerate(poses):
        save(root / f"images/f{index}.png", color=(index, 0, 0))
        frames.append({"file_path": f"images/f{index}.png", "transform_matrix": pose, **(frame or {})})
    (root / "transforms.json").write_text(json.dumps({**LENS, **meta, "frames": frames}))
    return root


def ring(count=4):
    return [on_a_ring(360 * index / count) for index in range(count)]


def row_of_cameras():
    return [matrix(AHEAD, [x, 5, 0]) for x in (0, 1, 2)]


def test_blender(tmp_path):
    scene = read_transforms(blender(tmp_path))
    cameras = scene.cameras
    assert scene.names[2:5] == ["train/r_2.png", "val/r_0.png", "test/r_0.png"]
    assert (scene.train, scene.val, scene.test) == ([0, 1, 2], [3], [4, 5])
    assert cameras.intrinsics[0].tolist() == pytest.approx([4, 4, 4, 4])  # half of 8 pixels / tan 45°
    assert (cameras.near, cameras.far, cameras.forward_facing) == (2, 6, False)
    torch.testing.assert_close(cameras.cam_to_world[0], torch.tensor([[0.0, 0, 1, 4], [1, 0, 0, 0], [0, 1, 0, 0]]))
    assert scene.images[0, 0, 0].tolist() == [255, 128, 128]
    assert scene.white_background
    assert scene.protocol["format"] == "blender"
    assert scene.protocol["background"] == "white"


def test_blender_over_black_at_half_size_with_own_depths(tmp_path):
    scene = read_transforms(blender(tmp_path), factor=2, white_background=False, near=1, far=9)
    assert scene.images.shape == (6, 4, 4, 3)
    assert scene.cameras.intrinsics[0].tolist() == pytest.approx([2, 2, 2, 2])
    assert scene.images[0, 0, 0].tolist() == [127, 0, 0]
    assert not scene.white_background
    assert (scene.cameras.near, scene.cameras.far) == (1, 9)


def test_blender_without_test_views_uses_the_validation_views(tmp_path):
    scene = read_transforms(blender(tmp_path, ("train", "val")))
    assert scene.val == scene.test == [3]


def test_blender_without_held_out_views(tmp_path):
    with pytest.raises(UserError, match="no view is held out"):
        read_transforms(blender(tmp_path, ("train",)))


def test_cameras_around_a_subject(tmp_path):
    """A ring of radius 2 at height 0 around the z axis: half the size, nothing else changes."""
    scene = read_transforms(nerfstudio(tmp_path, ring()), hold=2)
    cameras = scene.cameras
    torch.testing.assert_close(
        cameras.cam_to_world[:, :, 3], torch.tensor([[1.0, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]])
    )
    torch.testing.assert_close(cameras.cam_to_world[1, :, :3], torch.tensor([[-1.0, 0, 0], [0, 0, 1], [0, 1, 0]]))
    assert (cameras.near, cameras.far, cameras.forward_facing) == (0.05, 4.0, False)
    assert scene.protocol["scale"] == pytest.approx(0.5)
    assert (scene.train, scene.val, scene.test) == ([1, 3], [0, 2], [0, 2])
    assert cameras.intrinsics.tolist() == [[100, 90, 42, 19]] * 4
    assert cameras.distortion is None
    assert not scene.white_background  # photographs without transparency


def test_depths_in_the_units_of_the_file(tmp_path):
    cameras = read_transforms(nerfstudio(tmp_path, ring()), near=0.5, far=10).cameras
    assert (cameras.near, cameras.far) == pytest.approx((0.25, 5))


def test_cameras_that_look_one_way(tmp_path, caplog):
    """The outermost stand 1 from the middle, so the nearest thing is taken to be 2.4 away."""
    cameras = read_transforms(nerfstudio(tmp_path, row_of_cameras())).cameras
    assert cameras.forward_facing
    torch.testing.assert_close(cameras.cam_to_world[:, :, 3], torch.tensor([[-0.5, 0, 0], [0, 0, 0], [0.5, 0, 0]]))
    assert (cameras.near, cameras.far) == (1.2, 12)
    assert "nearer than 2.4" in caplog.text


def test_a_known_near_depth_sets_the_scale_of_a_forward_facing_scene(tmp_path):
    cameras = read_transforms(nerfstudio(tmp_path, row_of_cameras()), near=6, far=30).cameras
    assert cameras.cam_to_world[:, 0, 3].tolist() == pytest.approx([-0.2, 0, 0.2])
    assert (cameras.near, cameras.far) == pytest.approx((1.2, 6))


def test_frames_are_sorted_by_name(tmp_path):
    nerfstudio(tmp_path, row_of_cameras())
    path = tmp_path / "transforms.json"
    meta = json.loads(path.read_text())
    meta["frames"].reverse()
    path.write_text(json.dumps(meta))
    scene = read_transforms(tmp_path)
    assert scene.names == ["images/f0.png", "images/f1.png", "images/f2.png"]
    assert scene.images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert scene.cameras.cam_to_world[:, 0, 3].tolist() == [-0.5, 0, 0.5]


def test_calibration_of_the_frame_beats_that_of_the_file(tmp_path):
    nerfstudio(tmp_path, ring(), frame={"fl_x": 50, "k1": 0.1, "p2": -0.02}, camera_model="OPENCV", k1=9)
    cameras = read_transforms(tmp_path).cameras
    assert cameras.intrinsics[0].tolist() == [50, 90, 42, 19]
    torch.testing.assert_close(cameras.distortion, torch.tensor([[0.1, 0, 0, -0.02]] * 4))


def test_a_field_of_view_in_place_of_a_focal_length(tmp_path):
    nerfstudio(tmp_path, ring(), camera_angle_x=pi / 3)
    path = tmp_path / "transforms.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in meta.items() if key not in LENS}))
    intrinsics = read_transforms(tmp_path).cameras.intrinsics
    assert intrinsics[0].tolist() == pytest.approx([40 * sqrt(3), 40 * sqrt(3), 40, 20])  # 40 / tan 30°


def test_factor_in_memory_and_from_a_folder(tmp_path):
    nerfstudio(tmp_path, ring())
    scene = read_transforms(tmp_path, factor=2)
    assert scene.images.shape == (4, 20, 40, 3)
    assert scene.images[3, 0, 0].tolist() == [3, 0, 0]
    assert scene.cameras.intrinsics[0].tolist() == [50, 45, 21, 9.5]
    assert not (tmp_path / "images_2").exists()
    for index in range(4):
        save(tmp_path / f"images_2/f{index}.png", 40, 20, (100 + index, 0, 0))
        (tmp_path / f"images/f{index}.png").unlink()  # the smaller ones are enough
    scene = read_transforms(tmp_path, factor=2)
    assert scene.images[3, 0, 0].tolist() == [103, 0, 0]
    assert scene.cameras.intrinsics[0].tolist() == [50, 45, 21, 9.5]


def test_the_split_of_the_file(tmp_path):
    nerfstudio(
        tmp_path, ring(5), train_filenames=["images/f3.png", "./images/f1.png"], test_filenames=["images/f0.png"]
    )
    scene = read_transforms(tmp_path)
    assert (scene.train, scene.val, scene.test) == ([3, 1], [0], [0])
    assert scene.protocol["hold"] is None


def test_a_list_of_training_views_holds_out_the_rest(tmp_path):
    nerfstudio(tmp_path, ring(), train_filenames=["images/f3.png", "images/f1.png"])
    scene = read_transforms(tmp_path)
    assert scene.val == scene.test == [0, 2]


def test_a_split_with_an_unknown_name_or_nothing_held_out(tmp_path):
    with pytest.raises(UserError, match=r"train_filenames names images/g\.png"):
        read_transforms(nerfstudio(tmp_path, ring(), train_filenames=["images/g.png"]))
    with pytest.raises(UserError, match="none held out"):
        read_transforms(nerfstudio(tmp_path, ring(2), train_filenames=["images/f0.png", "images/f1.png"]))


@pytest.mark.parametrize("model", ["OPENCV_FISHEYE", "EQUIRECTANGULAR", "THIN_PRISM_FISHEYE"])
def test_other_camera_models_are_refused_by_name(tmp_path, model):
    with pytest.raises(UserError, match=f"camera_model {model} is not supported"):
        read_transforms(nerfstudio(tmp_path, ring(), frame={"camera_model": model}))


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"is_fisheye": True}, "OPENCV_FISHEYE is not supported"),
        ({"k3": 0.01}, r"k3 = 0\.01 is not supported"),
        ({"k4": -0.01}, r"k4 = -0\.01 is not supported"),
        ({"fl_x": 0}, r"fl_x = 0\.0; a positive number"),
        ({"fl_x": "wide"}, "fl_x = 'wide'; a finite number"),
        ({"h": 80}, "is for images of 80 × 80 pixels, but the images have 80 × 40"),
    ],
)
def test_bad_calibration(tmp_path, meta, message):
    with pytest.raises(UserError, match=message):
        read_transforms(nerfstudio(tmp_path, ring(), **meta))


def test_zero_higher_distortion_is_accepted(tmp_path):
    assert read_transforms(nerfstudio(tmp_path, ring(), k3=0, k4=0.0)).cameras.distortion is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"frames": [', "cannot be read as JSON"),
        ("[]", 'has no "frames"'),
        ('{"frames": []}', 'has no "frames"'),
        ('{"frames": [{}]}', 'frame 0 has no "file_path"'),
        ('{"frames": [{"file_path": "images/f0.png"}]}', r"transform_matrix of images/f0\.png"),
        ('{"frames": [{"file_path": "a.png", "transform_matrix": [[1, 2], [3]]}]}', r"transform_matrix of a\.png"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    (tmp_path / "transforms.json").write_text(text)
    with pytest.raises(UserError, match=rf"transforms\.json: .*{message}"):
        read_transforms(tmp_path)


def test_numbers_that_are_not_finite(tmp_path):
    poses = ring()
    poses[2][0][3] = float("nan")
    with pytest.raises(UserError, match=r"transform_matrix of images/f2\.png"):
        read_transforms(nerfstudio(tmp_path, poses))


def test_a_missing_image_is_named(tmp_path):
    nerfstudio(tmp_path, ring())
    (tmp_path / "images/f2.png").unlink()
    with pytest.raises(UserError, match=r"f2\.png: cannot be read"):
        read_transforms(tmp_path)


@pytest.mark.parametrize("poses", [[matrix(AHEAD, [1, 2, 3])] * 3, [on_a_ring(a, 0) for a in (0, 90, 200)]])
def test_all_cameras_at_one_point(tmp_path, poses):
    with pytest.raises(UserError, match="one point"):
        read_transforms(nerfstudio(tmp_path, poses))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 0}, "factor: 0"),
        ({"hold": 1}, "hold: 1"),
        ({"near": -1}, "near -1"),
        ({"near": 5, "far": 4}, "near < far"),
    ],
)
def test_bad_arguments(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        read_transforms(nerfstudio(tmp_path, ring()), **options)


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match=r"neither transforms_train\.json nor transforms\.json"):
        read_transforms(tmp_path)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        read_transforms(tmp_path / "nowhere")


def test_float64_inside_float32_outside(tmp_path):
    cameras = read_transforms(nerfstudio(tmp_path, ring())).cameras
    assert {cameras.cam_to_world.dtype, cameras.intrinsics.dtype} == {torch.float32}
    assert np.allclose(np.linalg.det(cameras.cam_to_world[:, :, :3].numpy()), 1)
