import pytest

from sinelr_lightning.datamodules import readers
from sinelr_lightning.datamodules.readers import read_scene
from sinelr_lightning.errors import UserError


@pytest.fixture
def called(monkeypatch):
    calls = []
    for name in ("read_llff", "read_transforms", "read_colmap"):
        monkeypatch.setattr(readers, name, lambda *args, name=name: calls.append((name, *args)))
    return calls


@pytest.mark.parametrize(
    ("present", "reader"),
    [
        (["poses_bounds.npy"], "read_llff"),
        (["transforms.json"], "read_transforms"),
        (["transforms_train.json"], "read_transforms"),
        (["sparse/0/cameras.bin"], "read_colmap"),
        (["sparse/0/cameras.bin", "transforms.json"], "read_transforms"),
        (["sparse/0/cameras.bin", "transforms.json", "poses_bounds.npy"], "read_llff"),
    ],
)
def test_the_format_follows_from_what_lies_there(tmp_path, called, present, reader):
    for name in present:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    read_scene(tmp_path, 4, 5, white_background=False)
    extra = (False, None, None) if reader == "read_transforms" else ()
    assert called == [(reader, tmp_path, 4, 5, *extra)]


def test_a_named_format_is_taken(tmp_path, called):
    (tmp_path / "poses_bounds.npy").touch()
    read_scene(tmp_path, format="colmap")
    assert called == [("read_colmap", tmp_path, 1, 8)]


def test_depths_are_for_transforms_alone(tmp_path, called):
    read_scene(tmp_path, format="transforms", near=2, far=5)
    assert called == [("read_transforms", tmp_path, 1, 8, True, 2, 5)]
    for format in ("llff", "colmap"):
        with pytest.raises(UserError, match=f"near, far: .* is read as {format}"):
            read_scene(tmp_path, format=format, near=2)


def test_what_is_looked_for_is_listed(tmp_path):
    with pytest.raises(UserError, match=r"poses_bounds\.npy .*transforms\.json.*sparse/"):
        read_scene(tmp_path)


def test_missing_folder_and_unknown_format(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        read_scene(tmp_path / "nowhere")
    with pytest.raises(UserError, match="format: ply; auto, llff, transforms and colmap"):
        read_scene(tmp_path, format="ply")
