import logging
import struct
from math import sqrt

import numpy as np
import pytest
import torch
from PIL import Image

from sinelr_lightning.datamodules.colmap import read_colmap
from sinelr_lightning.datamodules.colmap_model import ColmapImage, read_model
from sinelr_lightning.errors import UserError

NUMBERS = {"SIMPLE_PINHOLE": 0, "PINHOLE": 1, "SIMPLE_RADIAL": 2, "RADIAL": 3, "OPENCV": 4, "OPENCV_FISHEYE": 5}
H = 1 / sqrt(2)
# A row of cameras that look along the world's +z (the identity, in COLMAP's axes) from x = 0, 1 and 2.
ROW = {"a.png": ((1, 0, 0, 0), (0, 0, 5)), "b.png": ((1, 0, 0, 0), (-1, 0, 5)), "c.png": ((1, 0, 0, 0), (-2, 0, 5))}
# Around the world's y axis (which points down), all looking at the origin from distance 4. To turn by 90° about y,
# R = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]], is the quaternion (√½, 0, √½, 0).
RING = {
    "a.png": ((1, 0, 0, 0), (0, 0, 4)),
    "b.png": ((H, 0, H, 0), (0, 0, 4)),
    "c.png": ((0, 0, 1, 0), (0, 0, 4)),
    "d.png": ((H, 0, -H, 0), (0, 0, 4)),
}
CAMERAS = {1: ("PINHOLE", 8, 4, (10.5, 11.25, 4.5, 2.0))}
POINTS = {7: (0.0, 0.0, -1.0), 9: (0.1, 1 / 3, 11.0)}


def write_text(folder, cameras, images, points):
    lines = ["# Camera list"] + [f"{k} {m} {w} {h} {' '.join(map(repr, p))}" for k, (m, w, h, p) in cameras.items()]
    (folder / "cameras.txt").write_text("\n".join(lines) + "\n")
    lines = ["# Image list", "# two lines an image"]
    for key, (name, (q, t)) in enumerate(images.items(), start=1):
        lines.append(f"{key} {' '.join(map(repr, (*q, *t)))} 1 {name}")
        lines.append(" ".join(f"1.5 2.5 {point}" for point in (*points, -1)) if points else "")
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    lines = ["# 3D points"] + [f"{k} {' '.join(map(repr, xyz))} 1 2 3 0.5 1 0 2 0" for k, xyz in points.items()]
    (folder / "points3D.txt").write_text("\n".join(lines) + "\n")


def write_binary(folder, cameras, images, points):
    data = struct.pack("<Q", len(cameras))
    for key, (model, width, height, parameters) in cameras.items():
        data += struct.pack(f"<iiQQ{len(parameters)}d", key, NUMBERS.get(model, 99), width, height, *parameters)
    (folder / "cameras.bin").write_bytes(data)
    data = struct.pack("<Q", len(images))
    for key, (name, (q, t)) in enumerate(images.items(), start=1):
        data += struct.pack("<i7di", key, *q, *t, 1) + name.encode() + b"\0"
        features = [(1.5, 2.5, point) for point in (*points, -1)] if points else []
        data += struct.pack("<Q", len(features)) + b"".join(struct.pack("<ddq", *feature) for feature in features)
    (folder / "images.bin").write_bytes(data)
    data = struct.pack("<Q", len(points))
    for key, xyz in points.items():
        data += struct.pack("<Q3d3BdQ4i", key, *xyz, 1, 2, 3, 0.5, 2, 1, 0, 2, 0)
    (folder / "points3D.bin").write_bytes(data)


def write(root, images=ROW, points=POINTS, cameras=CAMERAS, writer=write_binary, folder="sparse/0", size=(8, 4)):
    (root / folder).mkdir(parents=True)
    writer(root / folder, cameras, images, points)
    for index, name in enumerate(images):
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (index, 0, 0)).save(path)
    return root


