"""Tensors as pictures: bytes, a colour map for depth, PNG files."""

import os
from pathlib import Path

import torch
from torch import Tensor

from sinelr_lightning.files import atomic_path

__all__ = ["depth_image", "save_png", "side_by_side", "to_uint8"]

# Dark blue over red to pale yellow: lightness rises evenly (OKLab 0.16 to 0.96), so order survives a grey print.
_COLOUR_MAP = (
    (7, 2, 51),
    (34, 5, 79),
    (68, 10, 100),
    (105, 15, 111),
    (145, 22, 112),
    (184, 35, 103),
    (216, 62, 87),
    (243, 93, 64),
    (249, 137, 69),
    (251, 177, 97),
    (252, 212, 134),
    (254, 244, 182),
)


def to_uint8(image: Tensor) -> Tensor:
    """Round [0, 1] to 0 … 255: `floor(255·clip(x, 0, 1) + 0.5)`. Any shape; -1, 0.5, 1 → 0, 128, 255."""
    return image.clamp(0, 1).mul(255).add(0.5).to(torch.uint8)


def depth_image(depth: Tensor, near: float, far: float) -> Tensor:
    """Colours of a depth map, near bright and far dark, even in disparity.

    `s = (1/depth - 1/far)/(1/near - 1/far)`, clipped to [0, 1], looked up in a map of 12 colours with linear
    interpolation. Disparity is what parallax shows, and `far` may be `inf`.

    Worked numbers: near = 1, far = 4: depth 1 → s = 1, (254, 244, 182)/255; depth 4 → s = 0, (7, 2, 51)/255;
    depth 1.6 → s = 0.5, halfway between (184, 35, 103)/255 and (216, 62, 87)/255.

    Args:
        depth: [..., H, W], positive, in scene units.
        near, far: 0 < near < far, in scene units.

    Returns:
        [..., H, W, 3] in [0, 1].
    """
    share = ((1 / depth - 1 / far) / (1 / near - 1 / far)).clamp(0, 1)
    table = torch.tensor(_COLOUR_MAP, dtype=depth.dtype, device=depth.device) / 255
    place = share * (len(table) - 1)
    index = place.long().clamp(0, len(table) - 2)
    return torch.lerp(table[index], table[index + 1], (place - index)[..., None])


def side_by_side(*images: Tensor) -> Tensor:
    """Join images [..., H, W_i, 3] of one height from left to right: [..., H, Σ W_i, 3].

    Raises:
        ValueError: heights differ.
    """
    heights = {image.shape[-3] for image in images}
    if len(heights) > 1:
        raise ValueError(f"images side by side need one height, not {sorted(heights)}")
    return torch.cat(images, dim=-2)


def save_png(path: str | os.PathLike[str], image: Tensor) -> Path:
    """Write an image [H, W, 3], uint8 or float in [0, 1], whole or not at all. Returns the path."""
    from PIL import Image

    pixels = image if image.dtype == torch.uint8 else to_uint8(image)
    with atomic_path(path) as temporary:
        Image.fromarray(pixels.cpu().numpy()).save(temporary, format="PNG")
    return Path(path)
