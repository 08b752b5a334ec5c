import json

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import write_llff
from toy import ToyTask, quiet_trainer

from sinelr_lightning.cli import main
from sinelr_lightning.commands.render import camera_path
from sinelr_lightning.datamodules import NeRFData
from sinelr_lightning.layers import SineLowRank
from sinelr_lightning.tasks import NeRFTask


def write_blender(root):
    """Six cameras on a ring around the origin, pictures of 8 × 6 half transparent."""
    frames = []
    for i in range(6):
        c, s = np.cos(i * np.pi / 3), np.sin(i * np.pi / 3)
        pose = [[-s, 0, c, 4 * c], [c, 0, s, 4 * s], [0, 1, 0, 0.5], [0, 0, 0, 1]]
        frames.append({"file_path": f"./r_{i}", "transform_matrix": pose})
        root.mkdir(exist_ok=True)
        Image.new("RGBA", (8, 6), (200, 40, 40, 128)).save(root / f"r_{i}.png")
    for split, own in (("train", frames[1:]), ("test", frames[:1])):
        (root / f"transforms_{split}.json").write_text(json.dumps({"camera_angle_x": 0.7, "frames": own}))
    return root


@pytest.fixture(scope="module", params=[write_llff, write_blender], ids=["llff", "blender"])
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("render")
    scene = request.param(folder / "scene")
    task = NeRFTask(SineLowRank(1), depth=2, width=16, skip=0, coarse_samples=4, fine_samples=4)
    run = quiet_trainer(folder, max_steps=1, limit_val_batches=0)
    run.fit(task, NeRFData(str(scene), batch_size=8, epoch_steps=1))
    run.save_checkpoint(folder / "run.ckpt")
    return folder / "run.ckpt", task.cameras


def test_it_renders_pictures_of_odd_sizes_into_a_folder(checkpoint, tmp_path, capfd):
    path, cameras = checkpoint
    assert main(["render", f"--ckpt_path={path}", f"--out={tmp_path}/frames", "--frames=2", "--scale=0.55"]) == 0
    files = sorted((tmp_path / "frames").iterdir())
    assert [file.name for file in files] == ["0000.png", "0001.png"]
    height, width = round(cameras.height * 0.55), round(cameras.width * 0.55)
    assert {Image.open(file).size for file in files} == {(2 * width, height)}  # colours and depth
    assert "2 frames" in capfd.readouterr().err


def test_it_renders_colours_alone_into_an_animation(checkpoint, tmp_path):
    path, cameras = checkpoint
    out = tmp_path / "film.webp"
    assert main(["render", f"--ckpt_path={path}", f"--out={out}", "--frames=3", "--depth=false"]) == 0
    with Image.open(out) as film:
        assert film.size == (cameras.width, cameras.height) and film.is_animated


def test_the_path_follows_the_cameras(checkpoint):
    _, cameras = checkpoint
    poses = camera_path(cameras, "auto", 4)
    if cameras.forward_facing:
        assert (poses[:, 2, 2] > 0.9).all()  # all look along -z
    else:
        torch.testing.assert_close(poses[:, :, 3].norm(dim=-1), torch.full((4,), 4.0311), rtol=0, atol=1e-3)
        assert poses[:, :2, 2].mean(0).norm() < 1e-5  # they look from all sides


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out=film.avi"], "unknown suffix .avi"),
        (["--out=taken/film.webp"], "taken/film.webp: cannot be written"),
        (["--frames=0"], "frames"),
        (["--scale=0"], "scale"),
        (["--device=abacus"], "device abacus"),
    ],
)
def test_a_mistake_is_one_line(checkpoint, options, said, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    assert main(["render", f"--ckpt_path={checkpoint[0]}", "--out=film.webp", "--frames=1", *options]) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and said in error


def test_a_checkpoint_of_another_task_is_refused(tmp_path, capfd):
    run = quiet_trainer(tmp_path, max_steps=0)
    run.strategy.connect(ToyTask())
    run.save_checkpoint(tmp_path / "toy.ckpt")
    assert main(["render", f"--ckpt_path={tmp_path}/toy.ckpt"]) == 2
    assert "holds a ToyTask, this command needs the task NeRFTask" in capfd.readouterr().err
