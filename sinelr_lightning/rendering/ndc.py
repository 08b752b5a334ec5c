"""Normalised device coordinates: an unbounded forward-facing scene squeezed into the cube [-1, 1]³."""

import torch
from torch import Tensor

__all__ = ["ndc_depth_to_depth", "ndc_rays"]


def ndc_rays(
    origins: Tensor,
    directions: Tensor,
    focal_x: float | Tensor,
    focal_y: float | Tensor,
    height: int,
    width: int,
    near: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Rays of the projected space, whose t' runs from 0 at the plane z = -near to 1 at infinity.

    The origin is first moved along the ray to z = -near; then, with s = (2·fx/W, 2·fy/H),

        o' = (-s_x·o_x/o_z,  -s_y·o_y/o_z,  1 + 2·near/o_z)
        d' = (-s_x·(d_x/d_z - o_x/o_z),  -s_y·(d_y/d_z - o_y/o_z),  -2·near/o_z)

    so that o' + t'·d' is the projection of o + t·d with t' = 1 - o_z/(o_z + t·d_z), and even steps of t' are even
    steps of disparity. The principal point does not enter: the rays already contain it, and an image centre that is
    off only means that the rays leave the cube a little on one side.

    Worked numbers: o = (0, 0, 0), d = (0.5, 0, -1), fx = fy = 2, 4 × 4 pixels, near = 1: o' = (0.5, 0, -1) and
    d' = (0, 0, 2). Source: Mildenhall et al. 2020, appendix C (there with one focal length).

    Args:
        origins, directions: [..., 3], in a world whose cameras all look roughly along -z (d_z < 0).
        focal_x, focal_y: focal lengths in pixels, numbers or [...].
        height, width: image size in pixels.
        near: distance of the near plane from z = 0, in scene units.

    Returns:
        origins and directions in NDC, each [..., 3].
    """
    ox, oy, oz = origins.unbind(-1)
    dx, dy, dz = directions.unbind(-1)
    slope_x, slope_y = dx / dz, dy / dz
    rise = -near - oz  # from the origin to the near plane, along z
    scale_x, scale_y = 2 * focal_x / width, 2 * focal_y / height
    x = (ox + rise * slope_x) / near  # -o_x/o_z of the moved origin
    y = (oy + rise * slope_y) / near
    ones = torch.ones_like(dz)
    moved = torch.stack([scale_x * x, scale_y * y, -ones], dim=-1)
    projected = torch.stack([-scale_x * (slope_x + x), -scale_y * (slope_y + y), 2 * ones], dim=-1)
    return moved, projected


def ndc_depth_to_depth(t: Tensor, origins: Tensor, directions: Tensor, near: float = 1.0) -> Tensor:
    """Metric t on the original ray of a position t' on its NDC ray.

    The point at t' has z = -near/(1 - t'), so `t = (-near/(1 - t') - o_z)/d_z`. With the directions of `pixel_rays`
    this is the depth along the camera's optical axis. t' = 1 is infinity; 1 - t' is held above the precision of the
    dtype, so the result stays finite.

    Worked numbers: o = (0, 0, 0.5), d = (0.2, 0, -1), near = 1: t' = 0 → t = 1.5, t' = 0.5 → t = 2.5, t' = 0.9 →
    t = 10.5. Source: Mildenhall et al. 2020, appendix C, solved for t.

    Args:
        t: [...] or [..., S], positions in [0, 1] on the NDC ray. With S, give origins and directions a dimension for
            it ([..., 1, 3]).
        origins, directions: [..., 3], the rays that were given to `ndc_rays`.
        near: as given to `ndc_rays`.

    Returns:
        The shape of t, in scene units.
    """
    remaining = (1 - t).clamp(min=torch.finfo(t.dtype).eps)
    return (-near / remaining - origins[..., 2]) / directions[..., 2]
