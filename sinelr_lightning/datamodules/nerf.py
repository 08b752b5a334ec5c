"""Posed photographs as batches of rays: pixels live in one tensor, a batch is indices until it is on the device."""

from typing import Any

import torch
from torch import Tensor

from sinelr_lightning.datamodules.loaders import EvaluationLoader, RankedData, StepLoader, index_loader
from sinelr_lightning.datamodules.readers import SceneFormat, read_scene
from sinelr_lightning.datamodules.scene import Cameras, Scene
from sinelr_lightning.errors import UserError
from sinelr_lightning.rendering import image_rays, pixel_rays

__all__ = ["NeRFData"]


class NeRFData(RankedData):
    """Rays of a scene with their colours.

    A training batch holds `origins` [B, 3], `directions` [B, 3] and `colours` [B, 3]: pixels drawn evenly from all
    training views. An evaluation batch is one held-out view: the same with [H, W, 3], its `number` among the held-out
    views and its `name`. Directions have unit length along the optical axis, so that the distance along a ray is
    depth.

    Args:
        root: folder of an LLFF, Blender, nerfstudio or COLMAP scene.
        factor: how much smaller than the full-size photographs the ones used are (8 reads `images_8`).
        hold: every how many-th view is held out, where the files have no split of their own.
        format: auto, llff, transforms or colmap.
        white_background: what transparent pixels show, white or black.
        near, far: depth range in the units of the file, for transforms files, which do not say it.
        batch_size: rays a step, over all processes.
        epoch_steps: steps between two validations.

    Raises:
        UserError: from `setup`, for everything that is wrong with the scene.
    """

    def __init__(
        self,
        root: str = "data/llff_demo",
        factor: int = 1,
        hold: int = 8,
        format: SceneFormat = "auto",
        white_background: bool = True,
        near: float | None = None,
        far: float | None = None,
        batch_size: int = 1024,
        epoch_steps: int = 1000,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1 ray, got {batch_size}")
        self.root, self.factor, self.hold, self.format = root, factor, hold, format
        self.white_background, self.near, self.far = white_background, near, far
        self.batch_size, self.epoch_steps = batch_size, epoch_steps
        self._scene: Scene | None = None
        self._on_device: dict[torch.device, tuple[Tensor, Cameras, Tensor]] = {}

    @property
    def scene(self) -> Scene:
        """The scene, read at the first use."""
        if self._scene is None:
            self._scene = read_scene(
                self.root, self.factor, self.hold, self.format, self.white_background, self.near, self.far
            )
        return self._scene

    @property
    def cameras(self) -> Cameras:
        """The cameras of all views, with the depth range."""
        return self.scene.cameras

    def protocol(self) -> dict[str, Any]:
        """How the figures of this data were measured, for metrics.json."""
        scene = self.scene
        views = {"train_views": len(scene.train), "val_views": len(scene.val), "test_views": len(scene.test)}
        return {**scene.protocol, **views, "height": scene.cameras.height, "width": scene.cameras.width}

    def setup(self, stage: str | None = None) -> None:
        """Read the scene, before anything is trained."""
        self.seed = torch.initial_seed()
        _ = self.scene

    def train_dataloader(self) -> StepLoader[Tensor]:
        """Endless pixel indices; batch i depends on the seed and i alone."""
        pixels = len(self.scene.train) * self.cameras.height * self.cameras.width
        return index_loader(pixels, self.batch_size, self.epoch_steps, self.seed, *self._ranks())

    def val_dataloader(self) -> EvaluationLoader[dict[str, Any]]:
        """The held-out views, one a batch."""
        return self._held_out(self.scene.val)

    def test_dataloader(self) -> EvaluationLoader[dict[str, Any]]:
        """The test views, one a batch."""
        return self._held_out(self.scene.test)

    predict_dataloader = test_dataloader

    def _held_out(self, views: list[int]) -> EvaluationLoader[dict[str, Any]]:
        names = self.scene.names
        return EvaluationLoader(
            lambda number: {"number": number, "view": torch.tensor(views[number]), "name": names[views[number]]},
            len(views),
            *self._ranks(),
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Turn indices into rays and colours on their device."""
        if isinstance(batch, Tensor):
            return self._rays_of(batch)
        images, cameras, _ = self._resident(batch["view"].device)
        view = int(batch["view"])
        distortion = None if cameras.distortion is None else cameras.distortion[view]
        origins, directions = image_rays(
            cameras.cam_to_world[view], cameras.intrinsics[view], cameras.height, cameras.width, distortion
        )
        return {**batch, "origins": origins, "directions": directions, "colours": images[view].float() / 255}

    def _rays_of(self, index: Tensor) -> dict[str, Tensor]:
        """Rays [B] of flat pixel indices over the training views."""
        images, cameras, train = self._resident(index.device)
        size = cameras.height * cameras.width
        view = train[index // size]
        pixel = index % size
        row, column = pixel // cameras.width, pixel % cameras.width
        distortion = None if cameras.distortion is None else cameras.distortion[view]
        origins, directions = pixel_rays(
            cameras.cam_to_world[view], cameras.intrinsics[view], torch.stack([column, row], -1), distortion
        )
        return {"origins": origins, "directions": directions, "colours": images[view, row, column].float() / 255}

    def _resident(self, device: torch.device) -> tuple[Tensor, Cameras, Tensor]:
        """Images, cameras and the numbers of the training views on the device, moved once."""
        if device not in self._on_device:
            train = torch.tensor(self.scene.train, device=device)
            self._on_device[device] = self.scene.images.to(device), self.cameras.to(device), train
        return self._on_device[device]
