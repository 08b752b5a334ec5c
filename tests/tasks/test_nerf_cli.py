"""The main job through the command line: mistakes, a stop and a resume, two processes."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from scenes import write_llff

from sinelr_lightning.cli import main


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    write_llff(folder / "scene")
    path = folder / "small.yaml"
    settings = {
        "trainer": {"accelerator": "cpu", "max_steps": 40, "num_sanity_val_steps": 0},
        "model": {
            "class_path": "NeRFTask",
            "init_args": {
                "linear": {"class_path": "SineLowRank", "init_args": {"rank": 1}},
                "depth": 2, "width": 32, "skip": 0, "coarse_samples": 8, "fine_samples": 8,
                "schedule": {"kind": "cosine"},
            },
        },
        "data": {
            "class_path": "NeRFData",
            "init_args": {"root": str(folder / "scene"), "batch_size": 64, "epoch_steps": 20, "hold": 4},
        },
    }  # fmt: skip
    path.write_text(yaml.safe_dump(settings))
    return path


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def metrics(run):
    return yaml.safe_load((run / "metrics.json").read_text())


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    runs = tmp_path_factory.mktemp("whole")
    assert main(["fit", "--config", str(config), f"--runs_dir={runs}"]) == 0
    return runs / "small" / "version_0"


def test_it_leaves_a_run_folder(whole):
    assert {"config.yaml", "metrics.json", "checkpoints"} <= {path.name for path in whole.iterdir()}
    figures = metrics(whole)
    assert set(figures["fit"]["last"]) == {"val/psnr", "val/ssim", "step"}
    assert figures["protocol"]["format"] == "llff" and figures["protocol"]["hold"] == 4
    assert len(figures["fit"]["samples"]) == 3


def test_a_killed_run_goes_on_to_the_same_weights(config, whole, tmp_path):
    slow = "import time; from sinelr_lightning.tasks import NeRFTask as T; f = T.training_step\n"
    slow += "T.training_step = lambda s, b, batch_idx: (time.sleep(0.2), f(s, b, batch_idx))[1]\n"
    slow += "import sys; from sinelr_lightning.cli import main; sys.exit(main())"
    saving = '[{"class_path": "sinelr_lightning.callbacks.Checkpoint", "init_args": {"every_minutes": 0}}]'
    command = ["fit", "--config", str(config), f"--runs_dir={tmp_path}", f"--trainer.callbacks={saving}"]
    process = subprocess.Popen([sys.executable, "-c", slow, *command], cwd=tmp_path)
    last = tmp_path / "small" / "version_0" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not (last.is_file() and torch.load(last, weights_only=True)["global_step"] >= 7):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert torch.load(last, weights_only=True)["global_step"] < 20  # in mid-epoch
    assert main(["fit", "--ckpt_path", str(tmp_path / "small")]) == 0
    resumed = weights(tmp_path / "small" / "version_0")
    for name, value in weights(whole).items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-7)


def test_two_processes_follow_one(config, tmp_path):
    jitter = "--model.jitter=false"  # each process draws its own
    assert main(["fit", "--config", str(config), f"--runs_dir={tmp_path}", "--name=one", jitter]) == 0
    ddp = ["--trainer.strategy=ddp", "--trainer.devices=2", f"--runs_dir={tmp_path}", "--name=two", jitter]
    command = [sys.executable, "-m", "sinelr_lightning", "fit", "--config", str(config), *ddp]
    subprocess.run(command, check=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"})
    one, two = tmp_path / "one" / "version_0", tmp_path / "two" / "version_0"
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, rtol=0, atol=1e-5)
    # The same three held-out views, each once, on however many processes.
    assert main(["validate", "--ckpt_path", str(two), "--trainer.devices=1", "--trainer.strategy=auto"]) == 0
    alone = metrics(two)["validate"]
    assert alone["val/psnr"] == metrics(two)["fit"]["last"]["val/psnr"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data.root=nowhere"], "nowhere"),
        (["--data.hold=1"], "hold"),
        (["--data.batch=3"], "batch_size"),
        (["--model.linear=SineLowRanck"], "SineLowRank"),
        (["--model.linear.rank=40"], "rank 40"),
        (["--model.linear.frequency=-1"], "frequency"),
        (["--ckpt_path=last"], "no checkpoint"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(config, options, said, tmp_path, capfd):
    assert main(["fit", "--config", str(config), f"--runs_dir={tmp_path}/runs", *options]) == 2
    error = capfd.readouterr().err.splitlines()
    assert len([line for line in error if line.startswith("error: ")]) == 1 and said in error[-1]
    assert not list(tmp_path.rglob("*"))


def test_a_truncated_poses_file_is_named(config, tmp_path, capfd):
    scene = write_llff(tmp_path / "scene")
    np.save(scene / "poses_bounds.npy", np.load(scene / "poses_bounds.npy")[:7])
    assert main(["fit", "--config", str(config), f"--data.root={scene}", f"--runs_dir={tmp_path}/runs"]) == 2
    error = capfd.readouterr().err
    assert "7" in error and "9" in error and not (tmp_path / "runs").exists()


def test_a_checkpoint_of_another_width_is_refused(config, whole, capfd):
    last = whole / "checkpoints" / "last.ckpt"
    assert main(["fit", "--config", str(config), f"--ckpt_path={last}", "--model.width=48", "--name=other"]) == 2
    assert "another architecture" in capfd.readouterr().err
