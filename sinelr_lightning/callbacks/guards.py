"""Stops a run that cannot come to anything."""

import math
from typing import Any

import lightning.pytorch as L
import torch

from sinelr_lightning.errors import UserError

__all__ = ["StopOnNaN"]


class StopOnNaN(L.Callback):
    """Stops the run when the loss is NaN or infinite, naming the step.

    On one CPU every step is looked at. Elsewhere the first bad step is noted on the device and asked for every
    `every` steps, so that no step waits for the device; no checkpoint holds weights with NaN in the meantime
    (`Checkpoint` looks itself).

    Args:
        every: steps between two looks on a GPU or with several processes.
    """

    def __init__(self, every: int = 50) -> None:
        if every < 1:
            raise UserError(f"every must be at least 1 step, got {every}")
        self.every = every
        self._first_bad: torch.Tensor | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss of this step; look when it is time.

        Raises:
            UserError: a loss was not finite.
        """
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if loss is None:
            return
        step = torch.tensor(float(trainer.global_step), device=loss.device)
        bad = torch.where(loss.detach().isfinite().all(), torch.full_like(step, math.inf), step)
        self._first_bad = bad if self._first_bad is None else torch.minimum(self._first_bad, bad)
        alone = trainer.world_size == 1 and loss.device.type == "cpu"
        if alone or trainer.global_step % self.every == 0:
            self._look(trainer, self._first_bad)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the steps since the last look."""
        if self._first_bad is not None:
            self._look(trainer, self._first_bad)

    @staticmethod
    def _look(trainer: L.Trainer, first_bad: torch.Tensor) -> None:
        first = (
            float(trainer.strategy.reduce(first_bad, reduce_op="min")) if trainer.world_size > 1 else float(first_bad)
        )
        if math.isinf(first):
            return
        kept = next(filter(None, (getattr(c, "last_model_path", "") for c in trainer.checkpoint_callbacks)), "")
        raise UserError(
            f"the loss is NaN or infinite at step {first:.0f}: lower the learning rate (--model.optimizer.lr) or the "
            f"frequency" + (f"; the last good checkpoint is {kept}" if kept else "; no checkpoint was saved yet")
        )
