"""Scenes reconstructed by COLMAP: `sparse/0/` beside `images/`."""

import logging
import os
from pathlib import Path

import numpy as np

from sinelr_lightning.datamodules.colmap_model import ColmapModel, read_model
from sinelr_lightning.datamodules.images import downsampled, list_images, load_images
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
from sinelr_lightning.errors import UserError

__all__ = ["read_colmap"]

log = logging.getLogger(__name__)

NEAREST = 1 / 0.75
PERCENTILES = (0.1, 99.9)


def read_colmap(root: str | os.PathLike[str], factor: int | None = 1, hold: int = 8) -> Scene:
    """Read the registered photographs of a COLMAP model, text or binary.

    COLMAP's world-to-camera rotation R and translation t in OpenCV axes become camera to world in OpenGL axes: axes
    Rᵀ·diag(1, -1, -1), position -Rᵀ·t. The camera with quaternion (1, 0, 0, 0) and t = (0, 0, 5) stands at (0, 0, -5)
    and looks along +z, with right (1, 0, 0), up (0, -1, 0) and backward (0, 0, -1).

    Depths: of the 3D points that a photograph sees, the 0.1 and 99.9 percentiles; over all photographs the smallest
    and the largest of these are n and f. Then

    - cameras that all look one way (within 45° of their mean): recentred on their average pose and scaled by
      s = 1 / (0.75 n), as `read_llff` does;
    - others: the point they look at becomes the origin, z is up, the farthest camera stands at distance 1
      (`poses.inward`), which gives s;

    and near = 0.9·s·n, far = s·f. Views are sorted by name and every `hold`-th from the first one on is held out.

    Args:
        root: folder with `sparse/0/` or `sparse/`, and `images/` or `images_{factor}/`.
        factor: how much smaller than `images/` the images are; `images_{factor}` is made if it is missing. Images in
            it may have other names, as long as they sort alike.
        hold: every how many-th view is held out.

    Returns:
        the scene; `protocol` also says the scale s.

    Raises:
        UserError: anything about the files or the arguments that a user can put right; camera models other than
            SIMPLE_PINHOLE, PINHOLE, SIMPLE_RADIAL, RADIAL and OPENCV are refused by name.
    """
    root = Path(root)
    folder = next((f for f in (root / "sparse" / "0", root / "sparse") if f.is_dir()), None)
    if folder is None:
        raise UserError(f"{root}: no such folder with sparse/0/ or sparse/ in it")
    model = read_model(folder)
    train, held = hold_out(len(model.images), hold)
    world_to_camera = np.stack([image.world_to_camera() for image in model.images])
    nearest, farthest = _depths(model, world_to_camera, folder)
    poses, scale, forward_facing = _normalised(_camera_to_world(world_to_camera), nearest)

    lenses = [model.cameras[image.camera] for image in model.images]
    sizes = np.array([[lens.height, lens.width] for lens in lenses], dtype=np.float64)
    distortion = np.array([lens.distortion() for lens in lenses])
    images = load_images(_image_paths(root, factor, [image.name for image in model.images]))
    height, width = images.shape[1:3]
    intrinsics = np.array([lens.intrinsics() for lens in lenses])
    cameras = Cameras(
        cam_to_world=to_tensor(poses),
        intrinsics=to_tensor(scale_intrinsics(intrinsics, sizes, height, width, str(folder))),
        height=height,
        width=width,
        near=0.9 * scale * nearest,
        far=scale * farthest,
        forward_facing=forward_facing,
        distortion=to_tensor(distortion) if distortion.any() else None,
    )
    return Scene(
        images=images,
        cameras=cameras,
        names=[image.name for image in model.images],
        train=train,
        val=held,
        test=list(held),
        white_background=False,
        protocol={"format": "colmap", "factor": factor or 1, "hold": hold, "scale": scale},
    )


def _camera_to_world(world_to_camera: Array) -> Array:
    """OpenGL camera to world [N, 3, 4] from OpenCV world to camera [N, 3, 4]."""
    inverse = world_to_camera[:, :, :3].transpose(0, 2, 1)
    return np.concatenate([inverse * np.array([1.0, -1.0, -1.0]), -inverse @ world_to_camera[:, :, 3:]], axis=2)


def _depths(model: ColmapModel, world_to_camera: Array, folder: Path) -> tuple[float, float]:
    """Smallest and largest depth, over all photographs, of the percentiles of the points that each one sees."""
    ranges = []
    for image, (*_, forward) in zip(model.images, world_to_camera, strict=True):
        seen = np.array([model.points[key] for key in image.points.tolist() if key in model.points]).reshape(-1, 3)
        depths = seen @ forward[:3] + forward[3]
        depths = depths[depths > 0]  # a mismatched point can lie behind the camera
        if len(depths):
            ranges.append(np.percentile(depths, PERCENTILES))
    if not ranges:
        raise UserError(
            f"{folder}: no photograph sees any 3D point, so near and far cannot be told; triangulate first"
        )
    nearest, farthest = np.min(ranges), np.max(ranges)
    return float(nearest), float(farthest)


def _normalised(poses: Array, nearest: float) -> tuple[Array, float, bool]:
    """Poses in the frame that `read_colmap` describes, their scale, and whether they all look one way."""
    if not looks_one_way(poses):
        return *inward(poses), False
    scale = NEAREST / nearest
    poses = recentre(poses)
    poses[:, :, 3] *= scale
    return poses, scale, True


def _image_paths(root: Path, factor: int | None, names: list[str]) -> list[Path]:
    """Files of the registered images `names`; those on disk that are not registered are listed in a warning."""
    full = root / "images"
    if full.is_dir():
        listed = [path.relative_to(full).as_posix() for path in list_images(full)]
        wanted = names
    else:  # images_{factor} alone: its files may have other suffixes than the photographs had
        small = downsampled(full, factor)
        listed = [path.relative_to(small).with_suffix("").as_posix() for path in list_images(small)]
        wanted = [Path(name).with_suffix("").as_posix() for name in names]
    on_disk = set(listed)
    missing = [name for name, key in zip(names, wanted, strict=True) if key not in on_disk]
    if missing:
        raise UserError(f"{missing[0]}: registered by COLMAP, but not among the images of {root}")
    left_out = sorted(on_disk - set(wanted))
    if left_out:
        log.warning("%d images of %s are not registered and left out: %s", len(left_out), root, ", ".join(left_out))
    files = dict(zip(listed, list_images(downsampled(full, factor)), strict=True))
    return [files[key] for key in wanted]
