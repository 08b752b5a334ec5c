"""What the tasks train on: LightningDataModules and the readers of file formats below them."""

from sinelr_lightning.datamodules.classification import DigitsData, ImageFolderData, TorchvisionData
from sinelr_lightning.datamodules.nerf import NeRFData
from sinelr_lightning.datamodules.occupancy import OccupancyData

__all__ = ["DigitsData", "ImageFolderData", "NeRFData", "OccupancyData", "TorchvisionData"]
