"""A shape as a network that says inside or outside, and its surface back."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from sinelr_lightning.datamodules.occupancy import OccupancyData
from sinelr_lightning.errors import UserError
from sinelr_lightning.files import atomic_path
from sinelr_lightning.geometry.marching import extract_surface
from sinelr_lightning.geometry.mesh_io import CubePlacement
from sinelr_lightning.geometry.metrics import compare_surfaces
from sinelr_lightning.geometry.picture import shade, usual_up
from sinelr_lightning.layers import LinearFactory, SineLowRank, fold
from sinelr_lightning.models.occupancy import Activation, occupancy_network
from sinelr_lightning.tasks.base import ExportParts, Task
from sinelr_lightning.tasks.schedule import Schedule

__all__ = ["POLISH", "OccupancyTask"]

SLICE = 256  # pixels of a side of a picture of the field
PICTURE = 480, 400  # pixels of a picture of a surface
POLISH = 2  # rounds by which the vertices of a surface are brought onto it
SURFACE_SAMPLES = 100_000  # points drawn from each surface
SURFACE_SEED = 0  # of these draws
F_SCORE_THRESHOLD = 0.01  # of the cube's half side
NO_SURFACE = {"chamfer": float("inf"), "normal_consistency": 0.0, "f_score": 0.0}

log = logging.getLogger(__name__)


class OccupancyTask(Task):
    """An occupancy network (Mescheder et al. 2019) of one shape, whose hidden layers come from `linear`.

    Loss: binary cross-entropy of the logit. Scores: intersection over union |A ∩ B|/|A ∪ B| of the network's inside
    (probability above ½) and the true one, over fresh points, uniform in the cube (`iou`) and near the surface
    (`iou_near`); and between the surface of the network and the true one, in the cube's units, Chamfer distance,
    normal consistency and F-score (`geometry.metrics.compare_surfaces`).

    Args:
        linear: factory of the hidden layers; the first layer and the head stay dense.
        depth, width: size of the network; 2 and 256 in Ji et al. 2025, §4.4.
        activation: gaussian, siren, wire, relu or gelu.
        sigma: σ of gaussian; 0.1 in the paper.
        omega: ω₀ of siren and wire; null for 30 and 10.
        scale: s₀ of wire.
        frequencies: octaves of the encoding of the position; null for 6 with relu and gelu, none with the others.
        resolution: cells along each axis of the grid on which the surface is scored.
        mesh_every: validations between two surfaces in TensorBoard.
        optimizer, schedule, weight_decay: see `Task`.
    """

    monitor: ClassVar[str] = "val/iou"
    mode: ClassVar[Literal["min", "max"]] = "max"

    def __init__(
        self,
        linear: LinearFactory = SineLowRank(rank=8),  # noqa: B008 (frozen)
        depth: int = 2,
        width: int = 256,
        activation: Activation = "gaussian",
        sigma: float = 0.1,
        omega: float | None = None,
        scale: float = 10.0,
        frequencies: int | None = None,
        resolution: int = 128,
        mesh_every: int = 1,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
        schedule: Schedule = Schedule("exponential", final=0.1),  # noqa: B008 (frozen)
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(optimizer, schedule, weight_decay)
        if depth < 1 or width < 2:
            raise UserError(f"depth must be at least 1 and width at least 2, got {depth} and {width}")
        for name, value in (("sigma", sigma), ("omega", omega), ("scale", scale)):
            if value is not None and value <= 0:
                raise UserError(f"model.{name} must be positive, got {value}")
        if frequencies is not None and (frequencies < 0 or activation == "wire"):
            raise UserError(f"model.frequencies must be at least 0, and null with wire, got {frequencies}")
        if resolution < 16 or mesh_every < 1:
            raise UserError(
                f"resolution must be at least 16, mesh_every at least 1, got {resolution} and {mesh_every}"
            )
        self._network_arguments: dict[str, Any] = {
            "linear": linear,
            "depth": depth,
            "width": width,
            "activation": activation,
            "sigma": sigma,
            "omega": omega,
            "scale": scale,
            "frequencies": frequencies,
        }
        self.network = occupancy_network(**self._network_arguments)
        self.resolution, self.mesh_every = resolution, mesh_every
        self.placement: CubePlacement | None = None
        self.source = self.fingerprint = ""
        self._last: Tensor | None = None
        self._true_slices: np.ndarray | None = None
        self._true_picture: np.ndarray | None = None
        self._predictions = Path()

    # -- the shape's place, which a checkpoint carries ------------------------------------------------------------
    def setup(self, stage: str) -> None:
        """Take the placement from the data; a checkpoint has it for everything that comes later."""
        shape = self.data(OccupancyData).shape
        self.placement, self.source, self.fingerprint = shape.placement, shape.source.name, shape.fingerprint

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store where the shape lies, so that its mesh comes back in its own coordinates without the data."""
        assert self.placement is not None
        checkpoint["shape"] = {
            "placement": self.placement.to_dict(),
            "source": self.source,
            "fingerprint": self.fingerprint,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the placement back.

        Raises:
            UserError: the data at hand is another shape, or the same elsewhere in the cube.
        """
        super().on_load_checkpoint(checkpoint)
        shape = checkpoint["shape"]
        if self.fingerprint and self.fingerprint != shape["fingerprint"]:
            raise UserError(
                f"the checkpoint is of another shape ({shape['source']}) than the data ({self.source}), or the shape "
                "lies elsewhere in the cube (data.padding): start a new run, without --ckpt_path"
            )
        self.placement = CubePlacement.from_dict(shape["placement"])
        self.source = shape["source"]

    # -- training ---------------------------------------------------------------------------------------------------
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch of points."""
        logits = self.network(batch["points"])
        self._last = logits.detach()
        return F.binary_cross_entropy_with_logits(logits, batch["inside"].to(logits))

    def collapse(self) -> str | None:
        """Say what has died, judged by the last batch: the network gives the same answer everywhere."""
        if self._last is None or len(self._last) < 2 or float(self._last.std()) > 1e-6:  # alive, if slow to start
            return None
        return "the network gives the same answer at every point"

    def restart(self, seed: int) -> None:
        """Draw the weights anew."""
        self.redraw(self.network, lambda: occupancy_network(**self._network_arguments), seed)

    # -- evaluation -------------------------------------------------------------------------------------------------
    def field(self) -> Callable[[np.ndarray], np.ndarray]:
        """Freeze the present weights into a function: points [N, 3] of the cube → logits [N], float32.

        Weights are constants there, and thin factors where these cost less and err by less than 1e-5.
        """
        frozen = fold(copy.deepcopy(self.network), tolerance=1e-5).eval()

        def logits(points: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                tensor = torch.from_numpy(np.ascontiguousarray(points, dtype=np.float32))
                return frozen(tensor.to(self.device)).float().cpu().numpy()

        return logits

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Score one piece of the validation points."""
        self._score_points(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Score one piece of the test points."""
        self._score_points(batch, "test")

    def _score_points(self, batch: dict[str, Any], stage: str) -> None:
        logits, truth = self.network(batch["points"]), batch["inside"]
        predicted = logits > 0
        suffix = "_near" if batch["near"] else ""
        counts = {"intersection": (predicted & truth).sum(), "union": (predicted | truth).sum()}
        loss = F.binary_cross_entropy_with_logits(logits.float(), truth.float(), reduction="sum")
        values = {**counts, "loss_sum": loss, "points": len(truth)}
        self.score(stage, batch["number"], **{f"{name}{suffix}": value for name, value in values.items()})

    def combine(self, samples: dict[int, dict[str, float]]) -> dict[str, float]:
        """IoU and mean loss from the sums over all pieces."""

        def total(name: str) -> float:
            return sum(values.get(name, 0.0) for values in samples.values())

        figures = {}
        for suffix in ("", "_near"):
            if total(f"points{suffix}"):
                # Nothing inside on either side is agreement.
                union = total(f"union{suffix}")
                figures[f"iou{suffix}"] = total(f"intersection{suffix}") / union if union else 1.0
        points = total("points") + total("points_near")
        return {**figures, "loss": (total("loss_sum") + total("loss_sum_near")) / points}

    def on_validation_epoch_end(self) -> None:
        """Log the figures of points and surface, and show the surface."""
        super().on_validation_epoch_end()
        if not self.trainer.sanity_checking:
            self._score_surface("val", show=self.trainer.current_epoch % self.mesh_every == 0)

    def on_test_epoch_end(self) -> None:
        """Log the figures of points and surface."""
        super().on_test_epoch_end()
        self._score_surface("test", show=True)

    def _score_surface(self, stage: str, show: bool) -> None:
        """Extract the surface on the first process, compare it with the true one, tell all processes."""
        figures = dict(NO_SURFACE)
        if self.trainer.is_global_zero:
            truth = self.data(OccupancyData).shape.surface
            field = self.field()
            try:
                surface = extract_surface(field, self.resolution, polish=POLISH).mesh
            except UserError as error:
                log.warning("no surface to score at step %d: %s", self.global_step, error)
            else:
                compared = compare_surfaces(surface, truth, SURFACE_SAMPLES, F_SCORE_THRESHOLD, SURFACE_SEED)
                figures = {name: getattr(compared, name) for name in NO_SURFACE}
                if show:
                    self._show_surface(stage, surface, truth)
            if show:
                self._show_slices(stage, field)
        for name, value in self.trainer.strategy.broadcast(figures).items():
            self.log(f"{stage}/{name}", value, reduce_fx="max", sync_dist=True)

    def _show_surface(self, stage: str, surface: trimesh.Trimesh, truth: trimesh.Trimesh) -> None:
        if (board := self.board("add_image", "add_mesh")) is None:
            return
        up = usual_up(self.source)
        if self._true_picture is None:
            self._true_picture = shade(truth, *PICTURE, up=up)
        pictures = np.concatenate([self._true_picture, shade(surface, *PICTURE, up=up)], axis=1)
        board.add_image(
            f"{stage}/true surface, surface of the network", pictures, self.global_step, dataformats="HWC"
        )
        small = surface.simplify_quadric_decimation(face_count=20_000) if len(surface.faces) > 20_000 else surface
        vertices, faces = torch.tensor(small.vertices)[None].float(), torch.tensor(small.faces)[None].int()
        board.add_mesh(f"{stage}/surface", vertices, faces=faces, global_step=self.global_step)

    def _show_slices(self, stage: str, field: Callable[[np.ndarray], np.ndarray]) -> None:
        """Planes x = 0, y = 0, z = 0 through the cube: inside above, the network's probability below."""
        if (board := self.board("add_image", "add_mesh")) is None:
            return
        axis = np.linspace(-1, 1, SLICE)
        across, up = np.meshgrid(axis, -axis, indexing="xy")
        zero = np.zeros_like(across)
        planes = np.concatenate(
            [np.stack(p, -1) for p in ((zero, across, up), (across, zero, up), (across, up, zero))], 1
        )
        points = planes.reshape(-1, 3)
        if self._true_slices is None:
            self._true_slices = self.data(OccupancyData).shape.contains(points).reshape(planes.shape[:2])
        probability = torch.from_numpy(field(points)).sigmoid().numpy().reshape(planes.shape[:2])
        picture = np.concatenate([self._true_slices, probability])
        title = f"{stage}/inside and probability at x = 0, y = 0, z = 0"
        board.add_image(title, picture.astype(np.float32), self.global_step, dataformats="HW")

    # -- prediction -------------------------------------------------------------------------------------------------
    def on_predict_start(self) -> None:
        """Ask for the run's folder, and empty it of an earlier prediction."""
        self._predictions = self.predictions("predictions")
        if self.trainer.is_global_zero:
            for earlier in self._predictions.glob("[0-9][0-9][0-9].npz"):
                earlier.unlink()
        log.info("probabilities at the test points go to %s", self._predictions)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> str:
        """Write points (in the input's coordinates), probability and truth of one piece; the file's path."""
        assert self.placement is not None
        path = self._predictions / f"{batch['number']:03d}.npz"
        points = self.placement.from_cube(batch["points"].double().cpu().numpy())
        probability = self.network(batch["points"]).float().sigmoid().cpu().numpy()
        with atomic_path(path) as temporary:
            np.savez(temporary, points=points, probability=probability, inside=batch["inside"].cpu().numpy())
        return str(path)

    # -- what is said about the run ---------------------------------------------------------------------------------
    def protocol(self) -> dict[str, Any]:
        """How the data were sampled and the surface extracted."""
        return {
            **self.data(OccupancyData).protocol(),
            "surface_resolution": self.resolution,
            "surface_samples": SURFACE_SAMPLES,
            "surface_seed": SURFACE_SEED,
            "f_score_threshold": F_SCORE_THRESHOLD,
        }

    def export_parts(self) -> ExportParts:
        """The network, points [N, 3] → logits [N], and where its cube lies in the shape's coordinates."""
        assert self.placement is not None
        metadata = {
            "input": "points [N, 3] of the cube from -1 to 1: (x - centre) / scale, x in the shape's coordinates",
            "output": "logits [N], log(p / (1 - p)) with p the probability of being inside, at the surface p = level",
            "placement": self.placement.to_dict(),
            "level": 0.5,
            "source": self.source,
        }
        points = torch.rand(7, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
        return ExportParts(self.network, points, metadata)

    def closing_lines(self, run: Path) -> list[str]:
        """Commands that show the shape."""
        return [f"sinelr mesh --ckpt_path {run} --out {run}/shape.ply", f"sinelr test --ckpt_path {run}"]
