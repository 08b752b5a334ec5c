"""What watches or changes training; the command line adds all of these to every run."""

from sinelr_lightning.callbacks.checkpoint import AtomicCheckpointIO, Checkpoint
from sinelr_lightning.callbacks.guards import StopOnNaN
from sinelr_lightning.callbacks.progress import Progress
from sinelr_lightning.callbacks.report import Report

__all__ = ["AtomicCheckpointIO", "Checkpoint", "Progress", "Report", "StopOnNaN"]
