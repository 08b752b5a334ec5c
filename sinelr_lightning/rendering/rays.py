"""Rays through pixels of pinhole cameras with OpenCV's four-term lens distortion.

Camera axes are OpenGL's (x right, y up, z backward); pixel (column c, row r) has its centre at (c + 0.5, r + 0.5).
"""

import torch
from torch import Tensor

__all__ = ["distort", "image_rays", "pixel_rays", "undistort"]

_NEWTON_STEPS = 8  # doubles the correct digits each time: float64 converges from distortions of tens of percent


def pixel_rays(
    cam_to_world: Tensor, intrinsics: Tensor, pixels: Tensor, distortion: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Rays `r(t) = o + t·d` through the centres of pixels.

    In the camera's frame `d = ((c + 0.5 - cx)/fx, -(r + 0.5 - cy)/fy, -1)`, then rotated into the world. Because its
    z is -1, d is not a unit vector and **t is the depth along the optical axis**, in scene units.

    Worked numbers: a camera at (0, 0, 4) without rotation, fx = fy = 2, cx = cy = 2, pixel (3, 0):
    d = (0.75, 0.75, -1), so at t = 4 the ray is at (3, 3, 0). Source: Mildenhall et al. 2020, section 4.

    Args:
        cam_to_world: [..., 3, 4], rotation and position.
        intrinsics: [..., 4], fx, fy, cx, cy in pixels.
        pixels: [..., 2], integer (column, row); the half pixel to the centre is added here.
        distortion: [..., 4], OpenCV's k1, k2, p1, p2, or None. Leading shapes broadcast.

    Returns:
        origins [..., 3] (an expanded view of `cam_to_world`) and directions [..., 3].
    """
    plane = (pixels + 0.5 - intrinsics[..., 2:]) / intrinsics[..., :2]
    if distortion is not None:
        plane = undistort(plane, distortion)
    x, y = plane[..., :1], plane[..., 1:]
    directions = cam_to_world[..., 0] * x - cam_to_world[..., 1] * y - cam_to_world[..., 2]
    return cam_to_world[..., 3].expand_as(directions), directions


def image_rays(
    cam_to_world: Tensor, intrinsics: Tensor, height: int, width: int, distortion: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`pixel_rays` of every pixel of one camera, row by row.

    Args:
        cam_to_world: [3, 4]. intrinsics: [4]. distortion: [4] or None.
        height, width: image size in pixels.

    Returns:
        origins and directions, each [height, width, 3]. Worked numbers: with fx = fy = 2, cx = 2, cy = 1, an image of
        2 × 4 has directions (-0.75, 0.25, -1) at row 0, column 0 and (0.75, -0.25, -1) at row 1, column 3.
    """
    rows = torch.arange(height, device=cam_to_world.device)
    columns = torch.arange(width, device=cam_to_world.device)
    pixels = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    return pixel_rays(cam_to_world, intrinsics, pixels, distortion)


def distort(plane: Tensor, distortion: Tensor) -> Tensor:
    """Move ideal points on the image plane to where the lens puts them.

    With ρ = x² + y² and a = 1 + k1·ρ + k2·ρ²,  `x' = a·x + 2·p1·x·y + p2·(ρ + 2x²)`  and
    `y' = a·y + p1·(ρ + 2y²) + 2·p2·x·y`. Worked numbers: (0.5, 0.5) under k1 = 0.1, p1 = 0.01 becomes (0.53, 0.535).
    Source: OpenCV's calib3d module, "camera calibration and 3D reconstruction".

    Args:
        plane: [..., 2], (x right, y **down**) at depth 1, so in units of the focal length.
        distortion: [..., 4], k1, k2, p1, p2.

    Returns:
        [..., 2], distorted points in the same units.
    """
    x, y = plane.unbind(-1)
    k1, k2, p1, p2 = distortion.unbind(-1)
    squared = x * x + y * y
    radial = 1 + squared * (k1 + squared * k2)
    across = 2 * x * y
    return torch.stack(
        [
            x * radial + p1 * across + p2 * (squared + 2 * x * x),
            y * radial + p1 * (squared + 2 * y * y) + p2 * across,
        ],
        dim=-1,
    )


def undistort(plane: Tensor, distortion: Tensor) -> Tensor:
    """Inverse of `distort` by a fixed number of Newton steps from the distorted point itself.

    Worked numbers: (0.53, 0.535) under k1 = 0.1, p1 = 0.01 goes back to (0.5, 0.5), to rounding. The lens model has
    an inverse only inside the radius where it stops growing (ρ < 1/(3·|k1|) for k1 < 0 alone); points beyond it give
    finite but meaningless results.

    Args:
        plane: [..., 2], distorted (x right, y down) at depth 1.
        distortion: [..., 4], k1, k2, p1, p2.

    Returns:
        [..., 2], ideal points in the same units.
    """
    k1, k2, p1, p2 = distortion.unbind(-1)
    ideal = plane
    for _ in range(_NEWTON_STEPS):
        x, y = ideal.unbind(-1)
        error_x, error_y = (distort(ideal, distortion) - plane).unbind(-1)
        squared = x * x + y * y
        radial = 1 + squared * (k1 + squared * k2)
        slope = 2 * (k1 + 2 * k2 * squared)  # d radial / dx = slope·x
        xx = radial + slope * x * x + 2 * p1 * y + 6 * p2 * x
        xy = slope * x * y + 2 * p1 * x + 2 * p2 * y
        yy = radial + slope * y * y + 6 * p1 * y + 2 * p2 * x
        determinant = (xx * yy - xy * xy).clamp(min=0.05)  # a fold has none: keep the step finite
        step = torch.stack([yy * error_x - xy * error_y, xx * error_y - xy * error_x], dim=-1)
        ideal = ideal - step / determinant[..., None]
    return ideal
