"""`last.ckpt` and `best.ckpt`: always whole, always between two steps, never with a NaN in them."""

import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.distributed.tensor import DTensor

from sinelr_lightning.callbacks.folder import run_folder
from sinelr_lightning.errors import UserError
from sinelr_lightning.files import atomic_path
from sinelr_lightning.runs import load_checkpoint

__all__ = ["AtomicCheckpointIO", "Checkpoint"]

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it; reads with `weights_only=True` unless told otherwise.

    A write that fails (a full disk) leaves the earlier checkpoint as it was and no temporary file. It is logged and
    kept in `error` instead of raised: only rank 0 writes, and the other ranks already wait for it.
    """

    def __init__(self) -> None:
        self.error: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`, whole or not at all."""
        try:
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                torch.save(checkpoint, file)
            self.error = None
        except (OSError, RuntimeError) as error:
            # A writer that fails in mid-file closes its archive, which fails too, as a RuntimeError about positions.
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError) and "inline_container" not in str(error):
                raise
            reason = (
                cause.strerror if isinstance(cause, OSError) and cause.strerror else "the file could not be written"
            )
            self.error = f"{path} was not saved: {reason}"
            kept = "the earlier checkpoint is kept and " if os.path.exists(path) else ""
            log.warning("%s; %straining goes on", self.error, kept)

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the checkpoint at `path`; nothing but plain values and tensors is accepted by default.

        Raises:
            UserError: it is no readable checkpoint.
        """
        if weights_only is False:
            return super().load_checkpoint(path, map_location, weights_only=False)
        return load_checkpoint(path, map_location)


class Checkpoint(callbacks.Checkpoint):
    """Keeps `checkpoints/last.ckpt` and, by the task's `monitor`, `checkpoints/best.ckpt` in the run folder.

    `last` is saved every `every_minutes`, after each validation, at the end of the run, and when the run is told to
    stop (Ctrl-C, SIGTERM). Lightning's own callback saves `last` only where the monitored figure improved.
    What is saved resumes exactly: as after the last step of the optimiser, whatever was accumulated since, and in
    mid-validation so that the validation runs again whole.

    Args:
        every_minutes: longest time between two saves of `last`.
    """

    def __init__(self, every_minutes: float = 5.0) -> None:
        if every_minutes < 0:
            raise UserError(f"every_minutes must be ≥ 0, got {every_minutes}")
        self.every_minutes = every_minutes
        self.folder = Path("checkpoints")
        self.best_score: float | None = None
        self.best_model_path = ""
        self.last_model_path = ""
        self._saved_at = time.monotonic()
        self._saved_step = -1
        self._in_validation = False

    # -- when ----------------------------------------------------------------------------------------------------
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the folder: `checkpoints/` in the run folder of rank 0."""
        self.folder = Path(trainer.strategy.broadcast(str(run_folder(trainer)))) / "checkpoints"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; what was just restored need not be saved."""
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Save when it is time or the run is told to stop, after a step of the optimiser.

        Not where a validation follows: a resume would skip it.
        """
        # With several ranks every look is an exchange between them: not at each step.
        last_batch = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        looks = last_batch or trainer.world_size == 1 or trainer.global_step % 10 == 0
        if looks and not _since_step(trainer) and not self._validation_follows(trainer) and self._due(trainer):
            self._save_last(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save when it is time: a long validation that fails must not cost the steps before it."""
        self._in_validation = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if self._in_validation and self._due(trainer):
            self._save_last(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save `best` if the monitored figure improved, and `last`."""
        if not self._in_validation:
            return
        self._in_validation = False
        score = trainer.callback_metrics.get(getattr(pl_module, "monitor", ""))
        if score is not None and self._improves(float(score), getattr(pl_module, "mode", "min")):
            earlier, self.best_score = self.best_score, float(score)
            if self._save(trainer, "best"):
                self.best_model_path = str(self.folder / "best.ckpt")
            else:
                self.best_score = earlier
        self._saved_step = -1  # what was saved before this validation would repeat it
        self._save_last(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the end state.

        Raises:
            UserError: it could not be written.
        """
        self._save_last(trainer)
        error = getattr(trainer.strategy.checkpoint_io, "error", None)
        if error:
            raise UserError(error)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save when the run was told to stop after the last save: between two steps or two held-out samples."""
        ended = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch and not self._in_validation
        if isinstance(exception, SIGTERMException) and not trainer.sanity_checking and not ended:
            self._save_last(trainer)  # a state after an epoch's end would lose or repeat an epoch

    # -- how -----------------------------------------------------------------------------------------------------
    def _due(self, trainer: L.Trainer) -> bool:
        due = trainer.received_sigterm or time.monotonic() - self._saved_at >= 60 * self.every_minutes
        return trainer.strategy.broadcast(due)  # rank 0 decides for all: saving is a joint act

    @staticmethod
    def _validation_follows(trainer: L.Trainer) -> bool:
        progress, epochs = trainer.fit_loop.epoch_loop.batch_progress, trainer.check_val_every_n_epoch
        if not trainer.enable_validation or (epochs is not None and (trainer.current_epoch + 1) % epochs):
            return False
        every = trainer.val_check_batch
        if not every or math.isinf(every):
            return progress.is_last_batch
        return (progress.total.ready if epochs is None else progress.current.ready) % every == 0

    def _improves(self, score: float, mode: str) -> bool:
        if not math.isfinite(score):
            return False
        if self.best_score is None:
            return True
        return score < self.best_score if mode == "min" else score > self.best_score

    def _save_last(self, trainer: L.Trainer) -> None:
        if trainer.state.fn == TrainerFn.FITTING and trainer.global_step != self._saved_step:
            self.last_model_path = str(self.folder / "last.ckpt")
            self._save(trainer, "last")
            self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def _save(self, trainer: L.Trainer, name: str) -> bool:
        if getattr(trainer, "fast_dev_run", False):
            return False
        # Weights that are shared out (FSDP2) are each process's own to look at.
        if not trainer.strategy.reduce_boolean_decision(_finite(trainer.lightning_module)):
            log.warning(
                "the weights hold NaN or infinity at step %d: %s.ckpt is kept as it was", trainer.global_step, name
            )
            return False
        trainer.save_checkpoint(self.folder / f"{name}.ckpt")
        return getattr(trainer.strategy.checkpoint_io, "error", None) is None

    # -- state ---------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """The best score, and the folder in which it counts."""
        return {"best_score": self.best_score, "folder": str(self.folder.absolute())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best score over when the run goes on in its own folder; a new folder has no best yet."""
        best = self.folder / "best.ckpt"
        if state_dict["folder"] == str(self.folder.absolute()) and best.is_file():
            self.best_score, self.best_model_path = state_dict["best_score"], str(best)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Turn what is in progress back to its beginning.

        A step in progress (SLURM's signal saves there), or one whose gradient is still being accumulated, gives the
        batches back that it took. A validation in progress counts as at its first sample: Lightning would go on with
        its counters, but over the wrong samples.
        """
        fit_loop = checkpoint["loops"]["fit_loop"]
        taken = _since_step(trainer)
        if taken:
            for state in fit_loop["state_dict"].get("combined_loader", []):
                if "next" in state:
                    state["next"] -= taken
            progress = fit_loop["epoch_loop.batch_progress"]
            for counts in (progress["total"], progress["current"]):
                done = counts["ready"] - taken
                # As they stand when a step's batch ends, from where Lightning knows to go on.
                counts.update(ready=done, started=done, processed=done, completed=done - 1)
            progress["is_last_batch"] = False
            fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
        elif self._in_validation:  # with batches given back it comes again by itself
            first = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            fit_loop["epoch_loop.val_loop.batch_progress"].update(total=dict(first), current=dict(first))


def _since_step(trainer: L.Trainer) -> int:
    """How many batches were taken since the optimiser's last step, the one in progress among them."""
    loop, every = trainer.fit_loop.epoch_loop, trainer.accumulate_grad_batches
    count, total = loop.batch_progress.current.ready, loop.batch_progress.total
    if total.ready > total.processed:  # ty: ignore[missing-attribute]
        return (count - 1) % every + 1
    return count % every if loop._should_accumulate() else 0


def _finite(module: torch.nn.Module) -> bool:
    """Whether every weight that is here is a number; one exchange with the device."""
    weights = [p.to_local() if isinstance(p, DTensor) else p for p in module.parameters() if p.is_floating_point()]
    checks = [w.isfinite().all() for w in weights]
    return not checks or bool(torch.stack([c.to(checks[0].device) for c in checks]).all())
