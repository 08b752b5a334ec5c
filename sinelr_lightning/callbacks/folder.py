"""Where a run keeps its files."""

from pathlib import Path

import lightning.pytorch as L

__all__ = ["run_folder"]


def run_folder(trainer: L.Trainer) -> Path:
    """Give the folder of checkpoints and figures: the logger's if it is inside `default_root_dir`, else the latter.

    A logger that writes elsewhere, or to a server, takes no checkpoint with it. Not `trainer.log_dir`: that is an
    exchange between the ranks, and some things are done by rank 0 alone.
    """
    root = Path(trainer.default_root_dir)
    log_dir = getattr(trainer.logger, "log_dir", None)
    inside = log_dir and Path(log_dir).absolute().is_relative_to(root.absolute())
    return Path(log_dir) if inside else root
