"""LLFF scenes: `poses_bounds.npy` beside `images/`, `images_4/`, `images_8/`."""

import logging
import os
import zipfile
from pathlib import Path

import numpy as np

from sinelr_lightning.datamodules.images import downsampled, list_images, load_images
from sinelr_lightning.datamodules.poses import Array, hold_out, looks_one_way, recentre, scale_intrinsics, to_tensor
from sinelr_lightning.datamodules.scene import Cameras, Scene
from sinelr_lightning.errors import UserError

__all__ = ["read_llff"]

log = logging.getLogger(__name__)

FILE_NAME = "poses_bounds.npy"


def read_llff(root: str | os.PathLike[str], factor: int | None = 1, hold: int = 8, bd_factor: float = 0.75) -> Scene:
    """Read a forward-facing LLFF scene as the original NeRF reads it.

    Each of the N rows of `poses_bounds.npy` [N, 17] is a matrix [3, 5] and the nearest and farthest depth that the
    view sees. The matrix has the columns down, right, backward, position and (height, width, focal length), the last
    in pixels of the full-size image. With s = 1 / (smallest bound · bd_factor):

        axes      = (right, -down, backward)
        position  = s · position, then all poses are seen from their average pose (`poses.recentre`)
        near, far = 0.9 · s · smallest bound, s · largest bound
        fx, cx    = focal · W / width, W / 2 for loaded images of W × H pixels; fy, cy likewise

    Every `hold`-th view from the first one on is held out, as `val` and `test` alike.

    Three cameras that look along -z from x = 0, 4 and 8, with bounds from 4 to 40: s = 1/3, so they come to stand at
    x = -4/3, 0 and 4/3 with rotation I, near = 1.2 and far = 40/3. NDC needs near ≥ 1, and has it.

    Args:
        root: folder with `poses_bounds.npy` and `images/` or `images_{factor}/`.
        factor: how much smaller than `images/` the images are; `images_{factor}` is made if it is missing.
        hold: every how many-th view is held out.
        bd_factor: the smallest bound becomes 1 / bd_factor.

    Returns:
        the scene, `forward_facing=True`.

    Raises:
        UserError: anything about the files or the arguments that a user can put right; nothing is written before
            the poses and their count are known to be good.

    Source: Mildenhall et al., Local Light Field Fusion, 2019, and NeRF, 2020 (`load_llff.py`).
    """
    root = Path(root)
    if not bd_factor > 0:
        raise UserError(f"bd_factor: {bd_factor}; it must be greater than 0")
    table = _load_table(root)
    poses, sizes, focal, bounds = _parse(table, root / FILE_NAME)
    train, held = hold_out(len(poses), hold)
    paths = _image_paths(root, factor, len(poses))
    images = load_images(paths)
    height, width = images.shape[1:3]

    intrinsics = np.stack([focal, focal, sizes[:, 1] / 2, sizes[:, 0] / 2], axis=1)
    scale = 1 / (bounds.min() * bd_factor)
    poses[:, :, 3] *= scale
    poses = recentre(poses)
    if not looks_one_way(poses):
        log.warning("%s: the views look in several directions; LLFF scenes are read as forward-facing", root)
    cameras = Cameras(
        cam_to_world=to_tensor(poses),
        intrinsics=to_tensor(scale_intrinsics(intrinsics, sizes, height, width, str(root / FILE_NAME))),
        height=height,
        width=width,
        near=float(0.9 * scale * bounds.min()),
        far=float(scale * bounds.max()),
        forward_facing=True,
    )
    return Scene(
        images=images,
        cameras=cameras,
        names=[path.name for path in paths],
        train=train,
        val=held,
        test=list(held),
        white_background=False,
        protocol={"format": "llff", "factor": factor or 1, "hold": hold, "bd_factor": bd_factor},
    )


def _load_table(root: Path) -> Array:
    """`poses_bounds.npy` as float64 [N, 17], all finite."""
    path = root / FILE_NAME
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    try:
        table = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; an LLFF scene needs it") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: is truncated or is no NumPy array file ({error})") from error
    if not isinstance(table, np.ndarray) or table.ndim != 2 or table.shape[1] != 17:
        shape = list(table.shape) if isinstance(table, np.ndarray) else "no single array"
        raise UserError(f"{path}: has shape {shape}; [N, 17] is expected, 15 pose numbers and 2 bounds a view")
    if not np.can_cast(table.dtype, np.float64):
        raise UserError(f"{path}: holds {table.dtype}; real numbers are expected")
    bad = np.flatnonzero(~np.isfinite(table).all(axis=1))
    if len(bad):
        raise UserError(f"{path}: view {bad[0]} has a number that is not finite")
    return table.astype(np.float64)


def _parse(table: Array, path: Path) -> tuple[Array, Array, Array, Array]:
    """Poses [N, 3, 4] in OpenGL axes, sizes [N, 2] (height, width), focal lengths [N], bounds [N, 2]."""
    matrices, bounds = table[:, :15].reshape(-1, 3, 5), table[:, 15:]
    sizes, focal = matrices[:, :2, 4], matrices[:, 2, 4]
    bad = np.flatnonzero((matrices[:, :, 4] <= 0).any(axis=1))
    if len(bad):
        raise UserError(f"{path}: view {bad[0]} has a height, width or focal length that is not positive")
    bad = np.flatnonzero((bounds[:, 0] <= 0) | (bounds[:, 0] >= bounds[:, 1]))
    if len(bad):
        near, far = bounds[bad[0]]
        raise UserError(f"{path}: view {bad[0]} has bounds {near:g} and {far:g}; 0 < near < far is expected")
    down, right, backward, position = (matrices[:, :, column] for column in range(4))
    return np.stack([right, -down, backward, position], axis=2), sizes, focal, bounds


def _image_paths(root: Path, factor: int | None, count: int) -> list[Path]:
    """The `count` images; their number is checked before `images_{factor}` is made."""
    full = root / "images"
    listed = list_images(full if full.is_dir() else downsampled(full, factor))
    if len(listed) != count:
        raise UserError(f"{root / FILE_NAME}: holds {count} poses, but {listed[0].parent} holds {len(listed)} images")
    return list_images(downsampled(full, factor))
