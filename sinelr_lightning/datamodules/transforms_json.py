"""Scenes described by `transforms*.json`: Blender's synthetic ones and nerfstudio's captures."""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sinelr_lightning.datamodules.images import has_alpha, image_size, load_images
from sinelr_lightning.datamodules.poses import (
    Array,
    hold_out,
    inward,
    looks_one_way,
    recentre,
    scale_intrinsics,
    to_tensor,
)
from sinelr_lightning.datamodules.scene import Cameras, Scene
from sinelr_lightning.datamodules.transforms_file import SPLITS, Frame, number, own_split, read_frames
from sinelr_lightning.errors import UserError

__all__ = ["read_transforms"]

log = logging.getLogger(__name__)

BLENDER_DEPTHS = (2.0, 6.0)
INWARD_DEPTHS = (0.05, 4.0)
FORWARD_DEPTHS = (1.2, 12.0)
FORWARD_REACH = 0.5


def read_transforms(
    root: str | os.PathLike[str],
    factor: int | None = 1,
    hold: int = 8,
    white_background: bool = True,
    near: float | None = None,
    far: float | None = None,
) -> Scene:
    """Read a Blender scene (`transforms_train.json`, `_val`, `_test`) or a nerfstudio one (`transforms.json`).

    **Blender.** Poses and depths 2 to 6 as they are, fx = fy = ½W / tan(½ camera_angle_x): π/2 at W = 800 gives 400.
    Images are composited over the background, then shrunk by area. The three files are the split; where `_val` or
    `_test` is missing, the other serves as both.

    **nerfstudio.** Intrinsics and distortion of the frame, else of the whole file, scaled to the loaded images (from
    `images_{factor}/` if it is there, else shrunk by area). Frames are sorted by file name; `train_filenames`,
    `val_filenames` and `test_filenames` are the split, else every `hold`-th frame is held out. White shows only
    where the images have transparency. The file says nothing of depths or scale, so:

    - cameras that look in several directions: the point they look at becomes the origin, z is up, the farthest
      camera stands at distance 1 (`poses.inward`), and depths go from 0.05 to 4;
    - cameras that all look one way: recentred on their average pose, the farthest 0.5 from it, depths 1.2 to 12,
      that is, the nearest thing is taken to be 2.4 times as far away as the outermost camera is from the middle.
      Give `near` if you know it: the scene is then scaled so that it becomes 1.2, as `read_llff` does.

    Args:
        root: folder with the json file or files.
        factor: how much smaller than the files say the images are.
        hold: every how many-th frame of a nerfstudio scene without a split of its own is held out.
        white_background: composite transparency over white, else over black.
        near, far: depth range in the units of the file, in place of the rules above.

    Returns:
        the scene; `protocol` also says the scale that distances were multiplied by.

    Raises:
        UserError: anything about the files or the arguments that a user can put right.

    Source: Mildenhall et al. 2020 (Blender), nerfstudio's data conventions.
    """
    root, factor = Path(root), 1 if factor is None else factor
    if factor < 1:
        raise UserError(f"factor: {factor}; it must be a whole number from 1 upward")
    if any(depth is not None and depth <= 0 for depth in (near, far)):
        raise UserError(f"near {near}, far {far}: depths must be greater than 0")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    if (root / "transforms_train.json").is_file():
        return _read_blender(root, factor, white_background, near, far)
    if (root / "transforms.json").is_file():
        return _read_nerfstudio(root, factor, hold, white_background, near, far)
    raise UserError(f"{root}: holds neither transforms_train.json nor transforms.json")


def _read_blender(root: Path, factor: int, white: bool, near: float | None, far: float | None) -> Scene:
    frames: list[Frame] = []
    angles: list[float] = []
    split: dict[str, list[int]] = {}
    for name in SPLITS:
        source = root / f"transforms_{name}.json"
        if source.is_file():
            meta, found = read_frames(source)
            split[name] = list(range(len(frames), len(frames) + len(found)))
            frames += found
            angles += [number(meta, "camera_angle_x", source)] * len(found)
    if len(split) == 1:
        raise UserError(f"{root}: holds no transforms_val.json or transforms_test.json, so no view is held out")
    split.setdefault("val", split.get("test", []))
    split.setdefault("test", split["val"])

    height, width = image_size(frames[0].path)
    focal = 0.5 * width / np.tan(0.5 * np.array(angles))
    middle = np.ones_like(focal)
    intrinsics = np.stack([focal, focal, middle * width / 2, middle * height / 2], axis=1)
    images = load_images([frame.path for frame in frames], "white" if white else "black", factor)
    sizes = np.tile([height, width], (len(frames), 1))
    intrinsics = scale_intrinsics(intrinsics, sizes, *images.shape[1:3], source=str(frames[0].path))
    depths = (near or BLENDER_DEPTHS[0], far or BLENDER_DEPTHS[1])
    return Scene(
        images=images,
        cameras=_cameras(np.stack([frame.pose for frame in frames]), intrinsics, images, depths, False),
        names=[frame.name for frame in frames],
        **split,
        white_background=white,
        protocol=_protocol("blender", factor, None, white, depths, 1.0),
    )


