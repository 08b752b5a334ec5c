"""One LightningModule a task."""

from sinelr_lightning.tasks.base import Schedule, Task
from sinelr_lightning.tasks.nerf import NeRFTask

__all__ = ["NeRFTask", "Schedule", "Task"]
