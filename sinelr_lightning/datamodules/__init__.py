"""What the tasks train on: LightningDataModules and the readers of file formats below them."""

from sinelr_lightning.datamodules.nerf import NeRFData

__all__ = ["NeRFData"]
