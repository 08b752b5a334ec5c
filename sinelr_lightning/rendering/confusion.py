"""A confusion matrix as a picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image, ImageFont

__all__ = ["confusion_picture"]

PAPER, INK, FULL = np.array([255, 255, 255]), (30, 30, 34), np.array([28, 92, 171])
SIDE, CELL, NAMED = 640, 44, 24  # pixels; above `NAMED` classes cells carry no text


def confusion_picture(counts: Tensor, names: Sequence[str]) -> Tensor:
    """Draw counts [C, C]: a row is a true class, its cells are shaded by their share of the row.

    Up to 24 classes are named and counted; a number's colour follows its shade.

    Args:
        counts: samples of true class i that were called class j.
        names: of the C classes.

    Returns:
        uint8 [H, W, 3].
    """
    from PIL import Image, ImageDraw, ImageFont

    classes = len(counts)
    share = (counts / counts.sum(1, keepdim=True).clamp_min(1)).cpu().double().numpy()
    colours = (PAPER + share[..., None] * (FULL - PAPER)).astype(np.uint8)
    cell = CELL if classes <= NAMED else max(1, SIDE // classes)
    grid = Image.fromarray(colours).resize((classes * cell, classes * cell), Image.Resampling.NEAREST)
    if classes > NAMED:
        return torch.from_numpy(np.array(grid))
    font = ImageFont.load_default(13)
    shown = [name if len(name) <= 14 else f"{name[:13]}…" for name in names]
    margin = 24 + round(max(font.getlength(name) for name in shown))
    picture = Image.new("RGB", (margin + grid.width + 12, grid.height + margin + 12), tuple(PAPER))
    picture.paste(grid, (margin, 12))
    draw = ImageDraw.Draw(picture)
    for i in range(classes):
        middle = i * cell + cell / 2
        draw.text((margin - 8, 12 + middle), shown[i], INK, font, anchor="rm")
        _upright(picture, shown[i], (round(margin + middle), 20 + grid.height), font)
        for j in range(classes):
            ink = (255, 255, 255) if share[i, j] > 0.5 else INK
            if counts[i, j]:
                place = (margin + j * cell + cell / 2, 12 + middle)
                draw.text(place, str(int(counts[i, j])), ink, font, anchor="mm")
    return torch.from_numpy(np.array(picture))


def _upright(
    picture: "Image.Image", text: str, top: tuple[int, int], font: "ImageFont.FreeTypeFont | ImageFont.ImageFont"
) -> None:
    """Write a column's name from its foot upwards, below the column."""
    from PIL import Image, ImageDraw

    width, height = round(font.getlength(text)) + 2, 18
    label = Image.new("RGB", (width, height), tuple(PAPER))
    ImageDraw.Draw(label).text((width, height / 2), text, INK, font, anchor="rm")
    picture.paste(label.rotate(90, expand=True), (top[0] - height // 2, top[1]))
