"""One LightningModule a task."""

from sinelr_lightning.tasks.base import Task
from sinelr_lightning.tasks.classification import ClassificationTask
from sinelr_lightning.tasks.nerf import NeRFTask
from sinelr_lightning.tasks.occupancy import OccupancyTask
from sinelr_lightning.tasks.schedule import Schedule

__all__ = ["ClassificationTask", "NeRFTask", "OccupancyTask", "Schedule", "Task"]
