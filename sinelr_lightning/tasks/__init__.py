"""One LightningModule a task."""

from sinelr_lightning.tasks.base import Task
from sinelr_lightning.tasks.classification import ClassificationTask
from sinelr_lightning.tasks.language import LanguageTask
from sinelr_lightning.tasks.nerf import NeRFTask
from sinelr_lightning.tasks.occupancy import OccupancyTask
from sinelr_lightning.tasks.pretraining import PretrainingTask
from sinelr_lightning.tasks.schedule import Schedule
from sinelr_lightning.tasks.sentence import SentenceTask
from sinelr_lightning.tasks.tabular import TabularTask

__all__ = [
    "ClassificationTask",
    "LanguageTask",
    "NeRFTask",
    "OccupancyTask",
    "PretrainingTask",
    "Schedule",
    "SentenceTask",
    "TabularTask",
    "Task",
]
