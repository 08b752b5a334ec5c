"""Novel views of a scene from posed photographs: a radiance field with sine low-rank weights."""

import logging
import math
import time
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from sinelr_lightning.datamodules.loaders import seeded_generator
from sinelr_lightning.datamodules.nerf import NeRFData
from sinelr_lightning.datamodules.scene import Cameras
from sinelr_lightning.errors import UserError
from sinelr_lightning.layers import LinearFactory, SineLowRank, cached_weights
from sinelr_lightning.rendering import depth_image, ndc_depth_to_depth, ndc_rays, save_png, side_by_side, to_uint8
from sinelr_lightning.tasks.base import Task
from sinelr_lightning.tasks.lpips import find_lpips
from sinelr_lightning.tasks.ray_renderer import RayRenderer, Rays, Sampling
from sinelr_lightning.tasks.schedule import Schedule

__all__ = ["NeRFTask"]

SSIM_WINDOW = 11  # pixels, of the usual Gaussian of σ = 1.5

log = logging.getLogger(__name__)


class NeRFTask(Task):
    """A neural radiance field (Mildenhall et al. 2020) whose hidden layers come from `linear`.

    Loss: mean squared error of the colours, of the coarse field's too (hierarchical), plus the interlevel loss of the
    proposal (Barron et al. 2022, eq. 13). Scores of held-out views: PSNR in dB, SSIM, and LPIPS where its weights are
    found.

    Args:
        linear: factory of every linear layer but the output heads.
        depth, width, skip: size of the field; 8, 256 and 4 in the paper. `skip` is the index of the layer after which
            the encoded position enters again.
        position_frequencies: octaves of the encoding of the position; 10 in the paper. Fewer blur fine detail, more
            leave a grain where views are few.
        sampling: "proposal" (a small density field places the samples) or "hierarchical" (the paper's two fields).
        coarse_samples, fine_samples: samples a ray of the two passes; 64 and 128 in the paper.
        ndc: train forward-facing scenes in normalised device coordinates; other scenes are not affected.
        jitter: place the training samples at random in their bins.
        optimizer, schedule, weight_decay: see `Task`.
    """

    monitor: ClassVar[str] = "val/psnr"
    mode: ClassVar[Literal["min", "max"]] = "max"

    def __init__(
        self,
        linear: LinearFactory = SineLowRank(rank=8),  # noqa: B008 (frozen)
        depth: int = 8,
        width: int = 256,
        skip: int = 4,
        position_frequencies: int = 10,
        sampling: Sampling = "proposal",
        coarse_samples: int = 48,
        fine_samples: int = 24,
        ndc: bool = True,
        jitter: bool = True,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.Adam(parameters, lr=5e-4),
        schedule: Schedule = Schedule("exponential", final=0.1),  # noqa: B008 (frozen)
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(optimizer, schedule, weight_decay)
        if not 0 <= skip < depth - 1:
            raise UserError(f"skip must be the index of a layer before the last of the {depth}, got {skip}")
        self._renderer_arguments: dict[str, Any] = {
            "linear": linear,
            "sampling": sampling,
            "coarse_samples": coarse_samples,
            "fine_samples": fine_samples,
            "depth": depth,
            "width": width,
            "skips": (skip,),
            "position_frequencies": position_frequencies,
        }
        self.renderer = RayRenderer(**self._renderer_arguments)
        self.ndc, self.jitter = ndc, jitter
        self.cameras: Cameras | None = None
        self.white_background = False
        self.seed = 0
        self._last: tuple[Tensor, Tensor, Tensor] | None = None
        self._lpips: Any = None
        self._predictions = Path()
        self._clock = (0, 0.0)
        self._chunk: int | None = None

    # -- the scene, which a checkpoint carries ------------------------------------------------------------------
    def setup(self, stage: str) -> None:
        """Take the cameras from the data; a checkpoint has them for everything that comes later."""
        scene = self.data(NeRFData).scene
        self.cameras, self.white_background = scene.cameras, scene.white_background
        self.seed = torch.initial_seed()
        if stage in ("validate", "test"):
            self._lpips = find_lpips()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the cameras, so that rendering needs neither data nor flags."""
        assert self.cameras is not None
        checkpoint["scene"] = {"cameras": self.cameras.to_dict(), "white_background": self.white_background}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the cameras back."""
        super().on_load_checkpoint(checkpoint)
        scene = checkpoint["scene"]
        self.cameras, self.white_background = Cameras.from_dict(scene["cameras"]), scene["white_background"]

    # -- rendering ----------------------------------------------------------------------------------------------
    def rays(self, origins: Tensor, directions: Tensor) -> Rays:
        """Rays in the space of the field from world rays [..., 3] with depth as their t."""
        cameras = self.cameras
        assert cameras is not None
        views = F.normalize(directions, dim=-1)
        if self.ndc and cameras.forward_facing:
            focal_x, focal_y = cameras.intrinsics[0, :2].tolist()
            origins, directions = ndc_rays(origins, directions, focal_x, focal_y, cameras.height, cameras.width)
            return Rays(origins, directions, views, 0.0, 1.0, None)
        background = 1.0 if self.white_background else None
        return Rays(origins, directions, views, cameras.near, cameras.far, background)

    def render(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Colour [..., 3] in [0, 1] and depth [...] in scene units of world rays [..., 3], without gradients.

        The rays go through in chunks that fit the memory: the size is halved when it runs out.
        """
        shape = origins.shape[:-1]
        flat = origins.reshape(-1, 3), directions.reshape(-1, 3)
        parts, done = [], 0
        with torch.inference_mode(), cached_weights(self):
            while done < len(flat[0]):
                size = self._chunk or (1024 if self.device.type == "cpu" else 65_536)
                try:
                    parts.append(self._render_chunk(*(part[done : done + size] for part in flat)))
                except torch.OutOfMemoryError:
                    if size == 1:
                        raise
                    self._chunk = size // 2
                    continue
                done += size
        colour, depth = (torch.cat(part) for part in zip(*parts, strict=True))
        return colour.reshape(*shape, 3), depth.reshape(shape)

    def _render_chunk(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        rays = self.rays(origins, directions)
        out = self.renderer(rays)
        depth = out.depth if rays.directions is directions else ndc_depth_to_depth(out.depth, origins, directions)
        return out.colour.clamp(0, 1), depth

    # -- training and evaluation --------------------------------------------------------------------------------
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch of rays."""
        generator = None
        if self.jitter:
            # From the step's own number, so that a resumed run draws what the uninterrupted one would have drawn.
            number = self.global_step * self.trainer.world_size + self.trainer.global_rank
            generator = seeded_generator(self.seed + 1, number, self.device)
        out = self.renderer(self.rays(batch["origins"], batch["directions"]), generator)
        self._last = out.first.detach(), out.beyond.detach(), batch["colours"]
        error = F.mse_loss(out.colour, batch["colours"])
        self.log("train/psnr", -10 * torch.log10(error.detach()), prog_bar=True)
        loss = error
        if out.coarse_colour is not None:
            loss = loss + F.mse_loss(out.coarse_colour, batch["colours"])
        if out.interlevel is not None:
            loss = loss + out.interlevel
        return loss

    def on_train_epoch_start(self) -> None:
        """Start the clock of the rays; a validation lies behind."""
        self._clock = (self.global_step, time.perf_counter())

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log how fast rays are trained, over all processes."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        step, began = self._clock
        every = self.trainer.log_every_n_steps  # ty: ignore[missing-attribute]
        if every and self.global_step % every == 0 and self.global_step > step:  # what is logged between is lost
            now = time.perf_counter()
            rays = (self.global_step - step) * len(batch["origins"]) * self.trainer.world_size
            self.log("train/rays_per_second", rays / (now - began))
            self._clock = (self.global_step, now)

    def collapse(self) -> str | None:
        """Say what has died, judged by the last batch: no ray meets anything, or every ray ends at once.

        Rays through the background of the photographs should meet nothing, so they do not count as passing.
        """
        if self._last is None:
            return None
        first, beyond, colours = self._last
        beyond = beyond[(colours - float(self.white_background)).abs().amax(-1) > 0.1]
        if len(beyond) and bool((beyond > 0.99).all()):
            return "every ray passes through the scene (opacity 0 everywhere)"
        if bool((first > 0.99).all()):
            return "every ray ends in its first interval (a wall before the cameras)"
        return None

    def restart(self, seed: int) -> None:
        """Draw the weights anew."""
        self.redraw(self.renderer, lambda: RayRenderer(**self._renderer_arguments), seed)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Score one held-out view."""
        self._score_view(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Score one test view."""
        self._score_view(batch, "test")

    def on_predict_start(self) -> None:
        """Ask for the run's folder here, and not by view: each process has its own number of views."""
        self._predictions = self.predictions("predictions")
        log.info("pictures of the test views go to %s", self._predictions)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> str:
        """Write the test view, its depth and the photograph side by side; the file's path."""
        colour, depth = self.render(batch["origins"], batch["directions"])
        path = self._predictions / f"{batch['number']:03d}_{Path(batch['name']).stem}.png"  # stems may recur
        save_png(path, self._picture(batch["colours"], colour, depth))
        return str(path)

    def _score_view(self, batch: dict[str, Any], stage: str) -> None:
        colour, depth = self.render(batch["origins"], batch["directions"])
        truth = batch["colours"]
        error = F.mse_loss(colour, truth).item()
        values = {"psnr": -10 * math.log10(max(error, 1e-12))}
        prediction, target = (image.permute(2, 0, 1)[None].clone() for image in (colour, truth))
        if min(truth.shape[:2]) >= SSIM_WINDOW:  # it is NaN in a smaller image
            values["ssim"] = float(structural_similarity_index_measure(prediction, target, data_range=1.0))  # ty: ignore[invalid-argument-type]
        if self._lpips is not None:
            values["lpips"] = float(self._lpips(prediction, target))
        self.score(stage, batch["number"], **values)
        if batch["number"] == 0 and (board := self.board("add_image")) is not None:
            picture = to_uint8(self._picture(truth, colour, depth))
            board.add_image(f"{stage}/photograph, rendering, depth", picture, self.global_step, dataformats="HWC")

    def _picture(self, truth: Tensor, colour: Tensor, depth: Tensor) -> Tensor:
        assert self.cameras is not None
        return side_by_side(truth, colour, depth_image(depth, self.cameras.near, self.cameras.far))

    # -- what is said about the run -----------------------------------------------------------------------------
    def protocol(self) -> dict[str, Any]:
        """How the data were read and the background treated."""
        return {**self.data(NeRFData).protocol(), "white_background": self.white_background}

    def closing_lines(self, run: Path) -> list[str]:
        """Commands that show the scene."""
        return [f"sinelr render --ckpt_path {run} --out {run}/video.mp4", f"sinelr test --ckpt_path {run}"]