def test_text_and_binary_are_read_alike(tmp_path):
    images = {
        f"{i} of 3.png": (tuple(q), tuple(t))
        for i, (q, t) in enumerate(np.random.default_rng(0).normal(size=(3, 2, 4)).tolist())
    }
    images = {name: (q, t[:3]) for name, (q, t) in images.items()}
    for name, writer in (("text", write_text), ("binary", write_binary)):
        (tmp_path / name).mkdir()
        writer(tmp_path / name, CAMERAS, images, POINTS)
    text, binary = read_model(tmp_path / "text"), read_model(tmp_path / "binary")
    assert text.cameras == binary.cameras
    assert text.cameras[1].parameters == (10.5, 11.25, 4.5, 2.0)
    assert text.points == binary.points == POINTS
    for one, other, (name, pose) in zip(text.images, binary.images, images.items(), strict=True):
        assert one.name == other.name == name
        assert (one.quaternion, one.translation) == (other.quaternion, other.translation) == pose
        assert one.points.tolist() == other.points.tolist() == [7, 9]


@pytest.mark.parametrize(
    ("quaternion", "rotation"),
    [
        ((H, H, 0, 0), [[1, 0, 0], [0, 0, -1], [0, 1, 0]]),  # 90° about x: y → z
        ((H, 0, H, 0), [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]),  # 90° about y: z → x
        ((H, 0, 0, H), [[0, -1, 0], [1, 0, 0], [0, 0, 1]]),  # 90° about z: x → y
        ((2, 2, 2, 2), [[0, 0, 1], [1, 0, 0], [0, 1, 0]]),  # 120° about the diagonal, not normalised: x → y → z → x
    ],
)
def test_rotation_of_a_quaternion(quaternion, rotation):
    image = ColmapImage("a.png", 1, quaternion, (1.0, 2.0, 3.0), np.empty(0))
    expected = np.column_stack([np.array(rotation, dtype=float), [1, 2, 3]])
    np.testing.assert_allclose(image.world_to_camera(), expected, atol=1e-12)


def test_text_and_binary_give_the_same_scene(tmp_path):
    text, binary = (
        read_colmap(write(tmp_path / writer.__name__, RING, writer=writer)) for writer in (write_text, write_binary)
    )
    for key, value in text.cameras.to_dict().items():
        other = binary.cameras.to_dict()[key]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
    assert torch.equal(text.images, binary.images)


def test_cameras_in_a_row(tmp_path):
    """Depths 4 and 16 in each view, so s = 1/3 but for the percentiles: 4 + 0.001·12 and 16 - 0.001·12."""
    scene = read_colmap(write(tmp_path))
    cameras, s = scene.cameras, 1 / (0.75 * 4.012)
    # All look alike, so the average pose is theirs: +x of the world stays right, and its +y, down, becomes -y.
    expected = torch.zeros(3, 3, 4)
    expected[:, :, :3] = torch.eye(3)
    expected[:, 0, 3] = torch.tensor([-s, 0, s])
    torch.testing.assert_close(cameras.cam_to_world, expected)
    assert cameras.near == pytest.approx(1.2)
    assert cameras.far == pytest.approx(15.988 * s)
    assert cameras.forward_facing
    assert cameras.intrinsics.tolist() == [[10.5, 11.25, 4.5, 2.0]] * 3
    assert cameras.distortion is None
    assert (scene.train, scene.val, scene.test) == ([1, 2], [0], [0])
    assert scene.names == ["a.png", "b.png", "c.png"]
    assert scene.protocol == {"format": "colmap", "factor": 1, "hold": 8, "scale": pytest.approx(s)}


