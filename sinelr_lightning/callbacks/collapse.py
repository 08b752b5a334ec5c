"""Notices a run that has died, and gives it one more chance."""

import logging
from typing import Any

import lightning.pytorch as L
import torch

from sinelr_lightning.errors import UserError

__all__ = ["RestartOnCollapse"]

log = logging.getLogger(__name__)


class RestartOnCollapse(L.Callback):
    """Draws the weights anew, once, when the task says that it has collapsed; the second collapse stops the run.

    A task takes part by `collapse() -> str | None`, which says what is dead or None, and `restart(seed)`, which draws
    its weights anew. The step count and the learning-rate schedule go on.

    Args:
        every: steps between two looks.
    """

    def __init__(self, every: int = 100) -> None:
        if every < 1:
            raise UserError(f"every must be at least 1 step, got {every}")
        self.every = every
        self.restarts = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look when it is time; a run has collapsed when it has on every process.

        Raises:
            UserError: it collapsed again after the restart.
        """
        collapse = getattr(pl_module, "collapse", None)
        if collapse is None or trainer.global_step % self.every:
            return
        reason: str | None = collapse()
        dead = torch.tensor(float(reason is not None), device=pl_module.device)
        if not float(trainer.strategy.reduce(dead, reduce_op="min")):
            return
        step, advice = trainer.global_step, "lower the learning rate (--model.optimizer.lr) or the frequency"
        if self.restarts:
            raise UserError(f"the run collapsed again at step {step}: {reason}; {advice}")
        self.restarts += 1
        seed = trainer.strategy.broadcast(torch.initial_seed() + 1)  # or the copies would differ in an unseeded run
        log.warning("the run collapsed at step %d: %s; starting again once with seed %d", step, reason, seed)
        pl_module.restart(seed)  # ty: ignore[not-callable]
        for optimizer in trainer.optimizers:
            optimizer.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """How often the run was restarted."""
        return {"restarts": self.restarts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.restarts = state_dict["restarts"]
