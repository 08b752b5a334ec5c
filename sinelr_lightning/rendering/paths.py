"""Camera paths for videos, made from the cameras of a scene.

Axes are OpenGL's: a camera looks along its own -z, y is up. Paths are closed: the frame after the last is the first.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sinelr_lightning.errors import UserError

__all__ = ["look_at", "orbit_path", "spiral_path"]


def look_at(positions: Tensor, targets: Tensor, up: Tensor) -> Tensor:
    """Camera-to-world matrices of cameras that look at targets.

    `z = (p - target)/|p - target|,  x = up × z/|up × z|,  y = z × x`, a right-handed rotation [x y z].

    Worked numbers: p = (0, 0, 4), target (0, 0, 0), up (0, 1, 0): no rotation, position (0, 0, 4).

    Args:
        positions, targets, up: [..., 3], in scene units; `up` of any length, not along the line of sight.

    Returns:
        [..., 3, 4].
    """
    backward = normalize(positions - targets, dim=-1)
    right = normalize(torch.linalg.cross(up.expand_as(backward), backward), dim=-1)
    return torch.stack([right, torch.linalg.cross(backward, right), backward, positions], dim=-1)


def spiral_path(
    cam_to_world: Tensor,
    near: float,
    far: float,
    frames: int = 120,
    *,
    turns: int = 2,
    z_rate: float = 0.5,
    percentile: float = 0.9,
) -> Tensor:
    """A spiral around the mean camera of a forward-facing scene, looking at one point.

    In the frame of the mean camera, with radii r (the given percentile of the cameras' offsets along each axis),

        p(θ) = (r_x·cos θ, -r_y·sin θ, -r_z·sin(z_rate·θ)),    θ from 0 to 2π·turns,

    and all frames look at the point at depth `f = 1/(0.25/(0.9·near) + 0.75/(5·far))` on the mean camera's axis. The
    path closes if turns·z_rate is whole, as by default.

    Worked numbers: near = 1, far = 10: f = 3.4156. Source: the spiral of Mildenhall et al. 2019 (LLFF), as the 2020
    paper's videos use it.

    Args:
        cam_to_world: [N, 3, 4].
        near, far: depth range of the scene, in its units; far may be `inf`.
        frames: F.
        turns, z_rate, percentile: shape of the spiral, see above.

    Returns:
        [F, 3, 4].
    """
    axes, positions = cam_to_world[:, :, :3], cam_to_world[:, :, 3]
    centre, up, backward = positions.mean(0), axes[..., 1].sum(0), axes[..., 2].sum(0)
    mean = look_at(centre, centre - backward, up)
    offsets = (positions - centre) @ mean[:, :3]
    radii = torch.quantile(offsets.abs(), percentile, dim=0)

    angle = _angles(frames, cam_to_world) * turns
    spiral = torch.stack([angle.cos(), -angle.sin(), -(angle * z_rate).sin()], dim=-1)
    path = centre + (spiral * radii) @ mean[:, :3].T
    depth = 1 / (0.25 / (0.9 * near) + 0.75 / (5 * far))
    return look_at(path, centre - depth * mean[:, 2], up)


def orbit_path(cam_to_world: Tensor, frames: int = 120) -> Tensor:
    """A circle around what inward-looking cameras look at, with their mean radius and height.

    - centre: the point c closest to all optical axes (positions p, directions d), from
      `Σ (I - d·dᵀ)·(c - p) = 0`;
    - up: the direction that is most nearly perpendicular to all cameras' x axes, which photographers keep level (it
      holds also for half an orbit, where the mean of the y axes leans), on the side of the mean y axis;
    - radius and height: means of the distance to the axis through c and of the height above c.

    It starts beside the first camera and goes counter-clockwise seen from above.

    Worked numbers: cameras at (±2, 0, 1) and (0, ±4, 2) that look at the origin, z up: radius 3, height 1.5.

    Args:
        cam_to_world: [N, 3, 4].
        frames: F.

    Returns:
        [F, 3, 4].

    Raises:
        UserError: the cameras are parallel or look outward, so that there is nothing to go around.
    """
    cameras = cam_to_world.double()
    axes, positions = cameras[:, :, :3], cameras[:, :, 3]
    centre = _closest_point(positions, -axes[..., 2])
    right, lean = axes[..., 0], axes[..., 1].mean(0)
    # the small second term decides where level x axes alone do not, as when all of them are parallel
    level = right.T @ right / len(right) - 1e-4 * torch.outer(lean, lean)
    up = torch.linalg.eigh(level).eigenvectors[:, 0]
    up = up * torch.sign(up @ lean)

    heights = (positions - centre) @ up
    radius = (positions - centre - heights[:, None] * up).norm(dim=-1).mean()
    start = normalize(torch.linalg.cross(right[0], up), dim=-1)
    angle = _angles(frames, cameras)[:, None]
    around = angle.cos() * start + angle.sin() * torch.linalg.cross(up, start)
    return look_at(centre + heights.mean() * up + radius * around, centre, up).to(cam_to_world.dtype)


def _closest_point(positions: Tensor, directions: Tensor) -> Tensor:
    """The point [3] with the least sum of squared distances to N lines."""
    identity = torch.eye(3, dtype=positions.dtype, device=positions.device)
    across = identity - directions[:, :, None] * directions[:, None, :]
    total = across.mean(0)
    if torch.linalg.eigvalsh(total)[0] < 1e-5:
        raise UserError("an orbit needs cameras that look inward; these are parallel: a spiral path fits them")
    point = torch.linalg.solve(total, (across @ positions[:, :, None]).mean(0)[:, 0])
    if ((point - positions) * directions).sum(-1).mean() <= 0:
        raise UserError("an orbit needs cameras that look inward; these look outward, away from each other")
    return point


def _angles(frames: int, like: Tensor) -> Tensor:
    return torch.arange(frames, dtype=like.dtype, device=like.device) * (2 * math.pi / frames)
