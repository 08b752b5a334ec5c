"""Runs through the command line, and what they left."""

import json

import torch

from sinelr_lightning.cli import main


def fit(config, folder, name, *options):
    return main(["fit", "--config", str(config), f"--runs_dir={folder}", f"--name={name}", *options])


def stored(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def figures(run):
    return json.loads((run / "metrics.json").read_text())
