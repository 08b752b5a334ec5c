"""Plain networks that take their linear layers from a factory."""

from sinelr_lightning.models.nerf import DensityField, NeRF

__all__ = ["DensityField", "NeRF"]
