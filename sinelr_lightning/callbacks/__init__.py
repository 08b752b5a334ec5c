"""What watches or changes training."""

from sinelr_lightning.callbacks.averaging import EMA
from sinelr_lightning.callbacks.checkpoint import AtomicCheckpointIO, Checkpoint
from sinelr_lightning.callbacks.collapse import RestartOnCollapse
from sinelr_lightning.callbacks.guards import StopOnNaN
from sinelr_lightning.callbacks.phases import PhaseMonitor
from sinelr_lightning.callbacks.progress import Progress
from sinelr_lightning.callbacks.report import Report
from sinelr_lightning.callbacks.weights import CachedWeights, ConvertCallback

__all__ = [
    "EMA",
    "AtomicCheckpointIO",
    "CachedWeights",
    "Checkpoint",
    "ConvertCallback",
    "PhaseMonitor",
    "Progress",
    "Report",
    "RestartOnCollapse",
    "StopOnNaN",
]
