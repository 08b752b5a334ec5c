import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from solids import write_l_shape
from toy import ToyData, ToyTask, quiet_trainer

from sinelr_lightning.cli import main
from sinelr_lightning.datamodules import OccupancyData
from sinelr_lightning.geometry.mesh_io import load_mesh
from sinelr_lightning.layers import SineLowRank
from sinelr_lightning.tasks import OccupancyTask


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Checkpoint of a network that has learnt the L-shape, and the mesh that it learnt."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("mesh")
    path = write_l_shape(folder / "l.obj")
    adam = torch.optim.Adam
    task = OccupancyTask(SineLowRank(6), width=64, optimizer=lambda p: adam(p, lr=1e-2))
    data = OccupancyData(str(path), points=50_000, batch_size=2048, epoch_steps=600, cache=False)
    trainer = quiet_trainer(folder, max_steps=600, limit_val_batches=0)
    trainer.fit(task, data)
    trainer.save_checkpoint(folder / "run.ckpt")
    return folder / "run.ckpt", load_mesh(path)


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".glb", ".stl", ".off"])
def test_the_mesh_comes_back_where_the_input_lies(run, suffix, tmp_path, capfd):
    checkpoint, truth = run
    out = tmp_path / f"shape{suffix}"
    assert main(["mesh", f"--ckpt_path={checkpoint}", f"--out={out}", "--resolution=64", "--picture=false"]) == 0
    mesh = load_mesh(out)
    mesh.merge_vertices()  # an STL has none in common
    assert mesh.is_watertight and np.isfinite(mesh.vertices).all()
    assert mesh.volume == pytest.approx(44, rel=0.06)  # outward, and of the size of the L
    # Not mirrored, no axis swapped: each corner of the box is where it was.
    np.testing.assert_allclose(mesh.bounds, truth.bounds, atol=0.35)
    centre = np.average(truth.triangles_center, axis=0, weights=truth.area_faces)
    np.testing.assert_allclose(mesh.center_mass - centre, 0, atol=0.3)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    said = capfd.readouterr().err
    assert "watertight" in said and "grid nodes evaluated" in said and "memory" in said


def test_a_picture_and_a_page_lie_beside_it(run, tmp_path):
    out = tmp_path / "shape.ply"
    assert main(["mesh", f"--ckpt_path={run[0]}", f"--out={out}", "--resolution=32", "--html=true"]) == 0
    assert np.asarray(Image.open(tmp_path / "shape.png")).std() > 10
    assert "<html" in (tmp_path / "shape.html").read_text().lower()


def test_simplified_and_the_largest_part_alone(run, tmp_path):
    checkpoint, _ = run
    common = ["mesh", f"--ckpt_path={checkpoint}", "--resolution=48", "--picture=false"]
    whole, small, largest = (tmp_path / name for name in ("whole.ply", "small.ply", "largest.ply"))
    assert main([*common, f"--out={whole}"]) == 0
    assert main([*common, f"--out={small}", "--simplify=500"]) == 0
    assert main([*common, f"--out={largest}", "--keep_largest=true", "--level=0.3"]) == 0
    assert 400 <= len(load_mesh(small).faces) <= 520 < len(load_mesh(whole).faces)
    assert load_mesh(largest).body_count == 1


def test_a_lower_level_encloses_more(run, tmp_path):
    volumes = []
    for level in (0.1, 0.9):
        out = tmp_path / f"{level}.ply"
        assert main(["mesh", f"--ckpt_path={run[0]}", f"--out={out}", f"--level={level}", "--resolution=48"]) == 0
        volumes.append(load_mesh(out).volume)
    assert volumes[0] > volumes[1]


def change(checkpoint, path, **values):
    """A copy of the checkpoint with its head's weight and bias replaced."""
    content = torch.load(checkpoint, weights_only=True)
    for name, value in values.items():
        content["state_dict"][f"network.head.{name}"].fill_(value)
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("bias", "words"),
    [(-5.0, "calls nothing inside"), (5.0, "calls the whole cube inside")],
)
def test_a_field_without_a_surface_says_so_with_its_quantiles(run, bias, words, tmp_path, capfd):
    dead = change(run[0], tmp_path / "dead.ckpt", bias=bias, weight=1e-3)
    assert main(["mesh", f"--ckpt_path={dead}", f"--out={tmp_path}/shape.ply", "--resolution=32"]) == 2
    said = capfd.readouterr().err
    assert words in said and "1 %, 50 %, 99 %" in said and not (tmp_path / "shape.ply").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out=shape.xyz"], ".xyz"),
        (["--level=1.5"], "level"),
        (["--resolution=8"], "resolution"),
        (["--resolution=100000"], "GiB"),
        (["--simplify=2"], "simplify"),
        (["--ckpt_path=nowhere"], "nowhere"),
        (["--out=/proc/no/shape.ply", "--resolution=16"], "/proc/no"),
        (["--device=gpu9"], "gpu9"),
    ],
)
def test_a_mistake_is_one_line(run, options, words, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["mesh", f"--ckpt_path={run[0]}", *options]) == 2
    (error,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert words in error and not list(tmp_path.iterdir())


def test_a_level_outside_of_the_range_is_told_in_probabilities(run, tmp_path, capfd):
    out = f"--out={tmp_path}/shape.ply"
    assert main(["mesh", f"--ckpt_path={run[0]}", out, "--resolution=32", "--level=0.999999999999999"]) == 2
    said = capfd.readouterr().err
    assert "level 1 is outside of the field's range" in said and "lies in [" in said


def test_a_picture_that_cannot_be_written_is_one_line(run, tmp_path, capfd):
    (tmp_path / "shape.png").mkdir()
    assert main(["mesh", f"--ckpt_path={run[0]}", f"--out={tmp_path}/shape.ply", "--resolution=32"]) == 2
    assert "shape.png cannot be written" in capfd.readouterr().err


def test_a_checkpoint_of_another_task_is_refused(tmp_path, capfd):
    trainer = quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    trainer.fit(ToyTask(), ToyData())
    trainer.save_checkpoint(tmp_path / "toy.ckpt")
    assert main(["mesh", f"--ckpt_path={tmp_path}/toy.ckpt"]) == 2
    assert "ToyTask" in capfd.readouterr().err


def test_a_surface_that_leaves_the_cube_is_told(run, tmp_path, capfd):
    # Scaled so that the first layer sees a smaller cube: the shape becomes larger than the cube.
    content = torch.load(run[0], weights_only=True)
    content["state_dict"]["network.first.weight"] *= 0.5
    torch.save(content, tmp_path / "large.ckpt")
    assert main(["mesh", f"--ckpt_path={tmp_path}/large.ckpt", f"--out={tmp_path}/large.ply", "--resolution=32"]) == 0
    assert "leaves the cube" in capfd.readouterr().err
    assert not trimesh.load(tmp_path / "large.ply").is_watertight
