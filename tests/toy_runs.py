"""Runs of the toy task through the command line, in this process or in others."""

import os
import sys
from pathlib import Path

import torch

from sinelr_lightning.cli import main

SINELR = str(Path(sys.executable).with_name("sinelr"))

TOY = """\
model:
  class_path: toy.ToyTask
data:
  class_path: toy.ToyData
trainer:
  accelerator: cpu
  max_steps: 35
"""


def fit(*options):
    return main(["fit", "--config", "toy.yaml", *options])


def weights(run):
    return torch.load(Path(run) / "checkpoints" / "last.ckpt", weights_only=True)


def distance(one, other):
    return max(float((one["state_dict"][k] - other["state_dict"][k]).abs().max()) for k in one["state_dict"])


def traced(file, die="", stop=""):
    return [
        "--trainer.callbacks=toy.Trace", f"--trainer.callbacks.file={file}",
        f"--trainer.callbacks.die={die}", f"--trainer.callbacks.stop={stop}",
    ]  # fmt: skip


def saving(minutes):
    return [
        "--trainer.callbacks+=sinelr_lightning.callbacks.Checkpoint",
        f"--trainer.callbacks.every_minutes={minutes}",
    ]


def environment():
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
