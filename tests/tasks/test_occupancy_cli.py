"""Occupancy through the command line: mistakes, two processes, what a run leaves."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from command_line import figures
from solids import write_l_shape

from sinelr_lightning.cli import main


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    mesh = write_l_shape(folder / "l.obj")
    settings = {
        "trainer": {"accelerator": "cpu", "max_steps": 100, "num_sanity_val_steps": 0, "logger": False},
        "model": {
            "class_path": "OccupancyTask",
            "init_args": {
                "linear": {"class_path": "SineLowRank", "init_args": {"rank": 2}}, "width": 32, "resolution": 32,
                "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}},
            },
        },
        "data": {
            "class_path": "OccupancyData",
            "init_args": {
                "mesh": str(mesh), "points": 4000, "eval_points": 30_002, "batch_size": 256, "epoch_steps": 50,
                "cache": False,
            },
        },
    }  # fmt: skip
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_two_processes_follow_one_and_score_the_same_digits(config, tmp_path):
    fit = [
        "fit",
        "--config",
        str(config),
        f"--runs_dir={tmp_path}",
        "--trainer.max_steps=60",
        "--data.epoch_steps=60",
    ]
    assert main([*fit, "--name=one"]) == 0
    ddp = ["--trainer.strategy=ddp", "--trainer.devices=2", "--name=two"]
    command = [sys.executable, "-m", "sinelr_lightning", *fit, *ddp]
    subprocess.run(command, check=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"})
    one, two = tmp_path / "one" / "version_0", tmp_path / "two" / "version_0"
    weights = [torch.load(r / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for r in (one, two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-3)
    assert (
        main(
            [
                "validate",
                "--ckpt_path",
                str(two / "checkpoints" / "last.ckpt"),
                "--trainer.devices=1",
                "--trainer.strategy=auto",
            ]
        )
        == 0
    )
    alone, together = figures(two)["validate"], figures(two)["fit"]["last"]
    assert {name: alone[name] for name in together if name != "step"} == {
        name: value for name, value in together.items() if name != "step"
    }


def test_a_run_says_how_its_figures_were_measured(config, tmp_path):
    assert main(["fit", "--config", str(config), f"--runs_dir={tmp_path}"]) == 0
    assert main(["test", "--ckpt_path", str(tmp_path / "small")]) == 0
    said = figures(tmp_path / "small" / "version_0")
    assert {"test/iou", "test/iou_near", "test/chamfer", "test/normal_consistency", "test/f_score"} <= set(
        said["test"]
    )
    protocol = said["protocol"]
    assert protocol["uniform_points"] == protocol["near_points"] == 15_001 and protocol["surface_samples"] == 100_000
    assert protocol["sample_seeds"] == {"train": 0, "val": 1, "test": 2} and protocol["surface_resolution"] == 32
    assert protocol["watertight"] is True and protocol["agreement"] > 0.9


def write(path, content):
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    return path


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data.mesh=nowhere.obj"], "nowhere.obj does not exist"),
        (["--data.mesh={tmp}/points.ply"], "points but no faces"),
        (["--data.mesh={tmp}/picture.obj"], "picture.obj"),
        (["--data.mesh={tmp}/shape.xyz"], "shape.xyz"),
        (["--data.volume={tmp}/empty.npy"], "no voxel is above"),
        (["--data.padding=1.5"], "padding"),
        (["--data.points=0"], "data.points"),
        (["--model.activation=relUU"], "activation"),
        (["--model.sigma=0"], "sigma"),
        (["--model.linear.rank=32"], "rank 32"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(config, options, said, tmp_path, capfd):
    files = tmp_path / "files"
    files.mkdir()
    header = (
        b"ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    )
    write(files / "points.ply", header + b"0 0 0\n1 1 1\n")
    write(files / "picture.obj", b"\x89PNG\r\n\x1a\n" + bytes(50))
    write(files / "shape.xyz", b"0 0 0\n")
    write(files / "empty.npy", np.zeros((4, 4, 4)))
    options = [option.format(tmp=files) for option in options]
    assert main(["fit", "--config", str(config), f"--runs_dir={tmp_path}/runs", *options]) == 2
    error = capfd.readouterr().err.splitlines()
    assert len([line for line in error if line.startswith("error: ")]) == 1 and said in error[-1]
    assert not (tmp_path / "runs").exists()