def test_cameras_around_a_subject(tmp_path):
    """Camera centres are -Rᵀt: (0, 0, -4), (4, 0, 0), (0, 0, 4), (-4, 0, 0); up is -y and becomes z.

    The smallest rotation from -y to z turns by 90° about x: (x, y, z) → (x, z, -y).
    """
    scene = read_colmap(write(tmp_path, RING, {7: (0.0, 1.0, 0.0)}), hold=2)
    cameras = scene.cameras
    assert not cameras.forward_facing
    torch.testing.assert_close(
        cameras.cam_to_world[:, :, 3], torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 1, 0], [-1, 0, 0]])
    )
    # The first looks along +z with right +x and up -y: right (1, 0, 0), up (0, 0, 1), backward -z → (0, -1, 0).
    torch.testing.assert_close(cameras.cam_to_world[0, :, :3], torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]))
    # The second looks along -x: right is forward × up = (-1, 0, 0) × (0, -1, 0) = (0, 0, 1) → (0, 1, 0).
    torch.testing.assert_close(cameras.cam_to_world[1, :, :3], torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]))
    assert cameras.near == pytest.approx(0.9)  # the point is 4 away from each, and 4 becomes 1
    assert cameras.far == pytest.approx(1)
    assert scene.protocol["scale"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("model", "parameters", "intrinsics", "distortion"),
    [
        ("SIMPLE_PINHOLE", (10, 4, 2), [10, 10, 4, 2], None),
        ("PINHOLE", (10, 11, 4, 2), [10, 11, 4, 2], None),
        ("SIMPLE_RADIAL", (10, 4, 2, 0.5), [10, 10, 4, 2], [0.5, 0, 0, 0]),
        ("RADIAL", (10, 4, 2, 0.5, 0.25), [10, 10, 4, 2], [0.5, 0.25, 0, 0]),
        ("OPENCV", (10, 11, 4, 2, 0.5, 0.25, 1, 2), [10, 11, 4, 2], [0.5, 0.25, 1, 2]),
    ],
)
@pytest.mark.parametrize("writer", [write_text, write_binary])
def test_camera_models(tmp_path, model, parameters, intrinsics, distortion, writer):
    cameras = read_colmap(write(tmp_path, cameras={1: (model, 8, 4, parameters)}, writer=writer)).cameras
    assert cameras.intrinsics[0].tolist() == intrinsics
    assert (None if cameras.distortion is None else cameras.distortion[0].tolist()) == distortion


@pytest.mark.parametrize("writer", [write_text, write_binary])
def test_other_camera_models_are_refused_by_name(tmp_path, writer):
    write(tmp_path, cameras={1: ("OPENCV_FISHEYE", 8, 4, (10,) * 8)}, writer=writer)
    with pytest.raises(UserError, match="camera model OPENCV_FISHEYE is not supported; SIMPLE_PINHOLE, PINHOLE"):
        read_colmap(tmp_path)


def test_an_unknown_model_number(tmp_path):
    write(tmp_path, cameras={1: ("NEW", 8, 4, (10,) * 8)})
    with pytest.raises(UserError, match="camera model number 99 is not supported"):
        read_colmap(tmp_path)


def test_views_are_sorted_and_the_unregistered_listed(tmp_path, caplog):
    write(tmp_path, dict(reversed(ROW.items())))
    Image.new("RGB", (8, 4)).save(tmp_path / "images/aa.png")
    with caplog.at_level(logging.WARNING):
        scene = read_colmap(tmp_path)
    assert scene.names == ["a.png", "b.png", "c.png"]
    assert scene.images[:, 0, 0, 0].tolist() == [2, 1, 0]
    assert "1 images" in caplog.text
    assert caplog.text.rstrip().endswith("left out: aa.png")


def test_images_in_subfolders_and_with_spaces(tmp_path):
    images = {f"left eye/{name}": pose for name, pose in ROW.items()}
    assert read_colmap(write(tmp_path, images, writer=write_text)).names[0] == "left eye/a.png"
    assert read_colmap(tmp_path, factor=2).images.shape == (3, 2, 4, 3)


def test_factor_scales_the_intrinsics(tmp_path):
    scene = read_colmap(write(tmp_path), factor=2)
    assert scene.images.shape == (3, 2, 4, 3)
    assert scene.cameras.intrinsics[0].tolist() == [5.25, 5.625, 2.25, 1]


