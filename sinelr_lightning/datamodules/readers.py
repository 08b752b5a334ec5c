"""One door to all readers of posed photographs."""

import os
from pathlib import Path
from typing import Literal

from sinelr_lightning.datamodules.colmap import read_colmap
from sinelr_lightning.datamodules.llff import read_llff
from sinelr_lightning.datamodules.scene import Scene
from sinelr_lightning.datamodules.transforms_json import read_transforms
from sinelr_lightning.errors import UserError
from sinelr_lightning.files import searched_in

__all__ = ["SceneFormat", "read_scene"]

SceneFormat = Literal["auto", "llff", "transforms", "colmap"]


def read_scene(
    root: str | os.PathLike[str],
    factor: int | None = 1,
    hold: int = 8,
    format: SceneFormat = "auto",
    white_background: bool = True,
    near: float | None = None,
    far: float | None = None,
) -> Scene:
    """Read the scene in `root`, whatever format it has.

    "auto" takes the first that fits: `poses_bounds.npy` → LLFF, `transforms.json` or `transforms_train.json` →
    transforms, `sparse/` → COLMAP.

    Args:
        root: the scene's folder.
        factor: how much smaller than the full-size images the loaded ones are.
        hold: every how many-th view is held out, where the files have no split of their own.
        format: "auto", "llff", "transforms" or "colmap".
        white_background: what transparent pixels of a transforms scene show, white or black.
        near, far: depth range of a transforms scene in the units of its file; the other formats know their own.

    Raises:
        UserError: an unknown format, nothing in `root` that is known, depths for a format that has
            them, or what the reader itself raises.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder{searched_in(root)}")
    if format == "auto":
        format = _detect(root)
    if format in ("llff", "colmap") and (near is not None or far is not None):
        raise UserError(f"near, far: {root} is read as {format}, whose files say the depths; leave both out")
    if format == "llff":
        return read_llff(root, factor, hold)
    if format == "transforms":
        return read_transforms(root, factor, hold, white_background, near, far)
    if format == "colmap":
        return read_colmap(root, factor, hold)
    raise UserError(f"format: {format}; auto, llff, transforms and colmap are accepted")


def _detect(root: Path) -> SceneFormat:
    if (root / "poses_bounds.npy").is_file():
        return "llff"
    if (root / "transforms.json").is_file() or (root / "transforms_train.json").is_file():
        return "transforms"
    if (root / "sparse").is_dir():
        return "colmap"
    raise UserError(
        f"{root}: holds no scene; looked for poses_bounds.npy (LLFF), transforms.json or transforms_train.json "
        "(nerfstudio, Blender) and sparse/ (COLMAP)"
    )
