"""`sinelr render`: a camera flies through the scene of a checkpoint."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from sinelr_lightning.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from sinelr_lightning.datamodules.scene import Cameras
    from sinelr_lightning.tasks.nerf import NeRFTask

__all__ = ["render"]


def render(
    ckpt_path: str = "last",
    out: str = "video.mp4",
    path: Literal["auto", "spiral", "orbit"] = "auto",
    frames: int = 60,
    fps: int = 24,
    scale: float = 1.0,
    depth: bool = True,
    device: str = "auto",
) -> None:
    """Render a video, or numbered pictures, from a NeRF checkpoint along a camera path.

    Args:
        ckpt_path: A checkpoint, a run folder, or last or best for the newest run.
        out: Video (.mp4, .webp, .gif), or a folder for numbered PNGs.
        path: Camera path; auto takes a spiral for forward-facing scenes and an orbit for others.
        frames: Number of frames; the path closes, so the video loops.
        fps: Frames a second.
        scale: Size of the frames over that of the training pictures.
        depth: Put the depth map beside the colours, near bright.
        device: Where to render: auto, cpu, cuda, cuda:1 …
    """
    if frames < 1 or fps < 1:
        raise UserError(f"frames and fps must be at least 1, got {frames} and {fps}")
    if not 0 < scale <= 8:
        raise UserError(f"scale must be above 0 and at most 8, got {scale}")
    from sinelr_lightning.commands.loading import load
    from sinelr_lightning.layers import summarize
    from sinelr_lightning.rendering import save_video
    from sinelr_lightning.tasks.nerf import NeRFTask

    task = load(ckpt_path, NeRFTask, device)
    assert task.cameras is not None  # every checkpoint has them
    poses = camera_path(task.cameras, path, frames)
    try:
        written = save_video(out, _with_progress(_frames(task, poses, scale, depth), frames), fps)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error
    size = summarize(task)
    sys.stderr.write(f"{written}: {frames} frames, {size.parameters:,} parameters, {size.compression:.2%} of dense\n")


def camera_path(cameras: "Cameras", path: str, frames: int) -> "Tensor":
    """Poses [frames, 3, 4] of a spiral or an orbit that fits the cameras."""
    from sinelr_lightning.rendering import orbit_path, spiral_path

    if path == "auto":
        path = "spiral" if cameras.forward_facing else "orbit"
    if path == "spiral":
        return spiral_path(cameras.cam_to_world, cameras.near, cameras.far, frames)
    return orbit_path(cameras.cam_to_world, frames)


def _frames(task: "NeRFTask", poses: "Tensor", scale: float, depth: bool) -> "Iterator[Tensor]":
    from sinelr_lightning.rendering import depth_image, image_rays, side_by_side, to_uint8

    cameras = task.cameras
    assert cameras is not None
    height, width = max(1, round(cameras.height * scale)), max(1, round(cameras.width * scale))
    intrinsics = (cameras.intrinsics.mean(0) * scale).to(task.device)
    for pose in poses:
        origins, directions = image_rays(pose.to(task.device), intrinsics, height, width)
        colour, distance = task.render(origins, directions)
        picture = [colour, depth_image(distance, cameras.near, cameras.far)] if depth else [colour]
        yield to_uint8(side_by_side(*picture)).cpu()


def _with_progress(frames: "Iterator[Tensor]", total: int) -> "Iterator[Tensor]":
    from rich.console import Console
    from rich.progress import track

    yield from track(frames, "rendering", total=total, console=Console(stderr=True))
