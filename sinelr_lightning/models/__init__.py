"""Plain networks that take their linear layers from a factory."""

from sinelr_lightning.models.mlp import MLP
from sinelr_lightning.models.nerf import DensityField, NeRF
from sinelr_lightning.models.networks import image_network
from sinelr_lightning.models.occupancy import GaborNetwork, OccupancyNetwork, occupancy_network
from sinelr_lightning.models.vit import VisionTransformer

__all__ = [
    "MLP",
    "DensityField",
    "GaborNetwork",
    "NeRF",
    "OccupancyNetwork",
    "VisionTransformer",
    "image_network",
    "occupancy_network",
]