def test_smaller_images_under_other_names_are_matched_by_their_order(tmp_path):
    write(tmp_path)
    (tmp_path / "images_2").mkdir()
    for index in range(3):
        Image.new("RGB", (4, 2), (100 + index, 0, 0)).save(tmp_path / f"images_2/image{index:03d}.png")
    assert read_colmap(tmp_path, factor=2).images[:, 0, 0, 0].tolist() == [100, 101, 102]


def test_smaller_images_alone_are_matched_by_name(tmp_path):
    write(tmp_path, {name.replace("png", "jpg"): pose for name, pose in ROW.items()})
    (tmp_path / "images_2").mkdir()
    for index, name in enumerate("abc"):
        Image.new("RGB", (4, 2), (100 + index, 0, 0)).save(tmp_path / f"images_2/{name}.png")
        (tmp_path / f"images/{name}.jpg").unlink()
    (tmp_path / "images").rmdir()
    assert read_colmap(tmp_path, factor=2).images[:, 0, 0, 0].tolist() == [100, 101, 102]


def test_a_registered_image_that_is_missing(tmp_path):
    write(tmp_path)
    (tmp_path / "images/b.png").unlink()
    with pytest.raises(UserError, match=r"b\.png: registered by COLMAP, but not among the images"):
        read_colmap(tmp_path)


def test_no_points(tmp_path):
    for writer in (write_text, write_binary):
        with pytest.raises(UserError, match="no photograph sees any 3D point"):
            read_colmap(write(tmp_path / writer.__name__, points={}, writer=writer))


def test_points_behind_a_camera_do_not_count(tmp_path):
    cameras = read_colmap(write(tmp_path, points={**POINTS, 11: (0.0, 0.0, -50.0)})).cameras
    assert cameras.near == pytest.approx(1.2)
    assert cameras.far == pytest.approx(15.988 / (0.75 * 4.012))


def test_sparse_without_a_numbered_folder(tmp_path):
    assert len(read_colmap(write(tmp_path, folder="sparse")).names) == 3


def test_missing_folders_and_files(tmp_path):
    with pytest.raises(UserError, match="sparse/0/ or sparse/"):
        read_colmap(tmp_path)
    write(tmp_path)
    (tmp_path / "sparse/0/points3D.bin").unlink()
    with pytest.raises(UserError, match="needs cameras, images and points3D"):
        read_colmap(tmp_path)


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_truncated_binary_files_are_named(tmp_path, name):
    path = write(tmp_path) / f"sparse/0/{name}.bin"
    whole = path.read_bytes()
    for kept in (0, 5, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(UserError, match=rf"{name}\.bin: is truncated or is no COLMAP file"):
            read_colmap(tmp_path)


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
@pytest.mark.parametrize("garbage", [b"\xff" * 300, b"1 PINHOLE\nwhat is this\n"])
def test_garbage_is_named(tmp_path, name, garbage):
    for suffix, writer in (("bin", write_binary), ("txt", write_text)):
        path = write(tmp_path / suffix, writer=writer) / f"sparse/0/{name}.{suffix}"
        path.write_bytes(garbage)
        with pytest.raises(UserError, match=rf"{name}\.{suffix}: "):
            read_colmap(tmp_path / suffix)


def test_an_image_without_its_camera(tmp_path):
    with pytest.raises(UserError, match=r"images\.bin: a\.png has camera 1, which cameras\.bin lacks"):
        read_colmap(write(tmp_path, cameras={2: CAMERAS[1]}))


def test_a_pose_that_is_not_finite(tmp_path):
    with pytest.raises(UserError, match=r"images\.bin: .*the pose of a\.png"):
        read_colmap(write(tmp_path, {**ROW, "a.png": ((1, 0, 0, 0), (0, float("nan"), 5))}))


@pytest.mark.parametrize(("options", "message"), [({"hold": 1}, "hold: 1"), ({"factor": 0}, "factor: 0")])
def test_bad_arguments(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        read_colmap(write(tmp_path), **options)


def test_images_of_another_aspect_ratio(tmp_path):
    with pytest.raises(UserError, match="is for images of 8 × 4 pixels, but the images have 6 × 6"):
        read_colmap(write(tmp_path, size=(6, 6)))
