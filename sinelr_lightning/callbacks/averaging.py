"""An exponential moving average of the weights that can be stopped, resumed and trusted."""

import itertools
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim.swa_utils import AveragedModel

from sinelr_lightning.errors import UserError

__all__ = ["EMA"]


class EMA(EMAWeightAveraging):
    """Keeps W̄ ← decay·W̄ + (1 − decay)·W beside the weights W: Lightning's callback, put right where it bites.

    Validation, and a checkpoint's `state_dict`, have the average; the weights that training goes on with are in the
    checkpoint as `current_model_state`. Before the first update there is no average: Lightning would validate and
    store the untrained copy (its issue #21724), here both have the weights themselves. They are replaced by the
    average only after the last checkpoint is written, so that a finished run can go on, too.

    Args:
        decay: share of the old average that stays, 0 ≤ decay < 1.
        start: optimiser steps before the first update.

    Raises:
        UserError: a value out of its range.
    """

    def __init__(self, decay: float = 0.999, start: int = 0) -> None:
        if not 0 <= decay < 1 or start < 0:
            raise UserError(f"EMA: decay must be in [0, 1) and start at least 0 steps, got {decay} and {start}")
        super().__init__(decay=decay, update_starting_at_step=start)
        self._swapped = False

    @property
    def _averages(self) -> bool:
        return self._average_model is not None and int(self._average_model.n_averaged) > 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget the last run. The average begins later: the module may make its layers in its own `setup`."""
        if stage == "fit":
            self._average_model, self._swapped = None, False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin the average, where no checkpoint has brought one."""
        self._begin(trainer, pl_module)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on with weights and average. A checkpoint that is only evaluated has the average as its weights."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._begin(trainer, pl_module)
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def _begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._average_model is None:
            device = trainer.strategy.root_device  # where the module will be, if it is not there yet
            self._average_model = AveragedModel(pl_module, device, use_buffers=self._use_buffers, **self._kwargs)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do nothing: weights that are cached for the epoch are those of `on_validation_start`."""

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the average: the module's own hook comes after this one, and may still evaluate."""

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validate the average, once there is one."""
        if self._averages:
            self._swap_models(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Train on with the weights."""
        if self._averages:
            self._swap_models(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Put the weights back where a validation was stopped, before the last checkpoint is written."""
        if self._swapped:
            self._swap_models(pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the weights: the last checkpoint is still to be written."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the average in the model."""
        if self._averages:
            self._swap_models(pl_module)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the average as the checkpoint's weights, once there is one."""
        weights = checkpoint["state_dict"]
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._average_model is not None and not self._averages:
            checkpoint["state_dict"] = {name: value.clone() for name, value in weights.items()}

    def _swap_models(self, pl_module: L.LightningModule) -> None:
        assert self._average_model is not None
        self._swapped = not self._swapped
        averaged = self._average_model.module
        pairs = zip(
            itertools.chain(averaged.parameters(), averaged.buffers()),
            itertools.chain(pl_module.parameters(), pl_module.buffers()),
            strict=True,
        )
        # In place with a new version of each tensor, which `.data` would not make: what is cached for it is dropped.
        with torch.no_grad():
            for average, current in pairs:
                kept = average.clone()
                average.copy_(current)
                current.copy_(kept)
