"""What the tasks train on: LightningDataModules and the readers of file formats below them."""

from sinelr_lightning.datamodules.classification import DigitsData, ImageFolderData, TorchvisionData
from sinelr_lightning.datamodules.language import LanguageData
from sinelr_lightning.datamodules.nerf import NeRFData
from sinelr_lightning.datamodules.occupancy import OccupancyData
from sinelr_lightning.datamodules.sentences import SentenceData
from sinelr_lightning.datamodules.table import TableData

__all__ = [
    "DigitsData",
    "ImageFolderData",
    "LanguageData",
    "NeRFData",
    "OccupancyData",
    "SentenceData",
    "TableData",
    "TorchvisionData",
]
