"""Plain networks that take their linear layers from a factory."""

from sinelr_lightning.models.nerf import DensityField, NeRF
from sinelr_lightning.models.occupancy import GaborNetwork, OccupancyNetwork, occupancy_network

__all__ = ["DensityField", "GaborNetwork", "NeRF", "OccupancyNetwork", "occupancy_network"]
