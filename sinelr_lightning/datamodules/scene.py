"""What every reader of posed photographs returns: cameras, pixels and the split."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["Cameras", "Scene"]


@dataclass(frozen=True)
class Cameras:
    """N pinhole cameras of one image size, with the depth range of what they see.

    Axes are OpenGL's: x right, y up, z backward, so a camera looks along its own -z. Pixel (column c, row r) has
    its centre at (c + 0.5, r + 0.5). `near` and `far` are depths along -z in scene units.

    Attributes:
        cam_to_world: [N, 3, 4], rotation and position of each camera.
        intrinsics: [N, 4], fx, fy, cx, cy in pixels of this image size.
        height, width: image size in pixels.
        near, far: depth range in scene units.
        forward_facing: True if all cameras look the same way, so that NDC rays and a spiral path fit; False if they
            look inward, so that an orbit fits.
        distortion: [N, 4], OpenCV's k1, k2, p1, p2, or None for pinhole cameras.
    """

    cam_to_world: Tensor
    intrinsics: Tensor
    height: int
    width: int
    near: float
    far: float
    forward_facing: bool
    distortion: Tensor | None = None

    def to(self, device: torch.device | str) -> "Cameras":
        """The same cameras with their tensors on `device`."""
        distortion = None if self.distortion is None else self.distortion.to(device)
        return replace(
            self,
            cam_to_world=self.cam_to_world.to(device),
            intrinsics=self.intrinsics.to(device),
            distortion=distortion,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary of tensors and numbers, loadable with `torch.load(weights_only=True)`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Cameras":
        return cls(**{f.name: values[f.name] for f in fields(cls)})


@dataclass(frozen=True)
class Scene:
    """Cameras with their photographs.

    Attributes:
        images: uint8 [N, H, W, 3]; RGBA sources are already composited over the background.
        cameras: the N cameras, in the order of the images.
        names: N file names.
        train, val, test: indices into the N views; `val` and `test` are held out from training.
        white_background: True if rays that hit nothing should be white (synthetic RGBA scenes).
        protocol: how the data were read (format, factor, hold-out …), for metrics.json.
    """

    images: Tensor
    cameras: Cameras
    names: list[str]
    train: list[int]
    val: list[int]
    test: list[int]
    white_background: bool
    protocol: dict[str, Any]
