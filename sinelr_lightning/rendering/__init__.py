"""Volume rendering as pure functions on tensors; what is rendered is a callback.

The original way, coarse and fine, in the words of these functions (`field` and `fine` are the two networks):

    origins, directions = pixel_rays(cam_to_world, intrinsics, pixels)
    t = stratified(near, far, 64, origins, generator)
    coarse = render_rays(field, origins, directions, edges_after(t, far), positions=t)
    new = sample_pdf(midpoints(t), coarse.weights[..., 1:-1], 128, generator)
    t = merge(t, new)
    final = render_rays(fine, origins, directions, edges_after(t, far), positions=t)

and with proposal sampling (`proposal` is a small network whose colour nobody looks at):

    edges = edges_around(stratified(near, far, 64, origins, generator), near, far)
    first = render_rays(proposal, origins, directions, edges)
    new = edges_around(sample_pdf(edges, first.weights, 32, generator, padding=0.01), near, far)
    final = render_rays(field, origins, directions, new)
    loss = loss + interlevel_loss(new, final.weights, edges, first.weights)
"""

from sinelr_lightning.rendering.confusion import confusion_picture
from sinelr_lightning.rendering.image import depth_image, save_png, side_by_side, to_uint8
from sinelr_lightning.rendering.ndc import ndc_depth_to_depth, ndc_rays
from sinelr_lightning.rendering.paths import look_at, orbit_path, spiral_path
from sinelr_lightning.rendering.rays import distort, image_rays, pixel_rays, undistort
from sinelr_lightning.rendering.sampling import (
    edges_after,
    edges_around,
    merge,
    midpoints,
    sample_pdf,
    stratified,
)
from sinelr_lightning.rendering.video import save_video
from sinelr_lightning.rendering.volume import (
    Field,
    Rendered,
    composite,
    distortion_loss,
    interlevel_loss,
    render_rays,
    volume_weights,
)

__all__ = [
    "Field",
    "Rendered",
    "composite",
    "confusion_picture",
    "depth_image",
    "distort",
    "distortion_loss",
    "edges_after",
    "edges_around",
    "image_rays",
    "interlevel_loss",
    "look_at",
    "merge",
    "midpoints",
    "ndc_depth_to_depth",
    "ndc_rays",
    "orbit_path",
    "pixel_rays",
    "render_rays",
    "sample_pdf",
    "save_png",
    "save_video",
    "side_by_side",
    "spiral_path",
    "stratified",
    "to_uint8",
    "undistort",
    "volume_weights",
]
