import numpy as np
import pytest
import trimesh

from sinelr_lightning.datamodules.shape import MeshShape, VolumeShape, read_shape
from sinelr_lightning.errors import UserError


@pytest.fixture
def box(tmp_path):
    """4 × 2 × 1 mm around (1000, −20, 3), asymmetric in the axes."""
    mesh = trimesh.creation.box((4, 2, 1))
    mesh.apply_translation((1000, -20, 3))
    mesh.export(tmp_path / "box.obj")
    return tmp_path / "box.obj"


@pytest.fixture
def bar(tmp_path):
    """Voxels of a bar 6 × 3 × 2 in a grid of 10 × 8 × 5, from index (2, 1, 1)."""
    volume = np.zeros((10, 8, 5), dtype=np.uint8)
    volume[2:8, 1:4, 1:3] = 1
    np.save(tmp_path / "bar.npy", volume)
    return tmp_path / "bar.npy"


def test_a_mesh_lies_in_the_cube_and_knows_its_inside(box):
    shape = MeshShape(box, padding=0.2)
    assert shape.surface.bounds.tolist() == [[-0.8, -0.4, -0.2], [0.8, 0.4, 0.2]]
    points = np.random.default_rng(0).uniform(-1, 1, (5000, 3))
    assert (shape.contains(points) == (np.abs(points) < (0.8, 0.4, 0.2)).all(-1)).all()
    assert shape.placement.from_cube(np.array([0.8, 0.4, 0.2])).tolist() == pytest.approx([1002, -19, 3.5])


def test_the_protocol_of_a_mesh_is_plain_and_says_how_far_two_methods_agree(box):
    said = MeshShape(box).protocol()
    assert said["mesh"] == "box.obj" and said["watertight"] is True
    assert all(isinstance(value, bool | int | float | str) for value in said.values())


def test_the_fingerprint_follows_the_content(box, tmp_path):
    other = trimesh.load(box, process=False)
    other.vertices[0, 0] += 0.01
    other.export(tmp_path / "other.obj")
    first = MeshShape(box).fingerprint
    assert first == MeshShape(box).fingerprint != MeshShape(tmp_path / "other.obj").fingerprint
    assert first != MeshShape(box, padding=0.3).fingerprint


def test_a_volume_lies_in_the_cube_by_its_occupied_voxels(bar):
    shape = VolumeShape(bar, padding=0.25)
    assert shape.placement.centre == (4.5, 2.0, 1.5) and shape.placement.scale == 4.0  # 6 voxels over 1.5
    points = np.random.default_rng(0).uniform(-1, 1, (5000, 3))
    assert (shape.contains(points) == (np.abs(points) < (0.75, 0.375, 0.25)).all(-1)).all()


def test_the_surface_of_a_volume_is_closed_and_faces_outward(bar):
    shape = VolumeShape(bar)
    voxels = shape.placement.from_cube(shape.surface.vertices)
    assert shape.surface.is_watertight and shape.surface.volume > 0
    assert voxels.min(0).tolist() == pytest.approx([1.5, 0.5, 0.5])
    assert voxels.max(0).tolist() == pytest.approx([7.5, 3.5, 2.5])
    assert shape.surface.volume * shape.placement.scale**3 == pytest.approx(6 * 3 * 2)  # the labels' own boundary
    assert shape.surface.area * shape.placement.scale**2 == pytest.approx(2 * (18 + 12 + 6))


def test_a_volume_that_fills_its_grid_to_the_border_is_closed_too(tmp_path):
    volume = np.zeros((4, 4, 4))
    volume[:, :, :2] = 0.9
    np.save(tmp_path / "half.npy", volume)
    assert VolumeShape(tmp_path / "half.npy").surface.is_watertight


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.zeros((4, 4, 4)), "no voxel is above the threshold 0.5"),
        (np.ones((4, 4, 4)), "every voxel is above the threshold 0.5"),
        (np.full((4, 4, 4), np.nan), "64 values that are NaN or infinite"),
        (np.zeros((4, 4)), r"float64 \[4, 4\]; a volume is one array \[X, Y, Z\]"),
        (np.array(["a"] * 8).reshape(2, 2, 2), r"<U1 \[2, 2, 2\]"),
        (np.zeros((0, 4, 4)), r"float64 \[0, 4, 4\]"),
    ],
)
def test_bad_volumes(content, words, tmp_path):
    np.save(tmp_path / "volume.npy", content)
    with pytest.raises(UserError, match=words) as raised:
        VolumeShape(tmp_path / "volume.npy")
    assert "volume.npy" in str(raised.value)


def test_unreadable_volumes(tmp_path):
    (tmp_path / "text.npy").write_text("not an array")
    np.savez(tmp_path / "archive.npz", a=np.zeros(3))
    for name, words in (
        ("gone.npy", "does not exist"),
        ("text.npy", "not a readable"),
        ("archive.npz", "an archive"),
    ):
        with pytest.raises(UserError, match=words):
            VolumeShape(tmp_path / name)


def test_one_source_is_named(box, bar):
    assert isinstance(read_shape(str(box), None, 0.1, 0.5), MeshShape)
    assert isinstance(read_shape(None, str(bar), 0.1, 0.5), VolumeShape)
    assert isinstance(read_shape(str(box), str(bar), 0.1, 0.5), VolumeShape)
    with pytest.raises(UserError, match=r"give data\.mesh or data\.volume"):
        read_shape(None, None, 0.1, 0.5)


def test_what_lies_inside_of_another_body_is_no_surface(tmp_path):
    balls = [
        trimesh.creation.icosphere(4, 1.0),
        trimesh.creation.icosphere(4, 1.0),
        trimesh.creation.icosphere(3, 0.2),
    ]
    balls[1].apply_translation((1, 0, 0))
    trimesh.util.concatenate(balls).export(tmp_path / "balls.ply")
    surface = MeshShape(tmp_path / "balls.ply").surface
    # Two caps of height 1/2 are inside of the other ball; of the small ball in the first nothing is left.
    outer = 2 * (4 * np.pi - 2 * np.pi * 0.5)
    scale = MeshShape(tmp_path / "balls.ply").placement.scale
    assert surface.area * scale**2 == pytest.approx(outer, rel=0.02)
    plate = trimesh.creation.box((1, 1, 1e-5))  # thinner than a look beside its faces
    plate.export(tmp_path / "plate.ply")
    assert len(MeshShape(tmp_path / "plate.ply").surface.faces) == 12
