"""Camera poses and intrinsics as the readers of posed photographs need them.

Everything here is float64 numpy. A pose is camera to world, [3, 4], in OpenGL axes (x right, y up, z backward):
columns right, up, backward, position.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from sinelr_lightning.errors import UserError

__all__ = ["average_pose", "hold_out", "inward", "looks_one_way", "recentre", "scale_intrinsics", "to_tensor"]

Array = NDArray[np.float64]

ASPECT_TOLERANCE = 0.01
SAME_WAY_DEGREES = 45.0


def average_pose(poses: Array) -> Array:
    """The pose [3, 4] in the middle of `poses` [N, 3, 4]: mean position, z along the sum of the z axes.

    up = Σ y axes, x = up × z and y = z × x, each normalised. Two cameras at the origin with y up, one looking along
    -z (z axis (0, 0, 1)), one along -x (z axis (1, 0, 0)): z = (1, 0, 1)/√2, x = (1, 0, -1)/√2, y = (0, 1, 0).

    Raises:
        UserError: the cameras look in opposite directions, so that no average exists.
    """
    z = _unit(poses[:, :, 2].sum(0))
    x = _unit(np.cross(poses[:, :, 1].sum(0), z))
    return np.stack([x, np.cross(z, x), z, poses[:, :, 3].mean(0)], axis=1)


def recentre(poses: Array) -> Array:
    """`poses` [N, 3, 4] as seen from their average pose, which becomes the identity.

    Three cameras that look along -z from x = 0, 4 and 8 come to stand at x = -4, 0 and 4.
    """
    centre = average_pose(poses)
    rotation = centre[:, :3].T
    return np.concatenate([rotation @ poses[:, :, :3], rotation @ (poses[:, :, 3:] - centre[:, 3:])], axis=2)


def inward(poses: Array) -> tuple[Array, float]:
    """Cameras around a subject, brought to one frame: subject at the origin, z up, farthest camera at distance 1.

    The subject is the point nearest to all optical axes in the least-squares sense; up is the mean of the cameras'
    y axes. Cameras at (4, 0, 0) and (0, 0, 2), both looking at the origin with y up, come to distances 1 and 0.5 and
    height 0; the scale is 0.25.

    Returns:
        poses [N, 3, 4] in the new frame, and the factor that distances were multiplied by.

    Raises:
        UserError: all cameras stand at one point.
    """
    rotation = _turn_to_z(poses[:, :, 1].sum(0))
    offsets = poses[:, :, 3] - _focus(poses)
    farthest = np.linalg.norm(offsets, axis=1).max()
    if np.ptp(poses[:, :, 3], axis=0).max() <= 1e-9 * max(1.0, farthest):
        raise UserError("all cameras stand at one point; a scene needs photographs from several places")
    offsets = offsets @ rotation.T / farthest
    return np.concatenate([rotation @ poses[:, :, :3], offsets[:, :, None]], axis=2), float(1 / farthest)


def looks_one_way(cam_to_world: ArrayLike | Tensor) -> bool:
    """True if every viewing direction of `cam_to_world` [N, 3, 4] lies within 45° of their mean (forward-facing)."""
    backward = np.asarray(cam_to_world, dtype=np.float64)[:, :, 2]
    mean = backward.sum(0)
    length = np.linalg.norm(mean)
    if length < 1e-9 * len(backward):
        return False
    cosines = backward @ mean / (length * np.linalg.norm(backward, axis=1))
    return bool(cosines.min() >= np.cos(np.radians(SAME_WAY_DEGREES)))


def scale_intrinsics(intrinsics: Array, sizes: Array, height: int, width: int, source: str) -> Array:
    """Intrinsics [N, 4] (fx, fy, cx, cy) given at `sizes` [N, 2] (height, width), for images of height × width.

    fx = 3260 at width 4032 is 407.5 at width 504.

    Raises:
        UserError: an aspect ratio differs by more than 1 % and a pixel: the images were cropped, or are others;
            `source` names the file that the sizes stand in.
    """
    widths = height * sizes[:, 1] / sizes[:, 0]
    wrong = np.flatnonzero(np.abs(widths - width) > max(1, ASPECT_TOLERANCE * width))  # shrinking rounds to pixels
    if len(wrong):
        h, w = sizes[wrong[0]]
        raise UserError(
            f"{source}: is for images of {w:g} × {h:g} pixels, but the images have {width} × {height}, "
            "another aspect ratio; use the images that the poses were made for"
        )
    x, y = width / sizes[:, 1], height / sizes[:, 0]
    return intrinsics * np.stack([x, y, x, y], axis=1)


def hold_out(count: int, hold: int) -> tuple[list[int], list[int]]:
    """Indices (train, held out) of `count` views: every `hold`-th from the first one on is held out.

    20 views with hold 8: 0, 8 and 16 are held out, 17 remain.

    Raises:
        UserError: hold < 2 or count < 2, so that one of the two sets would be empty.
    """
    if hold < 2:
        raise UserError(f"hold: {hold}; it must be 2 or more, or no view is left to train on")
    if count < 2:
        raise UserError(f"number of views: {count}; at least 2 are needed, one to train on and one held out")
    held = list(range(0, count, hold))
    return [index for index in range(count) if index % hold], held


def to_tensor(array: ArrayLike | Sequence[ArrayLike]) -> Tensor:
    """float32 tensor of `array`."""
    return torch.as_tensor(np.asarray(array), dtype=torch.float32)


def _unit(vector: Array) -> Array:
    length = np.linalg.norm(vector)
    if length < 1e-9:
        raise UserError(
            "the cameras' axes cancel out, so they have no average pose; this is no forward-facing capture"
        )
    return vector / length


def _focus(poses: Array) -> Array:
    """The point p with the least Σ |(I - z zᵀ)(p - position)|²; on the axes' common line, nearest their middle."""
    z = poses[:, :, 2]
    across = np.eye(3) - z[:, :, None] * z[:, None, :]
    middle = poses[:, :, 3].mean(0)
    pull = (across @ (poses[:, :, 3] - middle)[:, :, None]).sum(0)[:, 0]
    return middle + np.linalg.lstsq(across.sum(0), pull, rcond=1e-9)[0]


def _turn_to_z(up: Array) -> Array:
    """The smallest rotation [3, 3] that brings `up` to (0, 0, 1); the identity if `up` has no length."""
    length = np.linalg.norm(up)
    if length < 1e-9:
        return np.eye(3)
    x, y, z = up / length
    if z < -1 + 1e-9:
        return np.diag([1.0, -1.0, -1.0])
    cross = np.array([[0, 0, -x], [0, 0, -y], [x, y, 0]])  # of the axis up × (0, 0, 1)
    return np.eye(3) + cross + cross @ cross / (1 + z)