def _read_nerfstudio(root: Path, factor: int, hold: int, white: bool, near: float | None, far: float | None) -> Scene:
    source = root / "transforms.json"
    meta, frames = read_frames(source)
    frames.sort(key=lambda frame: frame.name)
    split = own_split(meta, frames, source)
    used_hold = None if split else hold
    if split is None:
        train, held = hold_out(len(frames), hold)
        split = {"train": train, "val": held, "test": list(held)}
    calibrations = [frame.calibration(source) for frame in frames]
    intrinsics, distortion, sizes = (np.array(values) for values in zip(*calibrations, strict=True))

    poses, scale, depths = _normalised(np.stack([frame.pose for frame in frames]), near)
    depths = (scale * near if near else depths[0], scale * far if far else depths[1])

    small = [_resized(frame.path, root, factor) for frame in frames]
    if factor > 1 and all(path.is_file() for path in small):
        paths, shrink = small, 1
    else:
        paths, shrink = [frame.path for frame in frames], factor
    transparent = has_alpha(paths[0])
    images = load_images(paths, "white" if white else "black", shrink)
    intrinsics = scale_intrinsics(intrinsics, sizes, *images.shape[1:3], source=str(source))
    return Scene(
        images=images,
        cameras=_cameras(poses, intrinsics, images, depths, looks_one_way(poses), distortion),
        names=[frame.name for frame in frames],
        **split,
        white_background=white and transparent,
        protocol=_protocol("nerfstudio", factor, used_hold, white and transparent, depths, scale),
    )


def _cameras(
    poses: Array,
    intrinsics: Array,
    images: Tensor,
    depths: tuple[float, float],
    forward_facing: bool,
    distortion: Array | None = None,
) -> Cameras:
    near, far = depths
    if near >= far:
        raise UserError(f"near {near:g}, far {far:g} (after scaling): near < far is expected")
    return Cameras(
        cam_to_world=to_tensor(poses),
        intrinsics=to_tensor(intrinsics),
        height=images.shape[1],
        width=images.shape[2],
        near=near,
        far=far,
        forward_facing=forward_facing,
        distortion=to_tensor(distortion) if distortion is not None and distortion.any() else None,
    )


def _normalised(poses: Array, near: float | None) -> tuple[Array, float, tuple[float, float]]:
    """Poses in the frame that `read_transforms` describes, their scale, and the depths that go with it."""
    if not looks_one_way(poses):
        return *inward(poses), INWARD_DEPTHS
    poses = recentre(poses)
    reach = np.linalg.norm(poses[:, :, 3], axis=1).max()
    if reach < 1e-9:
        raise UserError("all cameras stand at one point; a scene needs photographs from several places")
    scale = float(FORWARD_DEPTHS[0] / near if near else FORWARD_REACH / reach)
    if not near:
        log.warning(
            "the views look one way and their depths are not known: nothing is taken to be nearer than %.3g in the "
            "units of transforms.json; set near if that is wrong",
            FORWARD_DEPTHS[0] / scale,
        )
    poses[:, :, 3] *= scale
    return poses, scale, FORWARD_DEPTHS


def _resized(path: Path, root: Path, factor: int) -> Path:
    """Where nerfstudio keeps the smaller twin of `path`: images/a.png → images_4/a.png."""
    folder = path.parent
    return path if folder == root else folder.with_name(f"{folder.name}_{factor}") / path.name


def _protocol(
    format: str, factor: int, hold: int | None, white: bool, depths: tuple[float, float], scale: float
) -> dict[str, Any]:
    return {
        "format": format,
        "factor": factor,
        "hold": hold,
        "background": "white" if white else "black",
        "near": depths[0],
        "far": depths[1],
        "scale": scale,
    }
