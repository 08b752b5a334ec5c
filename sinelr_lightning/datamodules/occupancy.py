"""Points of a shape with inside or outside: the pool lives on the device, a batch is indices until it is there."""

import logging
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sinelr_lightning.datamodules.loaders import EvaluationLoader, RankedData, StepLoader, index_loader
from sinelr_lightning.datamodules.samples import NEAR_SPREADS, Samples, cache_folder, labelled_grid, sample
from sinelr_lightning.datamodules.shape import Shape, read_shape
from sinelr_lightning.errors import UserError

__all__ = ["OccupancyData"]

EVALUATION_BATCH = 10_000  # points
SEEDS = {"train": 0, "val": 1, "test": 2}

log = logging.getLogger(__name__)


class Pool(NamedTuple):
    """What a training batch indexes, on one device."""

    points: Tensor | None  # [N, 3], or None for the centres of a grid
    inside: Tensor  # bool [N], or packed bits [N/8] of a grid


class OccupancyData(RankedData):
    """Points of the cube [−1, 1]³ with 1 inside the shape and 0 outside.

    A training batch holds `points` [B, 3] and `inside` [B] in float32, drawn evenly from a pool: `points` samples,
    half uniform in the cube and half near the surface, or all voxel centres of a grid. An evaluation batch is a piece
    of fresh samples with its `number` and `near`, whether they lie near the surface; validation and test have their
    own.

    Args:
        mesh: file with the shape, in any format that trimesh reads.
        volume: NumPy file (.npy) with a voxel grid [X, Y, Z]; where it is given, it takes the place of the mesh.
        threshold: voxels above it are inside.
        padding: share of the cube's half side that stays free around the shape's longest side.
        points: training samples in the pool.
        grid: take the voxel centres of a grid with this many along each axis as the pool; 512 in the paper.
        eval_points: samples of each evaluation, half uniform and half near the surface.
        batch_size: points a step, over all processes.
        epoch_steps: steps between two validations.
        cache: keep what was sampled, in $XDG_CACHE_HOME/sinelr or ~/.cache/sinelr.

    Raises:
        UserError: from `setup`, for everything that is wrong with the file.
    """

    def __init__(
        self,
        mesh: str | None = "data/watering_can.ply",
        volume: str | None = None,
        threshold: float = 0.5,
        padding: float = 0.1,
        points: int = 1_000_000,
        grid: int | None = None,
        eval_points: int = 200_000,
        batch_size: int = 8192,
        epoch_steps: int = 1000,
        cache: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("points", points), ("eval_points", eval_points), ("batch_size", batch_size)):
            if not 2 <= value <= 10**9:
                raise UserError(f"data.{name} must be from 2 to a billion, got {value}")
        if grid is not None and not 8 <= grid <= 1024:
            raise UserError(f"data.grid must be 8 to 1024 voxels along an axis, or null, got {grid}")
        self.mesh, self.volume, self.threshold, self.padding = mesh, volume, threshold, padding
        self.points, self.grid, self.eval_points = points, grid, eval_points
        self.batch_size, self.epoch_steps = batch_size, epoch_steps
        self.cache = cache_folder() if cache else None
        self._shape: Shape | None = None
        self._on_device: dict[torch.device, Pool] = {}

    @property
    def shape(self) -> Shape:
        """The solid, read at the first use."""
        if self._shape is None:
            self._shape = read_shape(self.mesh, self.volume, self.padding, self.threshold)
        return self._shape

    def protocol(self) -> dict[str, Any]:
        """How the figures of this data were measured, for metrics.json."""
        half = self.eval_points // 2
        counts = {"uniform_points": self.eval_points - half, "near_points": half, "near_spreads": list(NEAR_SPREADS)}
        pool = {"train_grid": self.grid} if self.grid else {"train_points": self.points}
        return {**self.shape.protocol(), **pool, **counts, "sample_seeds": SEEDS, "padding": self.padding}

    def prepare_data(self) -> None:
        """Fill the cache before the other processes ask."""
        if self.cache is None or self.trainer is None:
            return
        stage = self.trainer.state.fn
        if stage == "fit":
            self._labels()
        self._sample("val" if stage in ("fit", "validate") else "test", self.eval_points)

    def setup(self, stage: str | None = None) -> None:
        """Read the shape, before anything is trained."""
        self.seed = torch.initial_seed()
        log.info("%s: %s", self.shape.source, self.shape.describe())

    def _labels(self) -> Samples | np.ndarray:
        if self.grid:
            return labelled_grid(self.shape, self.grid, self.cache)
        return self._sample("train", self.points)

    def _sample(self, split: str, count: int) -> Samples:
        return sample(self.shape, count, SEEDS[split], self.cache)

    def train_dataloader(self) -> StepLoader[Tensor]:
        """Endless indices into the pool; batch i depends on the seed and i alone."""
        count = self.grid**3 if self.grid else self.points
        return index_loader(count, self.batch_size, self.epoch_steps, self.seed, *self._ranks())

    def val_dataloader(self) -> EvaluationLoader[dict[str, Any]]:
        """Fresh points, a piece a batch."""
        return self._fresh("val")

    def test_dataloader(self) -> EvaluationLoader[dict[str, Any]]:
        """Other fresh points, a piece a batch."""
        return self._fresh("test")

    predict_dataloader = test_dataloader

    def _fresh(self, split: str) -> EvaluationLoader[dict[str, Any]]:
        samples = self._sample(split, self.eval_points)
        uniform = self.eval_points - self.eval_points // 2
        pieces = [
            (slice(begin, min(begin + EVALUATION_BATCH, end)), begin >= uniform)
            for first, end in ((0, uniform), (uniform, self.eval_points))
            for begin in range(first, end, EVALUATION_BATCH)
        ]

        def make(number: int) -> dict[str, Any]:
            piece, near = pieces[number]
            points = torch.from_numpy(samples.points[piece])
            return {
                "number": number,
                "near": near,
                "points": points,
                "inside": torch.from_numpy(samples.inside[piece]),
            }

        return EvaluationLoader(make, len(pieces), *self._ranks())

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Turn indices into points and labels on their device."""
        if not isinstance(batch, Tensor):
            return batch
        pool = self._resident(batch.device)
        if pool.points is not None:
            return {"points": pool.points[batch], "inside": pool.inside[batch].float()}
        assert self.grid is not None
        axes = torch.stack([batch // self.grid**2, batch // self.grid % self.grid, batch % self.grid], -1)
        bits = pool.inside[batch // 8] >> (7 - batch % 8) & 1  # numpy packs the first into the highest bit
        return {"points": (2 * axes + 1) / self.grid - 1, "inside": bits.float()}

    def _resident(self, device: torch.device) -> Pool:
        """The pool on the device, moved once."""
        if device not in self._on_device:
            labels = self._labels()
            points, inside = labels if isinstance(labels, Samples) else (None, labels)
            self._on_device[device] = Pool(
                None if points is None else torch.from_numpy(points).to(device), torch.from_numpy(inside).to(device)
            )
        return self._on_device[device]
